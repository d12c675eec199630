"""Which code wrote a checkpoint: the package's version and, in a working copy, its commit."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import nx46vx

_SHA = re.compile(r"^[0-9a-f]{40}([0-9a-f]{24})?$")


@cache
def code_version() -> tuple[str, str | None]:
    """``(version, git_sha)``; the commit is None outside a working copy. Reads files, runs nothing."""
    return nx46vx.__version__, _commit(Path(nx46vx.__file__).resolve().parents[1] / ".git")


def _commit(git: Path) -> str | None:
    try:
        if git.is_file():  # a linked working tree
            git = (git.parent / git.read_text().removeprefix("gitdir:").strip()).resolve()
        head = (git / "HEAD").read_text().strip()
        if head.startswith("ref:"):
            name = head.removeprefix("ref:").strip()
            common = git / (git / "commondir").read_text().strip() if (git / "commondir").exists() else git
            loose = common / name
            head = loose.read_text().strip() if loose.exists() else _packed(common / "packed-refs", name)
    except (OSError, UnicodeDecodeError):
        return None
    return head if _SHA.match(head) else None


def _packed(path: Path, name: str) -> str:
    for line in path.read_text().splitlines():
        if line.endswith(f" {name}"):
            return line.split(" ")[0]
    return ""
