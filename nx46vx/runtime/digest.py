"""SHA-512 of files, of JSON-able values and of arrays: the one place that decides how a thing is named by content."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import orjson

_CHUNK = 4 << 20


def canonical_json(value: Any) -> bytes:
    """Bytes that are equal exactly when the values are: sorted keys, no white space, shortest floats."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY)


def digest_json(value: Any) -> str:
    """SHA-512 (hex) of the canonical JSON of a value."""
    return hashlib.sha512(canonical_json(value)).hexdigest()


def digest_bytes(data: bytes | memoryview) -> str:
    return hashlib.sha512(data).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-512 (hex) of a file's bytes, read in chunks of 4 MiB. ``OSError`` for what is no regular file."""
    state = hashlib.sha512()
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would be waited for
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with open(handle, "rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest()


def digest_array(array: np.ndarray) -> str:
    """SHA-512 (hex) over dtype, shape and bytes of an array."""
    data = np.ascontiguousarray(array)
    state = hashlib.sha512(f"{data.dtype.str}{data.shape}".encode())
    state.update(data.data.cast("B") if data.size else b"")
    return state.hexdigest()
