"""The feature pool on arrays, NumPy's or CuPy's: what each family computes at the voxels of a view.

The compiled code (``kernels_voxels``) does the same arithmetic in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nx46vx.errors import UsageError
from nx46vx.features.array_namespace import namespace
from nx46vx.features.fields import Fields
from nx46vx.features.pool import NORMAL_SCALE, PLANARITY_EPSILON, FeatureSpec, feature_names, spec_of
from nx46vx.features.smoothing import Smooth, Window, smooth
from nx46vx.features.symmetric_eig import Eigenvalues, eigenvalues, principal_eigenvector, turned
from nx46vx.features.views import PointView, View, WindowView

if TYPE_CHECKING:
    from nx46vx.features.reference import VolumeReference

#: Voxels whose pointwise arithmetic is done at a time: its temporaries stay in the processor's cache.
CHUNK = 32_768


class Evaluator:
    """Pointwise part of the features at the voxels of one view; what several features need is computed once."""

    def __init__(self, fields: Any, view: View, direction: Sequence[Any]) -> None:
        self._fields, self._view, self._direction = fields, view, direction
        self._inside = view.inside(fields.core)
        self._gradients: dict[int, tuple[Any, Any, Any]] = {}
        self._eigen: dict[int, tuple[tuple[Any, ...], Eigenvalues]] = {}
        self._along: dict[int, Any] = {}
        self._displaced: dict[tuple[int, int], Any] = {}
        self._normal: tuple[Any, Any, Any] | None = None

    def gauss(self, sigma: int) -> Any:
        return self._view.at(self._fields.gauss(sigma))

    def log(self, sigma: int) -> Any:
        return self._inside.at(self._fields.log(sigma))

    def gradient(self, sigma: int) -> tuple[Any, Any, Any]:
        """Central differences of G(sigma): three float32 arrays."""
        if sigma not in self._gradients:
            smooth, beside = self._fields.gauss(sigma), self._view.beside
            z, y, x = (np.float32(0.5) * (beside(smooth, axis, 1) - beside(smooth, axis, -1)) for axis in range(3))
            self._gradients[sigma] = z, y, x
        return self._gradients[sigma]

    def gradient_length(self, sigma: int) -> Any:
        z, y, x = self.gradient(sigma)
        return np.sqrt(z * z + y * y + x * x)

    def tensor(self, rho: int) -> tuple[tuple[Any, ...], Eigenvalues]:
        """Six components of J(rho) in float64, and its eigenvalues."""
        if rho not in self._eigen:
            parts = tuple(self._inside.at(part).astype(np.float64) for part in self._fields.tensor(rho))
            self._eigen[rho] = parts, eigenvalues(parts)
        return self._eigen[rho]

    def planarity(self, rho: int) -> Any:
        _, (l1, l2, l3, _) = self.tensor(rho)
        return ((l1 - l2) / (l1 + l2 + l3 + PLANARITY_EPSILON)).astype(np.float32)

    def normal(self) -> tuple[Any, Any, Any]:
        """Sheet normal n of J(NORMAL_SCALE), float32, signed such that n.d >= 0."""
        if self._normal is None:
            vector = turned(*principal_eigenvector(*self.tensor(NORMAL_SCALE)), *self._direction)
            z, y, x = (part.astype(np.float32) for part in vector)
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

    def step(self, sigma: int, distance: int) -> Any:
        """G(sigma) so many voxels ahead along n less that as many behind; ``distance`` may be negative."""
        return self.displaced(sigma, distance) - self.displaced(sigma, -distance)

    def bend(self, sigma: int, distance: int) -> Any:
        """Second difference of G(sigma) along n at so many voxels."""
        both = self.displaced(sigma, distance) + self.displaced(sigma, -distance)
        return both - np.float32(2) * self.gauss(sigma)


_FAMILIES: dict[str, Callable[[Evaluator, int, VolumeReference], Any]] = {
    "gauss": lambda at, scale, _: at.gauss(scale),
    "gradmag": lambda at, scale, _: at.gradient_length(scale),
    "log": lambda at, scale, _: at.log(scale),
    "planarity": lambda at, scale, _: at.planarity(scale),
    "signed": lambda at, scale, reference: np.float32(reference.sign_skew) * at.along_normal(scale),
    "face": lambda at, scale, reference: at.behind(scale, reference.sign_skew),
    "ridge": lambda at, scale, _: at.bend(scale, 3),
    "step2": lambda at, scale, reference: at.step(scale, 2 * reference.sign_skew),
    "step4": lambda at, scale, reference: at.step(scale, 4 * reference.sign_skew),
    "bend2": lambda at, scale, _: at.bend(scale, 2),
    "bend4": lambda at, scale, _: at.bend(scale, 4),
    "normal": lambda at, scale, _: at.normal()[scale],
    "along": lambda at, scale, _: at.along_normal(scale),
}


def evaluate(specs: Sequence[FeatureSpec], fields: Any, view: View, reference: Any) -> list[Any]:
    """The features at the voxels of a view; ``reference`` has the direction and signs of a ``VolumeReference``."""
    at = Evaluator(fields, view, reference.direction)
    return [_FAMILIES[spec.family](at, spec.scale, reference) for spec in specs]


def specs_of(names: Sequence[str]) -> tuple[FeatureSpec, ...]:
    """The named features.

    Raises:
        UsageError: a name that the pool does not have.
    """
    try:
        return tuple(spec_of(name) for name in names)
    except KeyError as error:
        raise UsageError(
            "the feature pool has no such feature", found=error.args[0], fix=f"use {', '.join(feature_names())}"
        ) from None


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
    xp = namespace(v)
    region = ArrayRegion(v, Fields(v).whole, reference, names)
    return xp.stack(list(region.planes(0, v.shape[0])), axis=1)


class ArrayRegion:
    """Features of the ``core`` of a region ``v`` (z, y, x: float32, standardised), on arrays. See ``regions``.

    ``chunk``: voxels whose pointwise arithmetic is done at a time; changes no value, nor does ``how``, which smooths.
    """

    def __init__(
        self, v: Any, core: Window, reference: VolumeReference, names: Sequence[str], chunk: int = CHUNK,
        how: Smooth = smooth,
    ) -> None:  # fmt: skip
        self._specs, self._reference, self._chunk = specs_of(names), reference, chunk
        self._fields = Fields(v, core, how)

    def planes(self, start: int, stop: int) -> Iterator[Any]:
        z, y, x = self._fields.core
        depth = max(1, self._chunk // max(1, (y.stop - y.start) * (x.stop - x.start)))
        for first in range(z.start + start, z.start + stop, depth):
            window = (slice(first, min(first + depth, z.start + stop)), y, x)
            features = self._evaluate(WindowView(window))
            for number in range(window[0].stop - window[0].start):
                yield features[:, number]

    def points(self, z: Any, y: Any, x: Any) -> Any:
        xp = namespace(self._fields.v)
        out = xp.empty((len(self._specs), len(z)), dtype=np.float32)
        for start in range(0, len(z), self._chunk):
            part = slice(start, min(start + self._chunk, len(z)))
            out[:, part] = self._evaluate(PointView(z[part], y[part], x[part], self._fields.shape))
        return out

    def _evaluate(self, view: View) -> Any:
        xp = namespace(self._fields.v)
        return xp.stack(evaluate(self._specs, self._fields, view, self._reference))
