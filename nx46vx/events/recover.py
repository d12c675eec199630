"""What a writer finds when it opens its folder again: the end of the chain, and what a crash left behind it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nx46vx.errors import IntegrityError, StoppedError
from nx46vx.events import chain
from nx46vx.events.packing import check_sealed, close_segment
from nx46vx.events.segment import Position, Seal, SegmentPaths, foreign_names, is_leftover, list_segments, read_seal
from nx46vx.runtime.files import Files, remove_file


@dataclass(frozen=True)
class Recovery:
    """Where the chain goes on, in which segment, and what was quarantined since the last opening."""

    position: Position = field(default_factory=Position)
    next_segment: int = 0
    torn_bytes: int = 0
    torn_files: tuple[str, ...] = ()


def recover(files: Files, folder: Path, writer: str, fence: int) -> Recovery:
    """Close every segment that is still plain and say where to go on.

    Nothing is ever appended to a file of an earlier writer: a failed sync may have lost some of its pages, so its
    lines are written anew (packed and synced) before anything follows them.

    Raises:
        IntegrityError: a segment is missing, or one is damaged before its tail.
        StoppedError: a writer with a higher fencing epoch has been here.
        OSError: the file system refuses.
    """
    for name in foreign_names(files, folder):
        if is_leftover(name):
            remove_file(files, folder / name)
    segments = list_segments(files, folder)
    if not segments:
        return Recovery()
    if [paths.number for paths in segments] != list(range(len(segments))):
        missing = sorted(set(range(segments[-1].number)) - {paths.number for paths in segments})
        raise IntegrityError("log segments are missing", where=folder, found=f"no segment {missing[:5]}")
    newest = newest_fence(files, segments)
    if newest > fence:
        raise StoppedError(
            "another process writes this log now", where=folder, found=f"fencing epoch {newest}, this one has {fence}"
        )
    seals = _close_all(files, segments, writer)
    torn_bytes, torn_files = 0, []
    for seal, paths in zip(seals[::-1], segments[::-1], strict=True):
        if seal.torn_bytes:
            torn_bytes += seal.torn_bytes
            torn_files.append(paths.torn.name)
        if seal.lines:
            break
    return Recovery(seals[-1].end, segments[-1].number + 1, torn_bytes, tuple(torn_files))


def newest_fence(files: Files, segments: list[SegmentPaths]) -> int:
    """The fencing epoch of the last line that there is; 0 if there is none."""
    for paths in reversed(segments):
        if files.exists(paths.plain):
            lines = files.read(paths.plain).rsplit(b"\n", 2)
            if len(lines) == 3 or (len(lines) == 2 and lines[0]):
                return chain.fence_of(lines[-2])
        elif (seal := read_seal(files, paths)).lines:
            return seal.fence
    return 0


def _close_all(files: Files, segments: list[SegmentPaths], writer: str) -> list[Seal]:
    """Seals of all segments; those still plain get theirs now. The last seal that was there is checked in full."""
    plain = [files.exists(paths.plain) for paths in segments]
    first = plain.index(True) if any(plain) else len(segments)
    seals: list[Seal] = []
    for index, paths in enumerate(segments):
        if index < first - 1:
            seals.append(read_seal(files, paths))
        elif index == first - 1 or not plain[index]:
            seals.append(check_sealed(files, paths, writer)[0])
        else:
            seals.append(close_segment(files, paths, writer, seals[-1].end if seals else Position()))
        if index and seals[-1].start != seals[-2].end:
            raise IntegrityError("a log segment does not follow the one before", where=paths.seal)
    return seals
