"""A writer's folder of segments: names, positions in the chain, seals.

Segment ``n`` is ``<n>.jsonl`` while it is written, later ``<n>.jsonl.gz`` with ``<n>.seal.json``. Bytes that a crash
left behind a segment's last whole line are kept in ``<n>.torn``.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from nx46vx.errors import IntegrityError
from nx46vx.events.chain import GENESIS
from nx46vx.runtime.digest import canonical_json
from nx46vx.runtime.files import Files

_NAME = re.compile(r"^(\d{8})\.(jsonl|jsonl\.gz|seal\.json|torn)$")
_WRITER = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._=+@-]{0,119}$")
_COUNTS = {"segment", "first_seq", "lines", "line_bytes", "fence", "stored_bytes", "torn_bytes"}


@dataclass(frozen=True)
class Position:
    """A place in a writer's chain: lines before it and the digest of the last of them."""

    count: int = 0
    head: str = GENESIS


@dataclass(frozen=True)
class Seal:
    """What a closed segment holds; every field follows from the stored bytes and the position before them.

    ``line_bytes`` counts the lines with their newlines, ``fence`` is the last line's (0: no lines), ``merkle_root`` is
    over the lines without newlines, ``torn_*`` describe the quarantined bytes (0 and "" where there are none).
    """

    writer: str
    segment: int
    first_seq: int
    lines: int
    line_bytes: int
    fence: int
    previous_head: str
    head: str
    merkle_root: str
    stored_bytes: int
    stored_sha512: str
    torn_bytes: int
    torn_sha512: str

    @property
    def start(self) -> Position:
        return Position(self.first_seq, self.previous_head)

    @property
    def end(self) -> Position:
        return Position(self.first_seq + self.lines, self.head)

    def encoded(self) -> bytes:
        return canonical_json(asdict(self)) + b"\n"


@dataclass(frozen=True)
class SegmentPaths:
    folder: Path
    number: int

    def _named(self, ending: str) -> Path:
        return self.folder / f"{self.number:08d}.{ending}"

    @property
    def plain(self) -> Path:
        return self._named("jsonl")

    @property
    def packed(self) -> Path:
        return self._named("jsonl.gz")

    @property
    def seal(self) -> Path:
        return self._named("seal.json")

    @property
    def torn(self) -> Path:
        return self._named("torn")


def valid_writer(name: str) -> bool:
    """Whether a name can be a writer's: letters, digits and ``._=+@-``, at most 120, no leading dot."""
    return _WRITER.match(name) is not None


def list_writers(files: Files, folder: Path) -> list[str]:
    """Names of the writers below ``events/``, sorted; none if the folder is not there."""
    if not files.exists(folder):
        return []
    return sorted(name for name in files.listdir(folder) if valid_writer(name) and _is_folder(files, folder / name))


def list_segments(files: Files, folder: Path) -> list[SegmentPaths]:
    """The segments of which any file exists, by ascending number."""
    numbers = {int(match[1]) for name in files.listdir(folder) if (match := _NAME.match(name))}
    return [SegmentPaths(folder, number) for number in sorted(numbers)]


def foreign_names(files: Files, folder: Path) -> list[str]:
    """Names in a writer's folder that are no segment's."""
    return sorted(name for name in files.listdir(folder) if not _NAME.match(name))


def is_leftover(name: str) -> bool:
    """Whether a name is that of a file whose replacement was interrupted."""
    return name.startswith(".") and name.endswith(".tmp")


def read_seal(files: Files, paths: SegmentPaths) -> Seal:
    """Read a seal strictly.

    Raises:
        IntegrityError: not exactly the bytes that a seal of these values has.
        OSError: it cannot be read.
    """
    raw = files.read(paths.seal, 0, 1 << 16)
    try:
        seal = Seal(**orjson.loads(raw))
    except (ValueError, TypeError) as error:
        raise IntegrityError("a log segment's seal is damaged", where=paths.seal, found=str(error)[:200]) from error
    types_right = all(type(value) is (int if name in _COUNTS else str) for name, value in asdict(seal).items())
    if not types_right or min(getattr(seal, name) for name in _COUNTS) < 0 or seal.encoded() != raw:
        raise IntegrityError("a log segment's seal is damaged", where=paths.seal, found="it is not in its own form")
    return seal


def _is_folder(files: Files, path: Path) -> bool:
    if files.is_link(path):
        return False
    try:
        files.listdir(path)
    except OSError:
        return False
    return True
