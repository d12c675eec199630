"""Features of blocks through compiled code: the same bits as on arrays, many times faster.

A region around the block is mirrored beyond the volume's borders as far as the filters look, so that every pass only
has to go along rows. Fields are smoothed once and shared by all features; each pass is shared by the threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nx46vx.features import kernels
from nx46vx.features.arrays import ArrayBlock, Arrays
from nx46vx.features.compiled_fields import CompiledFields
from nx46vx.features.extractors import specs_of
from nx46vx.features.jit import host
from nx46vx.features.kernels import address_of
from nx46vx.features.kernels_voxels import Voxels, voxels
from nx46vx.features.smoothing import Window, grown
from nx46vx.features.spread import spread

if TYPE_CHECKING:
    from nx46vx.features.reference import VolumeReference

_POINTS = 8192  # voxels looked at in one call


class Compiled:
    """See ``backend.Backend``. Narrow blocks, which do not fill a vector, are left to the arrays."""

    name = "compiled"

    def block(
        self, volume: np.ndarray, window: Window, reference: VolumeReference, names: Sequence[str], *, threads: int = 1
    ) -> CompiledBlock | ArrayBlock:
        wider = grown(window, volume.shape, 1)
        if wider[2].stop - wider[2].start < host().width:
            return ArrayBlock(volume, window, reference, names)
        return CompiledBlock(volume, window, wider, reference, names, threads)

    def slopes(self, before: np.ndarray, here: np.ndarray, after: np.ndarray) -> np.ndarray:
        count, ny, nx = here.shape[0], here.shape[1] - 2, here.shape[2] - 2
        if nx < host().width:
            return np.asarray(Arrays().slopes(before, here, after))
        out = np.empty((count, ny, nx), np.float32)
        inputs = [
            after[:, 1:, 1:], before[:, 1:, 1:], here[:, 2:, 1:], here[:, :, 1:], here[:, 1:, 2:], here[:, 1:],
        ]  # fmt: skip
        arrays = [*inputs, out]
        kernels.slope()([address_of(array) for array in arrays], [count, ny, nx, *_steps(arrays)])
        return out

    def quadratic(
        self, before: np.ndarray, here: np.ndarray, after: np.ndarray, terms: np.ndarray, constant: float
    ) -> np.ndarray:
        ny, nx = here.shape[1] - 2, here.shape[2] - 2
        if nx < host().width:
            return np.asarray(Arrays().quadratic(before, here, after, terms, constant))
        out = np.empty((ny, nx), np.float32)
        planes = [plane[:, 1:, 1:] for plane in (here, before, after)]
        if len({plane.strides for plane in planes}) != 1:
            raise ValueError("the planes lie differently in memory")
        kernels.quadratic(len(here))(
            [*(address_of(plane) for plane in planes), address_of(out)],
            [ny, nx, here.strides[1], here.strides[0], out.strides[0]], [constant, *terms.ravel().tolist()],
        )  # fmt: skip
        return out


class CompiledBlock:
    """See ``backend.BlockFeatures``. ``wider`` is the block grown by one voxel within the volume."""

    def __init__(
        self, volume: np.ndarray, window: Window, wider: Window, reference: VolumeReference, names: Sequence[str],
        threads: int,
    ) -> None:  # fmt: skip
        specs_of(names)
        self._names, self._reference, self._threads = tuple(names), reference, threads
        self._window, self._core = window, wider
        self._fields = CompiledFields(volume, wider, reference, self._kernel(points=False).fields, threads)

    def planes(self, start: int, stop: int) -> Iterator[np.ndarray]:
        kernel = self._kernel(points=False)
        (_, wy, wx), (cz, cy, cx) = self._window, self._core
        shape = len(self._names), wy.stop - wy.start + 2, wx.stop - wx.start + 2
        top, left = 1 - (wy.start - cy.start), 1 - (wx.start - cx.start)
        height, width = cy.stop - cy.start, cx.stop - cx.start
        for z in range(start, stop):
            out = np.empty(shape, np.float32)
            kernel.kernel(
                [*self._fields.addresses(kernel.fields, z - cz.start), address_of(out[:, top:, left:])],
                [height, width, *out.strides[:2], *self._fields.strides(kernel.layouts)],
                self._reference.direction,
            )
            _repeat_edges(out, top, top + height, left, left + width)
            yield out

    def points(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        kernel, count = self._kernel(points=True), len(z)
        padded = max(count, host().width)
        places = np.empty((3, padded), np.int64)
        for row, axis, part in zip(places, (z, y, x), self._core, strict=True):
            row[:count] = axis - part.start
            row[count:] = row[0]
        out = np.empty((len(self._names), padded), np.float32)
        addresses, strides = self._fields.addresses(kernel.fields, 0), self._fields.strides(kernel.layouts)

        def some(first: int, last: int) -> None:
            first = max(0, min(first, last - host().width))
            kernel.kernel(
                [*addresses, address_of(out[:, first:]), *(address_of(row[first:]) for row in places)],
                [1, last - first, out.strides[0], 0, *strides], self._reference.direction,
            )  # fmt: skip

        spread(some, padded, self._threads, _POINTS)
        return out[:, :count]

    def _kernel(self, *, points: bool) -> Voxels:
        return voxels(self._names, self._reference.sign_skew, points)


def _repeat_edges(planes: np.ndarray, top: int, bottom: int, left: int, right: int) -> None:
    """Fill what lies around the computed part of planes (F, y, x) with its nearest values."""
    if left:
        planes[:, top:bottom, 0] = planes[:, top:bottom, 1]
    if right < planes.shape[2]:
        planes[:, top:bottom, right] = planes[:, top:bottom, right - 1]
    if top:
        planes[:, 0] = planes[:, 1]
    if bottom < planes.shape[1]:
        planes[:, bottom] = planes[:, bottom - 1]


def _steps(arrays: Sequence[np.ndarray]) -> list[Any]:
    """Slice to slice and row to row of three-dimensional arrays."""
    return [step for array in arrays for step in array.strides[:2]]
