"""Entries of one machine's cache brought to another's: the same bytes, whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from nx46vx.errors import IntegrityError, from_os_error
from nx46vx.features.entry import MANIFEST, entry_path, entry_problem, open_entry, remove_leftovers, verify_entry
from nx46vx.features.lock import held
from nx46vx.runtime.atomic import fsync_folder

#: Names of an entry's files, below its folder.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*){0,3}")
#: Bytes that travel at a time.
PART_BYTES = 32 << 20

#: File name, offset and length to bytes.
Read = Callable[[str, int, int], bytes]


def sizes_of(root: Path, key: str) -> dict[str, int]:
    """Bytes of each file of an entry, however it keeps its features; the manifest comes last.

    Raises:
        IntegrityError: it is not in this cache, or is damaged.
    """
    path = entry_path(root, key)
    open_entry(path, "")
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    return {name: (path / name).stat().st_size for name in sorted(files, key=lambda name: name == MANIFEST)}


def read_part(root: Path, key: str, name: str, offset: int, size: int) -> bytes:
    """Some bytes of a file of an entry."""
    with open(entry_path(root, key) / _checked(name), "rb") as file:
        file.seek(offset)
        return file.read(size)


def _checked(name: str) -> str:
    """A name that leads out of no folder."""
    if not _NAME.fullmatch(name):
        raise IntegrityError("no file of an entry", found=name[:80])
    return name


def receive(root: Path, key: str, sizes: Callable[[], Mapping[str, int]], read: Read) -> bool:
    """Bring an entry into the cache at ``root`` unless it is there; whether it was brought.

    Whoever comes while another process brings the same entry waits for it and brings nothing.

    Raises:
        IntegrityError: what came is not what its manifest says.
        EnvironmentFault: the cache cannot be written to.
    """
    path = entry_path(root, key)
    if entry_problem(path) is None:
        return False
    with held(root / "locks" / f"{key}.lock"):
        if entry_problem(path) is None:
            return False
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            remove_leftovers(path)
            temporary.mkdir(parents=True)
            for name, size in sizes().items():
                file = temporary / _checked(name)
                file.parent.mkdir(parents=True, exist_ok=True)
                _write(file, size, partial(read, name))
            verify_entry(temporary)
            for folder in (*(path for path in temporary.rglob("*") if path.is_dir()), temporary):
                fsync_folder(folder)
            if path.exists():  # damaged: readers keep what they have mapped
                os.rename(path, path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"))
            os.rename(temporary, path)
            fsync_folder(path.parent)
            remove_leftovers(path)
        except OSError as error:
            raise from_os_error(error, "receiving an entry of the feature cache", path) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return True


def _write(path: Path, size: int, read: Callable[[int, int], bytes]) -> None:
    with open(path, "xb") as file:
        at = 0
        while at < size:
            part = read(at, min(PART_BYTES, size - at))
            if not part:
                raise IntegrityError("an entry ends before its end", where=path, found=f"{at} of {size} bytes")
            file.write(part)
            at += len(part)
        file.flush()
        os.fsync(file.fileno())
