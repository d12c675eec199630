"""Maps ``.npy`` files read-only. Thousands of them are opened at a start, so equal headers are parsed once."""

from __future__ import annotations

import functools
import hashlib
import io
import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

_HEAD = 128  # bytes: the whole header of an array of few dimensions


class Layout(NamedTuple):
    """What an ``.npy`` header says; the values begin at ``offset`` bytes, in C order."""

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return self.offset + self.dtype.itemsize * math.prod(self.shape)


def read_layout(path: Path) -> tuple[Layout, int]:
    """An array's layout, and the file's size.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no ``.npy`` file of plain numbers in C order.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        head = os.read(handle, _HEAD)
        wanted = 10 + int.from_bytes(head[8:10], "little")
        if len(head) == _HEAD < wanted:
            head += os.read(handle, wanted - _HEAD)
        return _parsed(head[:wanted]), os.fstat(handle).st_size
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    finally:
        os.close(handle)


def map_array(path: Path, layout: Layout) -> np.memmap:
    """The array, mapped read-only."""
    return np.memmap(path, dtype=layout.dtype, mode="r", offset=layout.offset, shape=layout.shape)


def npy_digest(array: np.ndarray) -> tuple[int, str]:
    """Size and SHA-512 (hex) of the file that ``np.save`` would write of an array in C order."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(array))
    state = hashlib.sha512(head.getvalue())
    state.update(array.data.cast("B"))
    return len(head.getvalue()) + array.nbytes, state.hexdigest()


@functools.lru_cache(maxsize=1024)
def _parsed(head: bytes) -> Layout:
    file = io.BytesIO(head)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("another version of the .npy format")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran or dtype.hasobject:
        raise ValueError("an array that cannot be mapped")
    return Layout(shape, dtype, len(head))
