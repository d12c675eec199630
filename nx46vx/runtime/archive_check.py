"""What an archive has to be before any byte of it is believed: names, kinds, sizes, ratios, checksums."""

from __future__ import annotations

import io
import os
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from nx46vx.errors import IntegrityError, UsageError, from_os_error
from nx46vx.runtime.archive_names import limit_of, stays_behind

#: Most bytes that an archive may unpack to.
MAX_BYTES = 32 << 30
#: Most bytes out of one byte in; an archive, a member or a log segment beyond is a bomb. Below RATIO_FREE none is.
MAX_RATIO = 200
RATIO_FREE = 1 << 20
#: Most bytes of the archive's table of contents (a run has about a thousand members of a hundred bytes each).
_MAX_TABLE = 8 << 20
_MAX_LINES = 256 << 20
_MAX_DEPTH = 16
_CHUNK = 1 << 20
_ENCRYPTED, _DOS_FOLDER = 0x1, 0x10
_LOCAL_HEADER = 30  # bytes, then the name
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_FAULTS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OverflowError,
           NotImplementedError)  # fmt: skip
_NEEDED = ("config.yaml", "run.json")

Member = tuple[str, zipfile.ZipInfo]


class _Bounded(io.FileIO):
    """A file of which no single read takes more memory than the largest table of contents allowed."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = _MAX_TABLE
        if size > _MAX_TABLE:
            raise ValueError(f"its table of contents says it has {size} bytes, at most {_MAX_TABLE} are read")
        return super().read(size) or b""


@contextmanager
def opened_archive(path: Path) -> Iterator[tuple[zipfile.ZipFile, int]]:
    """A zip file and its size.

    Raises:
        UsageError: it is not there.
        IntegrityError: it is no regular file or no zip.
        EnvironmentFault: it cannot be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise UsageError("the archive is not there", where=path, fix="check the path") from error
    except OSError as error:
        raise from_os_error(error, "opening the archive", path) from error
    with _Bounded(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise IntegrityError("the archive is not a regular file", where=path, fix="give a zip file")
        try:
            archive = zipfile.ZipFile(file)
        except _FAULTS as error:
            raise IntegrityError("the archive is no readable zip", where=path, found=error) from error
        except OSError as error:
            raise IntegrityError("the archive is no readable zip", where=path, found=error.strerror) from error
        with archive:
            yield archive, status.st_size


def checked_members(archive: zipfile.ZipFile, path: Path, size: int, max_bytes: int = MAX_BYTES) -> list[Member]:
    """The members to unpack, each with its path below the run directory; everything is checked before anything is.

    An archive that was packed by other means may hold folders, one folder around it all, and files of a run directory
    that do not travel; those are left out.

    Raises:
        IntegrityError: a member that no archive of a run has, by name and reason.
    """
    members = archive.infolist()
    for member in members:
        _check_name(member, path)
    _check_places(members, path, archive.start_dir)
    around = _folder_around([member.filename for member in members])
    seen: dict[str, str] = {}
    wanted: list[Member] = []
    for member in members:
        name = member.filename[len(around) :]
        key = unicodedata.normalize("NFC", name).casefold()
        if key in seen:
            raise _refused(path, member, f"two members have this name (the other is {seen[key]!r})")
        seen[key] = member.filename
        _check_kind(member, path)
        limit = limit_of(name)
        if limit is None:
            if name and not stays_behind(name):
                raise _refused(path, member, "no run has such a file")
            continue
        _check_size(member, path, limit)
        wanted.append((name, member))
    total = sum(member.file_size for _, member in wanted)
    if total > max_bytes:
        raise IntegrityError("the archive is too large", where=path, found=f"{total} bytes, at most {max_bytes}")
    if total > RATIO_FREE and total > MAX_RATIO * size:
        raise IntegrityError("the archive is a bomb", where=path, found=f"{size} bytes that say they hold {total}")
    missing = [name for name in _NEEDED if name not in {name for name, _ in wanted}]
    if missing:
        raise IntegrityError("this is no archive of a run", where=path, found=f"no {' and no '.join(missing)}")
    return wanted


def unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> Iterator[bytes]:
    """A member's bytes in chunks; never more than it says, and exactly as many, with the right checksum.

    Raises:
        IntegrityError: the archive says otherwise.
    """
    left = member.file_size
    try:
        with archive.open(member) as stream:  # compares the local header's name, and the CRC at the end
            while chunk := stream.read(_CHUNK):
                left -= len(chunk)
                yield chunk
    except _FAULTS as error:
        raise _refused(path, member, f"it cannot be unpacked: {error}") from error
    if left:
        raise _refused(path, member, f"it ends {left} bytes early")


def check_content(folder: Path, names: Sequence[str], where: Path) -> None:
    """Look for bombs one level down: log segments that unpack to far more, a configuration of references.

    Raises:
        IntegrityError: names the file.
    """
    for name in names:
        if name.endswith(".jsonl.gz"):
            _check_segment(folder / name, f"{where}, {name}")
    _check_yaml(folder / "config.yaml", f"{where}, config.yaml")


def read_member(path: Path, name: str) -> bytes:
    """One file's bytes out of an archive that is not unpacked.

    Raises:
        IntegrityError: the archive is none of a run.
    """
    with opened_archive(path) as (archive, size):
        member = next(member for found, member in checked_members(archive, path, size) if found == name)
        return b"".join(unpacked(archive, member, path))


def _check_name(member: zipfile.ZipInfo, path: Path) -> None:
    name = member.filename
    if member.orig_filename != name or "\0" in name or "\\" in name:
        raise _refused(path, member, "its name holds a backslash or a NUL")
    if any(ord(char) < 32 or ord(char) == 127 for char in name):
        raise _refused(path, member, "its name holds a control character")
    if name.startswith("/") or name[1:2] == ":":
        raise _refused(path, member, "its name is an absolute path")
    if any(part in ("", ".", "..") for part in name.removesuffix("/").split("/")):
        raise _refused(path, member, "its name leads out of the run directory or through an empty one")


def _check_places(members: Sequence[zipfile.ZipInfo], path: Path, end: int) -> None:
    """Each member lies where no other does, and before the table of contents: a few bytes cannot be many members."""
    for member in sorted(members, key=lambda member: member.header_offset, reverse=True):
        least = member.header_offset + _LOCAL_HEADER + len(member.orig_filename) + member.compress_size
        if member.header_offset < 0 or least > end:
            why = f"it shares bytes with what follows: it ends at {least}, the next begins at {end}"
            raise _refused(path, member, why)
        end = member.header_offset


def _check_kind(member: zipfile.ZipInfo, path: Path) -> None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    folder = member.filename.endswith("/")
    if kind not in (0, stat.S_IFDIR if folder else stat.S_IFREG) or (member.external_attr & _DOS_FOLDER and not folder):
        what = "a link" if kind == stat.S_IFLNK else f"no regular file (mode {member.external_attr >> 16:o})"
        raise _refused(path, member, f"it is {what}")
    if folder and member.file_size:
        raise _refused(path, member, "it is a folder with content")
    if member.flag_bits & _ENCRYPTED:
        raise _refused(path, member, "it is encrypted")
    if member.compress_type not in _METHODS:
        raise _refused(path, member, f"it is compressed by method {member.compress_type}, not deflate")


def _check_size(member: zipfile.ZipInfo, path: Path, limit: int) -> None:
    if member.file_size > limit:
        raise _refused(path, member, f"it says it has {member.file_size} bytes, at most {limit} are possible")
    if member.file_size > RATIO_FREE and member.file_size > MAX_RATIO * member.compress_size:
        raise _refused(path, member, f"a bomb: {member.compress_size} bytes that say they hold {member.file_size}")


def _folder_around(names: Sequence[str]) -> str:
    """The one folder that holds everything, with its slash; empty where the files stand at the top."""
    if "config.yaml" in names or not names:
        return ""
    first = names[0].partition("/")[0] + "/"
    return first if all(name.startswith(first) for name in names) and f"{first}config.yaml" in names else ""


def _check_yaml(path: Path, where: str) -> None:
    """Neither references, which unfold without end, nor nesting that no configuration has."""
    depth = 0
    try:
        for event in yaml.parse(path.read_text()):
            if getattr(event, "anchor", None) is not None:
                raise IntegrityError("the configuration holds references", where=where)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise IntegrityError("the configuration is nested too deeply", where=where)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise IntegrityError("the configuration cannot be read", where=where, found=str(error)[:200]) from error


def _check_segment(path: Path, where: str) -> None:
    limit = min(_MAX_LINES, max(RATIO_FREE, MAX_RATIO * path.stat().st_size))
    engine, total = zlib.decompressobj(31), 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            while chunk:
                try:
                    total += len(engine.decompress(chunk, _CHUNK))
                except zlib.error as error:
                    raise IntegrityError("a packed log segment is damaged", where=where, found=error) from error
                if total > limit:
                    raise IntegrityError("a packed log segment is a bomb", where=where, found=f"over {limit} bytes")
                chunk = engine.unconsumed_tail


def _refused(path: Path, member: zipfile.ZipInfo, why: str) -> IntegrityError:
    shown: Any = member.filename if len(member.filename) <= 120 else member.filename[:120] + "..."
    return IntegrityError("the archive is refused", where=path, found=f"member {shown!r}: {why}")
