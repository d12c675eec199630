"""Smoothed volumes that features share: each is computed once, when first asked for, by whatever thread.

Derivatives are central differences of the smoothed volume; outside the volume everything continues by reflection.
The Gaussians are added up in float64, of which their Laplacian is taken: in float32 little of it would be left.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from nx46vx.features.array_namespace import namespace
from nx46vx.features.smoothing import Smooth, Window, mirrored, smooth
from nx46vx.features.symmetric_eig import COMPONENTS

#: Scale (sigma, voxels) of the gradient whose outer products make the structure tensor.
TENSOR_GRADIENT = 1


def difference(array: Any, axis: int) -> Any:
    """Central difference along an axis, unit spacing; at the borders by reflection, (a[1] - a[0]) / 2."""
    xp = namespace(array)
    out = xp.empty_like(array)
    moved, result = xp.moveaxis(array, axis, 0), xp.moveaxis(out, axis, 0)
    if moved.shape[0] == 1:
        result[...] = 0
        return out
    xp.subtract(moved[2:], moved[:-2], out=result[1:-1])
    xp.subtract(moved[1], moved[0], out=result[0])
    xp.subtract(moved[-1], moved[-2], out=result[-1])
    out *= 0.5
    return out


class Fields:
    """Shared intermediates of a region ``v`` (z, y, x: float32, standardised), each float32.

    ``core`` is the part of the region whose features are wanted; what no feature needs elsewhere is computed there
    only. ``gauss`` has the region's shape, ``log`` and ``tensor`` have the core's. ``how``: what smooths.
    """

    def __init__(self, v: Any, core: Window | None = None, how: Smooth = smooth) -> None:
        self.v, self._smooth = v, how
        self.shape: tuple[int, int, int] = v.shape
        whole = (slice(0, v.shape[0]), slice(0, v.shape[1]), slice(0, v.shape[2]))
        self.whole, self.core = whole, whole if core is None else core
        self._lock = threading.RLock()
        self._gauss: dict[int, Any] = {}
        self._log: dict[int, Any] = {}
        self._tensor: dict[int, tuple[Any, ...]] = {}

    def gauss(self, sigma: int) -> Any:
        """The region smoothed by a Gaussian."""
        with self._lock:
            if sigma not in self._gauss:
                wide = self._smooth(self.v, sigma, self.whole, np.float64)
                self._log[sigma] = self._laplacian(wide, sigma)
                self._gauss[sigma] = wide.astype(np.float32)
            return self._gauss[sigma]

    def log(self, sigma: int) -> Any:
        """sigma^2 times the sum of the Gaussian's three second differences, at a distance of min(sigma, 2) voxels."""
        self.gauss(sigma)
        return self._log[sigma]

    def tensor(self, rho: int) -> tuple[Any, ...]:
        """Structure tensor: outer product of the gradient, smoothed over rho; components as in ``COMPONENTS``."""
        with self._lock:
            if rho not in self._tensor:
                gradient = [difference(self.gauss(TENSOR_GRADIENT), axis) for axis in range(3)]
                self._tensor[rho] = tuple(
                    self._smooth(gradient[i] * gradient[j], rho, self.core, np.float32) for i, j in COMPONENTS
                )
            return self._tensor[rho]

    def _laplacian(self, wide: Any, sigma: int) -> Any:
        step = min(sigma, 2)
        total = -6.0 * wide[self.core]
        for axis in range(3):
            total += self._beside(wide, axis, step) + self._beside(wide, axis, -step)
        total *= sigma * sigma / (step * step)
        return total.astype(np.float32)

    def _beside(self, wide: Any, axis: int, step: int) -> Any:
        xp = namespace(wide)
        part = self.core[axis]
        places = mirrored(np.arange(part.start + step, part.stop + step), self.shape[axis])
        rest = list(self.core)
        rest[axis] = slice(None)
        return xp.take(wide[tuple(rest)], xp.asarray(places), axis=axis)
