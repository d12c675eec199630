"""Features of blocks on arrays: slower than the compiled code and everywhere to be had, with the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nx46vx.features.extractors import CHUNK, ArrayRegion, standardise
from nx46vx.features.pool import HALO
from nx46vx.features.smoothing import Smooth, Window, grown, relative, smooth

if TYPE_CHECKING:
    from nx46vx.features.reference import VolumeReference


class ArrayBlock:
    """See ``backend.BlockFeatures``. ``to`` puts the block's grey values where they are computed on; then all that is
    taken and given is there. ``chunk`` and ``how``: see ``ArrayRegion``."""

    def __init__(
        self, volume: np.ndarray, window: Window, reference: VolumeReference, names: Sequence[str], *,
        to: Callable[[np.ndarray], Any] = np.asarray, chunk: int = CHUNK, how: Smooth = smooth,
    ) -> None:  # fmt: skip
        self._wider = grown(window, volume.shape, 1)
        self._outer = grown(window, volume.shape, HALO)
        self._region = ArrayRegion(
            standardise(to(volume[self._outer]), reference), relative(self._wider, self._outer), reference, names,
            chunk, how,
        )  # fmt: skip
        #: How many voxels around a plane lie outside the volume.
        self._missing = [
            (1 - (a.start - b.start), 1 - (b.stop - a.stop)) for a, b in zip(window[1:], self._wider[1:], strict=True)
        ]

    def planes(self, start: int, stop: int) -> Iterator[Any]:
        first = self._wider[0].start
        for plane in self._region.planes(start - first, stop - first):
            yield np.pad(plane, [(0, 0), *self._missing], mode="edge")

    def points(self, z: Any, y: Any, x: Any) -> Any:
        return self._region.points(*(place - part.start for place, part in zip((z, y, x), self._outer, strict=True)))


class Arrays:
    """See ``backend.Backend``."""

    name = "arrays"

    def block(
        self, volume: np.ndarray, window: Window, reference: VolumeReference, names: Sequence[str], *, threads: int = 1
    ) -> ArrayBlock:
        return ArrayBlock(volume, window, reference, names)

    def slopes(self, before: Any, here: Any, after: Any) -> Any:
        along_z = after[:, 1:-1, 1:-1] - before[:, 1:-1, 1:-1]
        along_y = here[:, 2:, 1:-1] - here[:, :-2, 1:-1]
        along_x = here[:, 1:-1, 2:] - here[:, 1:-1, :-2]
        dz, dy, dx = (np.float32(0.5) * part for part in (along_z, along_y, along_x))
        return np.sqrt(dz * dz + dy * dy + dx * dx)

    def quadratic(self, before: Any, here: Any, after: Any, terms: np.ndarray, constant: float) -> Any:
        slopes, inside = self.slopes(before, here, after), here[:, 1:-1, 1:-1]
        total = np.full_like(inside[0], np.float32(constant))
        for row, slope, (shift, a, b, c) in zip(inside, slopes, terms, strict=True):
            s = row - shift
            total += (a * s + b) * s + c * slope
        return total
