"""How much memory the container may use, and uses: the kernel ends processes there long before the machine is full."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

CGROUP = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")

#: Version 1 writes "no limit" as the largest multiple of a page; no machine has as much.
_NO_LIMIT = 1 << 60


@dataclass(frozen=True)
class GroupMemory:
    """One control group with a limit. ``used_bytes`` leaves out file pages, which the kernel gives back by itself."""

    path: Path
    limit_bytes: int
    used_bytes: int

    @property
    def used_share(self) -> float:
        return self.used_bytes / self.limit_bytes


def tightest_group(root: Path = CGROUP, membership: Path = MEMBERSHIP) -> GroupMemory | None:
    """Of this process's control group and those above it (versions 1 and 2), the one nearest to its limit.

    None where there is no limit, or no control groups at all.
    """
    groups = [group for folder in _folders(root, membership) if (group := _read(folder)) is not None]
    return max(groups, key=lambda group: group.used_share, default=None)


def _folders(root: Path, membership: Path) -> Iterator[Path]:
    """Every folder that may limit this process. A container often sees its own group as the root."""
    try:
        lines = membership.read_text().splitlines()
    except (OSError, ValueError):
        lines = []
    places = {root: PurePosixPath("/"), root / "memory": PurePosixPath("/")}
    for line in lines:
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers == "" or "memory" in controllers.split(","):
            places[root if controllers == "" else root / "memory"] = PurePosixPath(group or "/")
    for mount, path in places.items():
        inside = [] if ".." in path.parts else [path, *path.parents]
        yield from dict.fromkeys([*(mount / str(one).lstrip("/") for one in inside), mount])


def _read(folder: Path) -> GroupMemory | None:
    for limit_file, usage_file, prefix in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        limit, usage = _number(folder / limit_file), _number(folder / usage_file)
        if limit is None or usage is None or not 0 < limit < _NO_LIMIT:
            continue
        stat = _stat(folder / "memory.stat")
        reclaimable = stat.get(f"{prefix}inactive_file", 0) + stat.get(f"{prefix}active_file", 0)
        return GroupMemory(folder, limit, max(usage - reclaimable, 0))
    return None


def _number(path: Path) -> int | None:
    """A file's number; None for ``max`` and for files that are not there."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _stat(path: Path) -> Mapping[str, int]:
    try:
        pairs = (line.split() for line in path.read_text().splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
    except (OSError, ValueError):
        return {}
