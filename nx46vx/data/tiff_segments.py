"""Where the strips and tiles of a TIFF lie: each in the file, none in another, as many bytes as they have to be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tifffile

from nx46vx.errors import DataError

DAMAGED = "download the file again, or leave the case out (config `data.skip_cases`)"
MAX_SEGMENTS = 1 << 22  #: strips and tiles of all pages together
MAX_TILE_BYTES = 16 << 20  #: a tile may be larger than its page, up to here


class Segments:
    """Collects the strips and tiles of a file of ``size`` bytes, page by page.

    ``map_offset``: where the volume starts, as long as all of it is one raw run; ``decoded_bytes``: what the tiles
    unfold to, margins included.
    """

    def __init__(self, size: int, where: object) -> None:
        self.map_offset: int | None = None
        self.decoded_bytes = 0
        self._size, self._where = size, where
        self._starts: list[np.ndarray] = []
        self._ends: list[np.ndarray] = []
        self._count = 0

    def add(self, page: tifffile.TiffPage, index: int, raw_bytes: int) -> None:
        """Take the strips or tiles of page ``index``, which holds ``raw_bytes`` voxels.

        Raises:
            DataError: their number is wrong, one is empty or not in the file, or raw ones have another size.
        """
        offsets, counts = _numbers(page.dataoffsets), _numbers(page.databytecounts)
        expected = math.prod(page.chunked)
        if offsets is None or counts is None:
            raise self._error("the TIFF's headers are not usable", f"offsets of page {index} that are no numbers")
        if not len(offsets) == len(counts) == expected:
            found = f"{len(offsets)} strips or tiles on page {index} instead of {expected}"
            raise self._error("the TIFF's headers are not usable", found)
        self._count += expected
        if self._count > min(MAX_SEGMENTS, self._size):
            raise self._error("the TIFF's headers are not usable", f"{self._count} strips or tiles by page {index}")
        outside = (offsets < 8) | (counts == 0) | (offsets >= self._size)
        outside |= counts > np.uint64(self._size) - np.minimum(offsets, np.uint64(self._size))
        if outside.any():
            at = int(outside.argmax())
            found = f"page {index} has {counts[at]} bytes at {offsets[at]}, the file ends at {self._size}"
            raise self._error("the TIFF is truncated", found)
        start = self._check_raw(page, index, offsets, counts, raw_bytes) if page.compression == 1 else None
        if page.is_tiled:
            self._check_tiles(page, index, expected)
        if index == 0:
            self.map_offset = start
        elif self.map_offset is not None and start != self.map_offset + index * raw_bytes:
            self.map_offset = None
        self._starts.append(offsets)
        self._ends.append(offsets + counts)

    def check_overlap(self) -> None:
        """Raise a ``DataError`` where two strips or tiles share bytes: so a few bytes could claim to be a volume."""
        starts, ends = np.concatenate(self._starts), np.concatenate(self._ends)
        order = np.argsort(starts)
        shared = ends[order[:-1]] > starts[order[1:]]
        if shared.any():
            found = f"two of them at byte {starts[order[1:]][shared.argmax()]}"
            raise self._error("strips or tiles of the TIFF lie in one another", found)

    def _check_raw(
        self, page: tifffile.TiffPage, index: int, offsets: np.ndarray, counts: np.ndarray, raw_bytes: int
    ) -> int | None:
        """Check the size of uncompressed data; return its start when it is one raw run."""
        needed = math.prod(page.chunked) * math.prod(page.chunks) if page.is_tiled else raw_bytes
        if not page.is_tiled and page.imagedepth == 1 and raw_bytes > page.nbytes:
            counts[-1] += np.uint64(raw_bytes - page.nbytes)  # slices behind one page: only the first has a header
        held = int(counts.sum())
        if held != needed or int(offsets[-1] + counts[-1]) > self._size:
            found = f"page {index} holds {min(held, self._size - int(offsets[0]))} bytes instead of {needed}"
            raise self._error("the TIFF is truncated" if held <= needed else "the TIFF's headers are not usable", found)
        if (
            page.is_tiled
            or page.predictor != 1
            or page.fillorder != 1
            or (offsets[1:] != (offsets + counts)[:-1]).any()
        ):
            return None
        return int(offsets[0])

    def _check_tiles(self, page: tifffile.TiffPage, index: int, tiles: int) -> None:
        tile = math.prod(page.chunks)
        self.decoded_bytes += tiles * tile
        if tile > max(MAX_TILE_BYTES, 4 * page.nbytes):
            found = f"tiles of shape {tuple(page.chunks)} on page {index} of shape {page.shape}"
            raise self._error("the TIFF claims impossible dimensions", found)

    def _error(self, what: str, found: str) -> DataError:
        return DataError(what, where=self._where, found=found, fix=DAMAGED)


def _numbers(values: Sequence[Any]) -> np.ndarray | None:
    """Offsets or counts as a new unsigned array; None where they are no whole numbers."""
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iu" or (array.size and array.min() < 0):
        return None
    return array.astype(np.uint64)
