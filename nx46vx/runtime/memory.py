"""Memory of machine, container, GPUs and of all processes of a run, with a level that warns before it hurts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import psutil

from nx46vx.runtime.cgroup import GroupMemory, tightest_group
from nx46vx.runtime.gpu_memory import GpuMemory, read_gpus

#: Share in use from which a warning is due: there is time left to end other programs or to stop and continue smaller.
WARNING_SHARE = 0.85
#: Share in use from which the kernel may end a process at any moment.
CRITICAL_SHARE = 0.95
#: A level counts as left only this far below its share, so that a reading at the edge does not warn for ever.
SLACK = 0.03


class Level(IntEnum):
    """How near the memory is to its end."""

    OK = 0
    WARNING = 1
    CRITICAL = 2


def level_of(used_share: float) -> Level:
    if used_share >= CRITICAL_SHARE:
        return Level.CRITICAL
    return Level.WARNING if used_share >= WARNING_SHARE else Level.OK


@dataclass(frozen=True)
class Family:
    """This process and its children, to the last grandchild.

    ``measure`` is ``pss`` where shared pages count once in all, ``rss`` where the system does not tell that.
    """

    processes: int
    resident_bytes: int
    measure: str


@dataclass(frozen=True)
class Memory:
    """One reading. ``limited_by``: ``machine``, or the control group that is nearest to its limit."""

    limit_bytes: int
    used_bytes: int
    limited_by: str
    family: Family
    gpus: tuple[GpuMemory, ...] = ()
    gpu_reason: str = ""

    @property
    def used_share(self) -> float:
        return self.used_bytes / self.limit_bytes

    @property
    def worst_share(self) -> float:
        """The fullest memory of all: the machine's or container's, or a GPU's."""
        return max([self.used_share, *(gpu.used_share for gpu in self.gpus)])

    @property
    def level(self) -> Level:
        return level_of(self.worst_share)

    def to_json(self) -> dict[str, Any]:
        """The fields of ``MEMORY_HEALTH``; bytes, and shares from 0 to 1."""
        return {
            "level": self.level.name.lower(), "used_share": self.used_share, "threshold": WARNING_SHARE,
            "critical_threshold": CRITICAL_SHARE, "limited_by": self.limited_by, "limit_bytes": self.limit_bytes,
            "used_bytes": self.used_bytes, "available_bytes": max(self.limit_bytes - self.used_bytes, 0),
            "resident_bytes": psutil.Process().memory_info().rss, "family_bytes": self.family.resident_bytes,
            "family_measure": self.family.measure, "family_processes": self.family.processes,
            "gpus": [{**vars(gpu), "used_share": gpu.used_share, "level": level_of(gpu.used_share).name.lower()}
                     for gpu in self.gpus],
            "gpu_reason": self.gpu_reason,
        }  # fmt: skip

    def to_text(self) -> str:
        """In words, for people."""
        place = "this machine's memory" if self.limited_by == "machine" else f"the memory limit of {self.limited_by}"
        parts = [f"{100 * self.used_share:.0f} % of {place} ({gib(self.limit_bytes)})"]
        parts += [f"{100 * gpu.used_share:.0f} % of GPU {gpu.index}'s ({gib(gpu.total_bytes)})" for gpu in self.gpus]
        family = f"{gib(self.family.resident_bytes)} of it by this run"
        return f"{', '.join(parts)} in use, {family}"


def read_memory(
    *, machine: Callable[[], Any] = psutil.virtual_memory,
    group: Callable[[], GroupMemory | None] = tightest_group,
    gpus: Callable[[], tuple[tuple[GpuMemory, ...], str]] = read_gpus, pid: int | None = None,
) -> Memory:  # fmt: skip
    """Read everything now; takes milliseconds. The tighter of machine and container counts."""
    whole, limited = machine(), group()
    limit, used, by = int(whole.total), int(whole.total - whole.available), "machine"
    if limited is not None and limited.limit_bytes < limit and limited.used_share >= used / limit:
        limit, used, by = limited.limit_bytes, limited.used_bytes, str(limited.path)
    found, reason = gpus()
    return Memory(limit, used, by, read_family(pid), found, reason)


def free_bytes() -> int:
    """Memory that is free for us: the machine's, or less where a container has a limit."""
    available, group = int(psutil.virtual_memory().available), tightest_group()
    return available if group is None else max(min(available, group.limit_bytes - group.used_bytes), 0)


def read_family(pid: int | None = None) -> Family:
    """The process (this one unless named) and all that descend from it; one that ends meanwhile is left out."""
    head = psutil.Process(pid)
    sizes: list[tuple[int, int | None]] = []
    for process in (head, *head.children(recursive=True)):
        try:
            with process.oneshot():
                sizes.append((int(process.memory_info().rss), _pss(process)))
        except psutil.Error:
            continue
    proportional = [pss for _, pss in sizes if pss is not None]
    if len(proportional) == len(sizes):
        return Family(len(sizes), sum(proportional), "pss")
    return Family(len(sizes), sum(rss for rss, _ in sizes), "rss")


def _pss(process: psutil.Process) -> int | None:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.Error, AttributeError, OSError):
        return None


@dataclass
class MemoryWatch:
    """Notices when the level rises. ``read`` gives a reading."""

    read: Callable[[], Memory] = read_memory
    _level: Level = field(default=Level.OK)

    def look(self) -> tuple[Memory, bool]:
        """A reading, and whether its level is higher than before: once for each rise."""
        memory = self.read()
        risen = memory.level > self._level
        self._level = max(memory.level, min(self._level, level_of(memory.worst_share + SLACK)))
        return memory, risen


def gib(size: float) -> str:
    return f"{size / (1 << 30):.1f} GiB"
