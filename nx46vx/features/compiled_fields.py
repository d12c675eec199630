"""The smoothed fields of a region, by compiled passes along its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nx46vx.features import kernels
from nx46vx.features.extractors import standardise
from nx46vx.features.fields import TENSOR_GRADIENT
from nx46vx.features.kernels import address_of
from nx46vx.features.kernels_voxels import REACH, Field
from nx46vx.features.smoothing import Window, half_kernel, mirrored, radius
from nx46vx.features.spread import spread
from nx46vx.features.symmetric_eig import COMPONENTS

if TYPE_CHECKING:
    from nx46vx.features.reference import VolumeReference

_ROWS = 8  # rows smoothed along z in one call
_LINE = 64  # bytes of a cache line
_TURN = 5 * _LINE
_PRODUCTS = 1 << 16  # products held at a time: they stay in the processor's cache


class CompiledFields:
    """The ``wanted`` fields of a ``core`` of a volume.

    A field is an array (z, y, x) that reaches some voxels beyond the core on every side, mirrored outside the volume.
    """

    def __init__(
        self, volume: np.ndarray, core: Window, reference: VolumeReference, wanted: Sequence[Field], threads: int
    ) -> None:
        self._core, self._threads = core, threads
        self._edges = tuple(part.stop - part.start for part in core)
        self._arrays: dict[Field, np.ndarray] = {}
        self._margins: dict[Field, int] = {}
        rhos = sorted({field.scale for field in wanted if field.kind == "tensor"})
        logs = {field.scale for field in wanted if field.kind == "log"}
        margins = {field.scale: REACH for field in wanted if field.kind != "tensor"}
        if rhos:
            margins[TENSOR_GRADIENT] = max(radius(rhos[-1]) + 1, REACH)
        reach = max(margin + radius(sigma) for sigma, margin in margins.items())
        v = _mirrored_region(volume, core, reach, reference, threads)
        for sigma, margin in margins.items():
            self._smooth(v, reach, sigma, margin, sigma in logs)
        del v
        if rhos:
            self._tensors(volume.shape, rhos)

    def addresses(self, fields: Sequence[Field], z: int) -> list[int]:
        """Where each field's value at the first voxel of a plane of the core lies."""
        found = []
        for field in fields:
            array, margin = self._arrays[field], self._margins.get(field, 0)
            found.append(address_of(array[margin + z, margin:, margin:]))
        return found

    def strides(self, layouts: Sequence[tuple[str, int]]) -> list[int]:
        """Bytes from plane to plane and from row to row of each layout."""
        of = {field.layout: array.strides for field, array in self._arrays.items()}
        return [step for layout in layouts for step in of[layout][:2]]

    def _smooth(self, v: np.ndarray, reach: int, sigma: int, margin: int, log: bool) -> None:
        """A Gaussian, in float64 until the end, and its Laplacian if wanted."""
        weights, r = half_kernel(sigma, np.float64), radius(sigma)
        skip = reach - margin - r
        inner = v[skip : v.shape[0] - skip, skip : v.shape[1] - skip, skip : v.shape[2] - skip]
        planes, height, width = (edge + 2 * margin for edge in self._edges)
        tall = _spaced((planes, inner.shape[1], inner.shape[2]), np.float64)
        sums, out = kernels.weighted_sum(True), self._new((planes, height, width))

        def along_z(first: int, last: int) -> None:
            source, target = inner[r:, first:last].swapaxes(0, 1), tall[:, first:last].swapaxes(0, 1)
            kernels.run_sums(sums, source, inner.strides[0], weights, target)

        def along_y_and_x(first: int, last: int) -> None:
            rows = np.empty((1, height, inner.shape[2]), np.float64)
            for z in range(first, last):
                kernels.run_sums(sums, tall[z : z + 1, r:], tall.strides[1], weights, rows)
                smoothed = _packed(tall[z], height, width)
                kernels.run_sums(sums, rows[:, :, r:], 8, weights, smoothed)
                kernels.run(kernels.rounded(), [smoothed, out[z : z + 1]], (1, height, width))

        self._share(along_z, inner.shape[1], _ROWS)
        self._share(along_y_and_x, planes, 1)
        self._arrays[Field("gauss", sigma)], self._margins[Field("gauss", sigma)] = out, margin
        if log:
            wide = np.lib.stride_tricks.as_strided(
                tall, (planes, height, width), (tall.strides[0], 8 * width, 8), writeable=False
            )
            self._laplacian(wide, sigma, margin)

    def _laplacian(self, wide: np.ndarray, sigma: int, margin: int) -> None:
        step, (planes, height, width) = min(sigma, 2), self._edges
        out = self._new(self._edges)
        kernel = kernels.laplacian(sigma * sigma / (step * step))

        def some(first: int, last: int) -> None:
            def at(z: int, y: int, x: int) -> np.ndarray:
                return wide[margin + first + z : margin + last + z, margin + y :, margin + x :]

            around = [at(*(sign * step * (k == axis) for k in range(3))) for axis in range(3) for sign in (1, -1)]
            kernels.run(kernel, [at(0, 0, 0), *around, out[first:last]], (last - first, height, width))

        self._share(some, planes, 1)
        self._arrays[Field("log", sigma)] = out

    def _tensors(self, shape: tuple[int, ...], rhos: list[int]) -> None:
        reach = radius(rhos[-1])
        gradient = self._gradient(shape, reach)
        for part, (i, j) in enumerate(COMPONENTS):
            self._tensor(gradient[i], gradient[j], reach, part, rhos)

    def _gradient(self, shape: tuple[int, ...], reach: int) -> list[np.ndarray]:
        """Central differences of the gradient's Gaussian, reaching that far beyond the core.

        Beyond the volume's border a mirrored difference has the other sign; smoothing wants it mirrored as it is.
        """
        gauss = self._arrays[Field("gauss", TENSOR_GRADIENT)]
        more = self._margins[Field("gauss", TENSOR_GRADIENT)] - reach
        edges = tuple(edge + 2 * reach for edge in self._edges)
        found = [np.empty(edges, np.float32) for _ in range(3)]
        kernel = kernels.half_difference()

        def some(first: int, last: int) -> None:
            def at(axis: int, step: int) -> np.ndarray:
                z, y, x = (more + step * (k == axis) for k in range(3))
                return gauss[z + first : z + last, y:, x:]

            for axis, out in enumerate(found):
                kernels.run(
                    kernel, [at(axis, 1), at(axis, -1), out[first:last]], (last - first, edges[1], edges[2])
                )  # fmt: skip

        self._share(some, edges[0], 2)
        for axis, (array, part, length) in enumerate(zip(found, self._core, shape, strict=True)):
            places = np.arange(part.start - reach, part.stop + reach) % (2 * length)
            for place in np.flatnonzero(places >= length).tolist():
                array[(slice(None),) * axis + (slice(place, place + 1),)] *= np.float32(-1)
        return found

    def _tensor(self, a: np.ndarray, b: np.ndarray, reach: int, part: int, rhos: list[int]) -> None:
        """One component of the structure tensors: a product, smoothed over each rho."""
        sums, planes = kernels.weighted_sum(False), self._edges[0]
        weights = {rho: half_kernel(rho, np.float32) for rho in rhos}
        tall = {
            rho: np.empty((planes, *(edge + 2 * radius(rho) for edge in self._edges[1:])), np.float32) for rho in rhos
        }

        def along_z(first: int, last: int) -> None:
            products = np.empty((last - first, *a.shape[::2]), np.float32)
            both = [factor[:, first:last].swapaxes(0, 1) for factor in (a, b)]
            kernels.run(kernels.product(), [*both, products], products.shape)
            for rho in rhos:
                skip = reach - radius(rho)
                low, high = max(first, skip), min(last, a.shape[1] - skip)
                if low < high:
                    source = products[low - first : high - first, reach:, skip:]
                    target = tall[rho][:, low - skip : high - skip].swapaxes(0, 1)
                    kernels.run_sums(sums, source, products.strides[1], weights[rho], target)

        self._share(along_z, a.shape[1], max(1, _PRODUCTS // (a.shape[0] * a.shape[2])))
        for rho in rhos:
            out = self._new(self._edges)
            self._arrays[Field("tensor", rho, part)] = out
            self._along_y_and_x(tall.pop(rho), weights[rho], out)

    def _along_y_and_x(self, tall: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
        sums, r = kernels.weighted_sum(False), len(weights) - 1

        def some(first: int, last: int) -> None:
            rows = np.empty((1, out.shape[1], tall.shape[2]), np.float32)
            for z in range(first, last):
                kernels.run_sums(sums, tall[z : z + 1, r:], tall.strides[1], weights, rows)
                kernels.run_sums(sums, rows[:, :, r:], 4, weights, out[z : z + 1])

        self._share(some, len(out), 2)

    def _new(self, shape: tuple[int, ...]) -> np.ndarray:
        """Memory of a field, which begins on another cache line than the other fields'."""
        return _spaced(shape, np.float32, len(self._arrays))

    def _share(self, work: Callable[[int, int], None], total: int, step: int) -> None:
        spread(work, total, self._threads, step)


def _mirrored_region(
    volume: np.ndarray, core: Window, reach: int, reference: VolumeReference, threads: int
) -> np.ndarray:
    """A core and what lies around it, standardised, float64; mirrored outside the volume."""
    region = volume
    for axis, (part, length) in enumerate(zip(core, volume.shape, strict=True)):
        places = mirrored(np.arange(part.start - reach, part.stop + reach), length)
        low, high = int(places.min()), int(places.max()) + 1
        region = region[(slice(None),) * axis + (slice(low, high),)]
        if len(places) != high - low or places[0] != low:
            region = np.take(region, places - low, axis=axis)
    out = _spaced(region.shape, np.float64)

    def some(first: int, last: int) -> None:
        for z in range(first, last):
            out[z] = standardise(region[z], reference)

    spread(some, len(out), threads, 4)
    return out


def _spaced(shape: tuple[int, ...], dtype: type, turn: int = 0) -> np.ndarray:
    """An array (z, y, x) whose planes are an odd number of cache lines apart: voxels above each other, which the
    filters read together, would else share a few places in the processor's cache. ``turn`` shifts its beginning."""
    item = np.dtype(dtype).itemsize
    lines = -(-shape[1] * shape[2] * item // _LINE) | 1
    begin = turn * _TURN % (64 * _LINE)
    memory = np.empty(begin + shape[0] * lines * _LINE, np.uint8)
    return np.ndarray(shape, dtype, memory, begin, (lines * _LINE, shape[2] * item, item))


def _packed(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    """The beginning of a plane's memory as a smaller plane, (1, height, width)."""
    return plane.reshape(-1)[: height * width].reshape(1, height, width)
