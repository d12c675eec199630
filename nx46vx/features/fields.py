"""Smoothed volumes that features share: each is computed once, when first asked for.

Smoothing is a Gaussian cut off at three sigma; derivatives are central differences of the smoothed volume. Outside
the volume everything continues by reflection about the border (SciPy's ``reflect``: d c b a | a b c d | d c b a).
"""

from __future__ import annotations

from typing import Any, Literal

from nx46vx.features.array_namespace import namespace
from nx46vx.features.symmetric_eig import COMPONENTS

MODE: Literal["reflect"] = "reflect"
TRUNCATE = 3.0
#: Scale (sigma, voxels) of the gradient whose outer products make the structure tensor.
TENSOR_GRADIENT = 1


def radius(sigma: int) -> int:
    """Half width of the Gaussian's kernel, in voxels."""
    return int(TRUNCATE * sigma + 0.5)


def difference(array: Any, axis: int) -> Any:
    """Central difference along an axis, unit spacing; at the borders by reflection, (a[1] - a[0]) / 2."""
    xp, _ = namespace(array)
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
    """Shared intermediates of one region, each ``(z, y, x)`` float32."""

    def __init__(self, v: Any) -> None:
        self.v = v
        self.shape: tuple[int, int, int] = v.shape
        self._gauss: dict[int, Any] = {}
        self._tensor: dict[int, tuple[Any, ...]] = {}

    def gauss(self, sigma: int) -> Any:
        """The volume smoothed by a Gaussian."""
        if sigma not in self._gauss:
            self._gauss[sigma] = self._smooth(self.v, sigma)
        return self._gauss[sigma]

    def tensor(self, rho: int) -> tuple[Any, ...]:
        """Structure tensor: outer product of the gradient, smoothed over rho; components as in ``COMPONENTS``."""
        if rho not in self._tensor:
            gradient = [difference(self.gauss(TENSOR_GRADIENT), axis) for axis in range(3)]
            self._tensor[rho] = tuple(self._smooth(gradient[i] * gradient[j], rho) for i, j in COMPONENTS)
        return self._tensor[rho]

    def _smooth(self, array: Any, sigma: int) -> Any:
        _, ndimage = namespace(array)
        return ndimage.gaussian_filter(array, sigma, mode=MODE, truncate=TRUNCATE)
