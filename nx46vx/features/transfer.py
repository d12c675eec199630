"""Entries of one machine's cache brought to another's: the same bytes, whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from nx46vx.errors import IntegrityError, from_os_error
from nx46vx.features.build import entry_path
from nx46vx.features.entry import ARRAYS, MANIFEST, entry_problem, open_entry, remove_leftovers, verify_entry
from nx46vx.features.lock import held
from nx46vx.runtime.atomic import fsync_folder

#: Files of an entry.
NAMES = (*(f"{name}.npy" for name in ARRAYS), MANIFEST)
#: Bytes that travel at a time.
PART_BYTES = 32 << 20

#: File name, offset and length to bytes.
Read = Callable[[str, int, int], bytes]


def sizes_of(root: Path, key: str) -> dict[str, int]:
    """Bytes of each file of an entry.

    Raises:
        IntegrityError: it is not in this cache, or is damaged.
    """
    path = entry_path(root, key)
    open_entry(path, "")
    return {name: (path / name).stat().st_size for name in NAMES}


def read_part(root: Path, key: str, name: str, offset: int, size: int) -> bytes:
    """Some bytes of a file of an entry."""
    if name not in NAMES:
        raise IntegrityError("no file of an entry", found=name[:80])
    with open(entry_path(root, key) / name, "rb") as file:
        file.seek(offset)
        return file.read(size)


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
            expected = sizes()
            for name in NAMES:
                _write(temporary / name, expected[name], partial(read, name))
            verify_entry(temporary)
            fsync_folder(temporary)
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
