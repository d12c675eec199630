"""Features kept compressed in chunks of samples, for datasets beyond disk or memory: a Zarr array (format 3).

Zarr writes it, and any Zarr reads it. Here chunks are decoded one by one where they are wanted, without Zarr's event
loop, which costs several times as much as decoding does.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from nx46vx.errors import EnvironmentFault
from nx46vx.runtime.atomic import fsync_folder

#: Samples of a chunk; the fit's chunks are about four times as long.
SAMPLES = 4096
_CODECS = ["bytes", "blosc"]


class ChunkedArray:
    """An array ``(rows, samples)`` in a folder; indexing decodes what is asked for, ``np.asarray`` all of it.

    Indices are two: rows (slice or integers), samples (a slice).
    """

    def __init__(self, folder: Path, shape: tuple[int, int], dtype: np.dtype) -> None:
        self.folder, self.shape, self.dtype = folder, shape, dtype
        self.ndim, self.size = 2, shape[0] * shape[1]
        self.nbytes = self.size * dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, place: tuple[Any, slice]) -> np.ndarray:
        rows, columns = place
        start, stop, step = columns.indices(self.shape[1])
        if step < 1:
            raise IndexError("samples can be read forwards only")
        out = np.empty((*np.arange(self.shape[0])[rows].shape, len(range(start, stop, step))), self.dtype)
        done = 0
        for number in range(start // SAMPLES, -(-stop // SAMPLES)):
            first = number * SAMPLES
            begin = start if start >= first else start + -(-(first - start) // step) * step
            here = range(begin, min(stop, first + SAMPLES), step)
            if len(here):
                chunk = self._chunk(number)
                out[..., done : done + len(here)] = chunk[rows, here.start - first : here.stop - first : step]
                done += len(here)
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = self[:, :]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def _chunk(self, number: int) -> np.ndarray:
        """A whole chunk, ``(rows, SAMPLES)``."""
        encoded = (self.folder / _part(number)).read_bytes()
        values = _blosc().decode(encoded)
        return np.frombuffer(values, self.dtype).reshape(self.shape[0], SAMPLES)


def write_chunked(folder: Path, array: np.ndarray) -> list[str]:
    """Write ``(rows, samples)`` to a new folder, durably; returns the names of its files.

    Raises:
        EnvironmentFault: Zarr is not installed.
    """
    try:
        import zarr
        from zarr.codecs import BloscCodec
    except ImportError as error:
        raise _absent() from error
    target = zarr.create_array(
        str(folder), shape=array.shape, chunks=(array.shape[0], SAMPLES), dtype=array.dtype, fill_value=0,
        compressors=BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"), config={"write_empty_chunks": True},
    )  # fmt: skip
    target[:] = array
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in found:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    for path in (folder / "c/0", folder / "c", folder):
        fsync_folder(path)
    return [str(path.relative_to(folder)) for path in found]


def examine_chunked(folder: Path, parts: dict[str, int]) -> tuple[tuple[int, int], np.dtype]:
    """Shape and kind of an array, judged by its description and the sizes of its ``parts``; reads no values.

    Raises:
        OSError, KeyError, TypeError, ValueError: something does not fit.
    """
    about = orjson.loads((folder / "zarr.json").read_bytes())
    rows, samples = (int(edge) for edge in about["shape"])
    grid = about["chunk_grid"]["configuration"]["chunk_shape"]
    if list(grid) != [rows, SAMPLES] or [codec["name"] for codec in about["codecs"]] != _CODECS:
        raise ValueError(f"{folder.name} is laid out in another way")
    wanted = {_part(number) for number in range(-(-samples // SAMPLES))} | {"zarr.json"}
    if wanted != parts.keys():
        raise ValueError(f"{folder.name} lacks chunks")
    for name, size in parts.items():
        found = (folder / name).stat().st_size
        if found != size:
            raise ValueError(f"{folder.name}/{name} has {found} bytes instead of {size}")
    return (rows, samples), np.dtype(about["data_type"])


def _part(number: int) -> str:
    return f"c/0/{number}"


def _blosc() -> Any:
    try:
        from numcodecs import Blosc
    except ImportError as error:
        raise _absent() from error
    return Blosc()


def _absent() -> EnvironmentFault:
    return EnvironmentFault(
        "compressed features need Zarr, which is not installed", where="features.store: zarr",
        fix="pip install 'nx46vx[zarr]', or set features.store to npy",
    )  # fmt: skip
