"""One owner's folder in one root: which checkpoints stand there, the fencing marks, moving in, moving out.

Names: ``ckpt-<number>`` a committed checkpoint, ``.tmp-*`` one that is being written, ``.trash-*`` one that is being
removed (both with their writer's epoch), ``fence-<epoch>`` the mark of a writer that has taken over. A writer that was
replaced without knowing it may still be at work here: what it does has to fail, and not disturb its successor.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from nx46vx.errors import StoppedError
from nx46vx.runtime.checkpoint.folder import rewrite_checkpoint, write_checkpoint
from nx46vx.runtime.files import Files, make_folder, remove_file, remove_folder

_CHECKPOINT = re.compile(r"^ckpt-(\d{8})$")
_FENCE = re.compile(r"^fence-(\d{8})$")
_HALF_DONE = re.compile(r"^\.(?:tmp|trash)-e(\d{8})-")
_OWNER = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._=+@-]{0,119}$")


def valid_owner(name: str) -> bool:
    """Whether a name can be an owner's: letters, digits and ``._=+@-``, at most 120, no leading dot."""
    return _OWNER.match(name) is not None


@dataclass(frozen=True)
class Shelf:
    """``epoch``: the fencing epoch of the process that writes here."""

    files: Files
    folder: Path
    epoch: int = 0

    def path(self, number: int) -> Path:
        return self.folder / f"ckpt-{number:08d}"

    def numbers(self) -> list[int]:
        """Numbers of the checkpoints by name, ascending; nothing is said about their being valid."""
        if not self.files.exists(self.folder):
            return []
        return sorted(int(match[1]) for name in self.files.listdir(self.folder) if (match := _CHECKPOINT.match(name)))

    def foreign_names(self) -> list[str]:
        """Names that no store gives, sorted."""
        return sorted(
            name
            for name in self.files.listdir(self.folder)
            if not (_CHECKPOINT.match(name) or _FENCE.match(name) or name.startswith((".tmp-", ".trash-")))
        )

    def fence(self) -> int:
        """The highest fencing epoch that has taken over here; 0 if none has."""
        if not self.files.exists(self.folder):
            return 0
        return max(
            (int(match[1]) for name in self.files.listdir(self.folder) if (match := _FENCE.match(name))), default=0
        )

    def check_fence(self) -> None:
        """Raise ``StoppedError`` if a writer with a higher epoch has taken over."""
        newest = self.fence()
        if newest > self.epoch:
            raise StoppedError(
                "another process writes these checkpoints now", where=self.folder,
                found=f"fencing epoch {newest}, this one has {self.epoch}",
            )  # fmt: skip

    def claim(self) -> None:
        """Take over: leave a durable mark of this epoch.

        Raises:
            StoppedError: a writer with a higher epoch has done so.
        """
        make_folder(self.files, self.folder)
        self.check_fence()
        mark = self.folder / f"fence-{self.epoch:08d}"
        if not self.files.exists(mark):
            self.files.close(self.files.create(mark))
        self.files.fsync_folder(self.folder)
        for name in self.files.listdir(self.folder):
            if (match := _FENCE.match(name)) and int(match[1]) < self.epoch:
                remove_file(self.files, self.folder / name)

    def tidy(self) -> None:
        """Clear away what dead writers left half done; make the folder if it is not there.

        What a writer with a higher epoch has begun stays: this one may have been replaced.
        """
        make_folder(self.files, self.folder)
        left = [name for name in self.files.listdir(self.folder) if self._may_clear(name)]
        if left:
            self.files.fsync_folder(self.folder)  # none may come back under a checkpoint's name
            for name in left:
                self._seize(self.folder / name)

    def put(
        self, number: int, manifest: bytes, payload: bytes, guard: Callable[[], None], spare: Path | None = None
    ) -> Path:
        """Give a checkpoint its name; ``sync`` makes that durable. ``guard`` is asked right before.

        ``spare``: a retired folder to be written over, this one synced since it lost its name.

        Raises:
            StoppedError: another writer holds this number, or ``guard`` says so.
            OSError: the file system refuses; nothing half done has a checkpoint's name.
        """
        temporary = self._reused(spare, manifest, payload) or self._new_name()
        try:
            if temporary != spare:
                write_checkpoint(self.files, temporary, manifest, payload)
            guard()
            if self.files.exists(self.path(number)):
                raise StoppedError("another process writes these checkpoints now", where=self.path(number))
            self.files.rename(temporary, self.path(number))
        except (OSError, StoppedError):
            self._discard(temporary)
            raise
        return self.path(number)

    def sync(self) -> None:
        """Make the names durable."""
        self.files.fsync_folder(self.folder)

    def retire(self, number: int) -> Path:
        """Take a checkpoint's name. What it holds may go once the folder has been synced: a power loss could otherwise
        bring the name back without its content."""
        retired = self.folder / f".trash-e{self.epoch:08d}-{number:08d}-{uuid.uuid4().hex[:12]}"
        self.files.rename(self.path(number), retired)
        return retired

    def remove(self, retired: Iterable[Path]) -> None:
        """Remove what was retired; what will not go is removed by the next who takes over."""
        for path in retired:
            self._discard(path)

    def _new_name(self) -> Path:
        return self.folder / f".tmp-e{self.epoch:08d}-{os.getpid()}-{uuid.uuid4().hex[:12]}"

    def _may_clear(self, name: str) -> bool:
        if not name.startswith((".tmp-", ".trash-")):
            return False
        match = _HALF_DONE.match(name)
        return match is None or int(match[1]) <= self.epoch

    def _seize(self, path: Path) -> None:
        """Remove what another writer had begun; under another name first, lest it names it while it is emptied."""
        taken = self.folder / f".trash-e{self.epoch:08d}-{uuid.uuid4().hex[:12]}"
        try:
            self.files.rename(path, taken)
        except OSError:  # it has a checkpoint's name by now, or is gone
            return
        self._discard(taken)

    def _reused(self, spare: Path | None, manifest: bytes, payload: bytes) -> Path | None:
        """``spare`` with this content; None if there is none, or it would not take it and is gone."""
        if spare is None:
            return None
        try:
            rewrite_checkpoint(self.files, spare, manifest, payload)
        except OSError:  # new files may do better; if not, they say why
            self._discard(spare)
            return None
        return spare

    def _discard(self, path: Path) -> None:
        try:
            remove_folder(self.files, path)
        except OSError:  # another error is on its way, or it is gone already; the next claim tries again
            return
