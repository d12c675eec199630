"""The feature pool on arrays: dense over a box, or at single voxels only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from nx46vx.errors import UsageError
from nx46vx.features.array_namespace import namespace
from nx46vx.features.fields import Fields, difference
from nx46vx.features.pool import NORMAL_SCALE, PLANARITY_EPSILON, FeatureSpec, feature_names, spec_of
from nx46vx.features.reference import VolumeReference
from nx46vx.features.symmetric_eig import Eigenvalues, eigenvalues, principal_eigenvector
from nx46vx.features.views import PointView, View, Window, WindowView

_CHUNK = 32_768  # voxels whose pointwise arithmetic is done at a time: its temporaries stay in the processor's cache


class Evaluator:
    """Pointwise part of the features at the voxels of one view; what several features need is computed once."""

    def __init__(self, fields: Fields, view: View, direction: Sequence[float]) -> None:
        self._fields, self._view, self._direction = fields, view, direction
        self._gradients: dict[int, tuple[Any, Any, Any]] = {}
        self._eigen: dict[int, tuple[tuple[Any, ...], Eigenvalues]] = {}
        self._along: dict[int, Any] = {}
        self._displaced: dict[tuple[int, int], Any] = {}
        self._normal: tuple[Any, Any, Any] | None = None

    def gauss(self, sigma: int) -> Any:
        return self._view.at(self._fields.gauss(sigma))

    def gradient(self, sigma: int) -> tuple[Any, Any, Any]:
        """Central differences of G(sigma): three float32 arrays."""
        if sigma not in self._gradients:
            smooth, beside = self._fields.gauss(sigma), self._view.beside
            z, y, x = (np.float32(0.5) * (beside(smooth, axis, 1) - beside(smooth, axis, -1)) for axis in range(3))
            self._gradients[sigma] = z, y, x
        return self._gradients[sigma]

    def gradient_length(self, sigma: int) -> Any:
        z, y, x = self.gradient(sigma)
        xp, _ = namespace(z)
        return xp.sqrt(z * z + y * y + x * x)

    def laplacian(self, sigma: int) -> Any:
        """sigma^2 times the sum of the three second differences of G(sigma), at a distance of 1 (sigma 1) or 2 voxels.

        The wider distance keeps the cancellation small enough for float32.
        """
        smooth, beside, step = self._fields.gauss(sigma), self._view.beside, min(sigma, 2)
        total = np.float32(-6) * self._view.at(smooth)
        for axis in range(3):
            total += beside(smooth, axis, step) + beside(smooth, axis, -step)
        total *= np.float32(sigma * sigma / (step * step))
        return total

    def tensor(self, rho: int) -> tuple[tuple[Any, ...], Eigenvalues]:
        """Six components of J(rho) in float64, and its eigenvalues."""
        if rho not in self._eigen:
            parts = tuple(self._view.at(part).astype(np.float64) for part in self._fields.tensor(rho))
            self._eigen[rho] = parts, eigenvalues(parts)
        return self._eigen[rho]

    def planarity(self, rho: int) -> Any:
        _, (l1, l2, l3, _) = self.tensor(rho)
        return ((l1 - l2) / (l1 + l2 + l3 + PLANARITY_EPSILON)).astype(np.float32)

    def normal(self) -> tuple[Any, Any, Any]:
        """Sheet normal n of J(NORMAL_SCALE), float32, signed such that n.d >= 0."""
        if self._normal is None:
            z, y, x = principal_eigenvector(*self.tensor(NORMAL_SCALE))
            xp, _ = namespace(z)
            d = self._direction
            sign = xp.where(d[0] * z + d[1] * y + d[2] * x >= 0, 1.0, -1.0)
            z, y, x = ((sign * part).astype(np.float32) for part in (z, y, x))
            self._normal = z, y, x
        return self._normal

    def along_normal(self, sigma: int) -> Any:
        """Derivative of G(sigma) along n."""
        if sigma not in self._along:
            (gz, gy, gx), (nz, ny, nx) = self.gradient(sigma), self.normal()
            self._along[sigma] = gz * nz + gy * ny + gx * nx
        return self._along[sigma]

    def displaced(self, sigma: int, distance: int) -> Any:
        """G(sigma) at ``distance`` voxels along n."""
        if (sigma, distance) not in self._displaced:
            z, y, x = (np.float32(distance) * part for part in self.normal())
            self._displaced[sigma, distance] = self._view.displaced(self._fields.gauss(sigma), (z, y, x))
        return self._displaced[sigma, distance]

    def behind(self, sigma: int, sign: int) -> Any:
        """Derivative of G(sigma) along m = sign n, taken two voxels back: at a voxel minus 2 m."""
        return np.float32(0.5) * (self.displaced(sigma, -sign) - self.displaced(sigma, -3 * sign))

    def ridge(self, sigma: int) -> Any:
        """Second difference of G(sigma) along n at a distance of three voxels."""
        both = self.displaced(sigma, 3) + self.displaced(sigma, -3)
        return both - np.float32(2) * self.gauss(sigma)


_FAMILIES: dict[str, Callable[[Evaluator, int, VolumeReference], Any]] = {
    "gauss": lambda at, scale, _: at.gauss(scale),
    "gradmag": lambda at, scale, _: at.gradient_length(scale),
    "log": lambda at, scale, _: at.laplacian(scale),
    "planarity": lambda at, scale, _: at.planarity(scale),
    "signed_axis": lambda at, scale, _: at.along_normal(scale),
    "signed_skew": lambda at, scale, reference: np.float32(reference.sign_skew) * at.along_normal(scale),
    "signed_curv": lambda at, scale, reference: np.float32(reference.sign_curvature) * at.along_normal(scale),
    "face_skew": lambda at, scale, reference: at.behind(scale, reference.sign_skew),
    "face_curv": lambda at, scale, reference: at.behind(scale, reference.sign_curvature),
    "ridge": lambda at, scale, _: at.ridge(scale),
}


def specs_of(names: Sequence[str]) -> tuple[FeatureSpec, ...]:
    """The named features.

    Raises:
        UsageError: a name that the pool does not have.
    """
    unknown = [name for name in names if name not in feature_names()]
    if unknown:
        raise UsageError(
            "the feature pool has no such feature", found=", ".join(unknown), fix=f"use {', '.join(feature_names())}"
        )
    return tuple(spec_of(name) for name in names)


def standardise(ct: Any, reference: VolumeReference) -> Any:
    """``(ct - median) / scale`` as float32, same shape."""
    return (ct.astype(np.float32) - np.float32(reference.median)) / np.float32(reference.scale)


def compute_pool(v: Any, reference: VolumeReference, names: Sequence[str]) -> Any:
    """Features of a whole array.

    Args:
        v: ``(z, y, x)`` float32, standardised; NumPy or CuPy.
        reference: what was measured on the volume that ``v`` belongs to.
        names: which features, in the order wanted.

    Returns:
        ``(len(names), z, y, x)`` float32, of ``v``'s array type.
    """
    whole = (slice(0, v.shape[0]), slice(0, v.shape[1]), slice(0, v.shape[2]))
    return compute_window(Fields(v), whole, reference, names)


def compute_window(fields: Fields, window: Window, reference: VolumeReference, names: Sequence[str]) -> Any:
    """Features of a box of a region: ``(len(names), *box)`` float32."""
    xp, _ = namespace(fields.v)
    specs = specs_of(names)
    out = xp.empty((len(specs), *(part.stop - part.start for part in window)), dtype=np.float32)
    for piece in _slabs(window):
        at = Evaluator(fields, WindowView(piece), reference.direction)
        rows = slice(piece[0].start - window[0].start, piece[0].stop - window[0].start)
        for place, spec in enumerate(specs):
            out[place, rows] = _FAMILIES[spec.family](at, spec.scale, reference)
    return out


def compute_points(fields: Fields, points: tuple[Any, ...], reference: VolumeReference, names: Sequence[str]) -> Any:
    """Features at voxels of a region (z, y, x: int64, ``(n,)`` each): ``(len(names), n)`` float32."""
    xp, _ = namespace(fields.v)
    specs = specs_of(names)
    z, y, x = points
    out = xp.empty((len(specs), len(z)), dtype=np.float32)
    for start in range(0, len(z), _CHUNK):
        part = slice(start, min(start + _CHUNK, len(z)))
        at = Evaluator(fields, PointView(z[part], y[part], x[part], fields.shape), reference.direction)
        for place, spec in enumerate(specs):
            out[place, part] = _FAMILIES[spec.family](at, spec.scale, reference)
    return out


def gradient_magnitude(feature: Any) -> Any:
    """Length of a feature's spatial gradient, ``(z, y, x)`` float32: central differences, unit spacing, reflected."""
    xp, _ = namespace(feature)
    total = xp.zeros_like(feature)
    for axis in range(3):
        part = difference(feature, axis)
        part *= part
        total += part
    return xp.sqrt(total, out=total)


def _slabs(window: Window) -> Iterator[Window]:
    z, y, x = window
    depth = max(1, _CHUNK // max(1, (y.stop - y.start) * (x.stop - x.start)))
    for start in range(z.start, z.stop, depth):
        yield slice(start, min(start + depth, z.stop)), y, x
