"""A run directory as one zip, as a copy, and back: whole or not at all, and nothing in it is trusted."""

from __future__ import annotations

import os
import shutil
import stat
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from nx46vx.errors import EnvironmentFault, IntegrityError, UsageError, from_os_error
from nx46vx.runtime.archive_check import (
    MAX_BYTES,
    MAX_RATIO,
    RATIO_FREE,
    check_content,
    checked_members,
    opened_archive,
    unpacked,
)
from nx46vx.runtime.archive_names import limit_of, travelling_files
from nx46vx.runtime.atomic import fsync_folder, replacing
from nx46vx.runtime.lock import at_rest

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can hold
_CHUNK = 1 << 20
_PACKED = (".gz", ".zip", ".safetensors")
_SPARE = 16 << 20  # left free on the disk

Check = Callable[[Path], None]


def export_run(run: Path, zip_path: Path) -> int:
    """Pack what is needed to go on with a run, and to verify it, into a zip; returns the number of files.

    The same run gives the same bytes. Ray's files, locks and synthetic volumes stay behind. The zip is whole or
    absent. The run is only read, and cannot be started meanwhile.

    Raises:
        UsageError: it is no run directory.
        LockedError: the run is going on.
        IntegrityError: it holds links in its files' places, or changes while it is read.
        EnvironmentFault: something cannot be read or written.
    """
    run = Path(run)
    with at_rest(run), replacing(Path(zip_path)) as temporary:
        names = travelling_files(run)
        with zipfile.ZipFile(temporary, "w", compresslevel=6) as archive:
            for name in names:
                with _source(run, name) as (source, size):
                    member = zipfile.ZipInfo(name, date_time=_EPOCH)
                    member.create_system = 3  # Unix, wherever this runs: it says how to read the permissions
                    member.external_attr = (stat.S_IFREG | 0o644) << 16
                    member.compress_type = _compression(name, source, size)
                    member.file_size = size
                    with archive.open(member, "w") as target:
                        _copy(source, target, size, run / name)
    return len(names)


def import_run(zip_path: Path, target: Path, *, check: Check | None = None, max_bytes: int = MAX_BYTES) -> None:
    """Unpack such a zip as the run directory ``target``, which must not exist: whole and durable, or not at all.

    ``check`` looks at the unpacked folder before it gets its name. Names, kinds, sizes, compression ratios and
    checksums are checked before and while bytes are written; no link is made and nothing is unpickled.

    Raises:
        UsageError: ``target`` exists, or the archive is not there.
        IntegrityError: the archive is not one of a run; names the member and the reason.
        EnvironmentFault: no room for it, or no right to write there.
    """
    target = Path(target)
    _refuse_existing(target)
    with opened_archive(Path(zip_path)) as (archive, size):
        members = checked_members(archive, Path(zip_path), size, max_bytes)
        with _arriving(target) as folder:
            _need_room(folder, sum(member.file_size for _, member in members))
            for name, member in members:
                with _new_file(folder / name) as out:
                    for chunk in unpacked(archive, member, Path(zip_path)):
                        out.write(chunk)
            check_content(folder, [name for name, _ in members], Path(zip_path))
            if check is not None:
                check(folder)


def copy_run(run: Path, target: Path, *, check: Check | None = None) -> None:
    """Copy what ``export_run`` would pack to the run directory ``target``, which must not exist.

    Raises what ``export_run`` and ``import_run`` raise.
    """
    run, target = Path(run), Path(target)
    _refuse_existing(target)
    with at_rest(run), _arriving(target) as folder:
        names = travelling_files(run)
        _need_room(folder, sum((run / name).lstat().st_size for name in names))
        for name in names:
            with _source(run, name) as (source, size), _new_file(folder / name) as out:
                _copy(source, out, size, run / name)
        check_content(folder, names, run)
        if check is not None:
            check(folder)


@contextmanager
def _source(run: Path, name: str) -> Iterator[tuple[IO[bytes], int]]:
    """A file of the run and its size, which is then kept to."""
    try:
        handle = os.open(run / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise _changing(run / name) from error
    except OSError as error:
        raise from_os_error(error, "reading the run", run / name) from error
    with open(handle, "rb") as file:
        status = os.fstat(handle)
        limit = limit_of(name)
        if not stat.S_ISREG(status.st_mode) or limit is None or status.st_size > limit:
            raise IntegrityError(
                "a file of the run is not what it should be", where=run / name,
                found=f"{status.st_size} bytes, at most {limit} are expected",
            )  # fmt: skip
        yield file, status.st_size


def _copy(source: IO[bytes], target: IO[bytes], size: int, where: Path) -> None:
    source.seek(0)
    while size:
        chunk = source.read(min(size, _CHUNK))
        if not chunk:
            raise _changing(where)
        target.write(chunk)
        size -= len(chunk)


def _changing(where: Path) -> IntegrityError:
    return IntegrityError("the run changed while it was read", where=where, fix="wait until nothing writes there")


def _compression(name: str, source: IO[bytes], size: int) -> int:
    """Deflate, unless the file is packed already or shrinks so well that an import would take it for a bomb."""
    if name.endswith(_PACKED) or size == 0:
        return zipfile.ZIP_STORED
    if size > RATIO_FREE:
        engine, packed = zlib.compressobj(6, zlib.DEFLATED, -15), 0
        while chunk := source.read(_CHUNK):
            packed += len(engine.compress(chunk))
        if size > MAX_RATIO // 2 * (packed + len(engine.flush())):
            return zipfile.ZIP_STORED
    return zipfile.ZIP_DEFLATED


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise UsageError("this place is taken", where=target, fix="choose another --out")


@contextmanager
def _arriving(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` that takes its name, durable, on a clean exit; it is gone after any other."""
    folder = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
        yield folder
        for place, _, _ in os.walk(folder, topdown=False):
            fsync_folder(Path(place))
        _refuse_existing(target)
        os.rename(folder, target)
        fsync_folder(target.parent)
    except OSError as error:
        raise from_os_error(error, "making the run directory", error.filename or target) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(handle, "wb") as file:
        yield file
        file.flush()
        os.fsync(handle)


def _need_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE:
        raise EnvironmentFault(
            f"the run needs {needed} bytes and there are {free} bytes free", where=folder.parent,
            fix="free some space, or choose another place",
        )  # fmt: skip
