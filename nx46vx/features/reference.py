"""Facts about a whole volume that make the features of any block of it equal to those of the whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from nx46vx.features.fields import Fields, difference
from nx46vx.features.pool import HALO, NORMAL_SCALE, PLANARITY_EPSILON
from nx46vx.features.symmetric_eig import eigenvalues, principal_eigenvector
from nx46vx.features.views import Window

_WHOLE = 112  # axes up to this long are looked at whole, longer ones through two windows
_WINDOW = 56
_SIDE_SCALE = 2  # sigma of the derivative whose skewness tells the sides apart
_NORMAL_QUANTILES = 2.5631031310892007  # distance between the 10 % and 90 % quantiles of a standard normal


@dataclass(frozen=True)
class VolumeReference:
    """Robust grey-value centre and scale, the sheets' main direction (z, y, x), and two ways to tell their sides."""

    median: float
    scale: float
    direction: tuple[float, float, float]
    sign_skew: int
    sign_curvature: int


@dataclass(frozen=True)
class _Sheets:
    """Per voxel of a window, flat: unit normal (its sign arbitrary), weight, and what depends on the normal's sign."""

    window: Window
    normal: np.ndarray  # (3, n) float32
    weight: np.ndarray  # (n,) float32, planarity
    along: np.ndarray  # (n,) float32, derivative along the normal

    def position(self) -> np.ndarray:
        """Voxel positions in the volume, (3, n)."""
        axes = [np.arange(part.start, part.stop, dtype=np.float32) for part in self.window]
        return np.stack([grid.ravel() for grid in np.meshgrid(*axes, indexing="ij")])

    def weights_towards(self, direction: np.ndarray) -> np.ndarray:
        """Planarity times |n.d|: normals near perpendicular to d, whose sign is uncertain, count little."""
        return self.weight * np.abs(direction @ self.normal)


def measure_reference(volume: np.ndarray) -> VolumeReference:
    """Measure a volume, ``(z, y, x)`` uint8.

    Grey values: median and (q90 - q10) / 2.563 over the voxels that are not zero, exact from a histogram.
    Direction d: principal eigenvector of the mean of n n^T weighted by planarity; its largest component is positive.
    sign_skew: sign of the third moment of the derivative along n (n.d > 0): the sharper face of the sheets.
    sign_curvature: sign of the mean divergence of n (n.d > 0), weighted by planarity: +1 where sheets bend around an
    axis that lies towards -d. Both are +1 where the volume does not tell.
    The last three are measured in up to eight windows placed symmetrically, so memory does not grow with the volume.
    """
    median, scale = _grey_values(volume)
    seen = [_measure_window(volume, window, median, scale) for window in _windows(volume.shape)]
    moment = sum((np.einsum("n,in,jn->ij", s.weight, s.normal, s.normal, dtype=np.float64) for s in seen), np.zeros((3, 3)))
    direction = _main_direction(moment)
    skew = 0.0
    for sheets in seen:
        sign = np.sign(direction @ sheets.normal)
        skew += float(np.sum(sheets.weights_towards(direction) * sign * sheets.along**3, dtype=np.float64))
    curvature = _fitted_divergence(seen, direction)
    return VolumeReference(
        median=median,
        scale=scale,
        direction=(float(direction[0]), float(direction[1]), float(direction[2])),
        sign_skew=-1 if skew < 0 else 1,
        sign_curvature=-1 if curvature < 0 else 1,
    )


def _grey_values(volume: np.ndarray) -> tuple[float, float]:
    counts = np.zeros(256, np.int64)
    for plane in volume:
        counts += np.bincount(plane.ravel(), minlength=256)
    counts[0] = 0
    total = int(counts.sum())
    if total == 0:
        return 0.0, 1.0
    q10, q50, q90 = (float(np.searchsorted(np.cumsum(counts), q * total)) for q in (0.1, 0.5, 0.9))
    return q50, max((q90 - q10) / _NORMAL_QUANTILES, 1.0)


def _windows(shape: tuple[int, ...]) -> Iterator[Window]:
    """Boxes that lie symmetrically in the volume: a rotated volume is looked at in the rotated places."""
    axes = []
    for length in shape:
        if length <= _WHOLE:
            axes.append([slice(0, length)])
        else:
            inset = (length - 2 * _WINDOW) // 4
            axes.append([slice(inset, inset + _WINDOW), slice(length - inset - _WINDOW, length - inset)])
    for z, y, x in itertools.product(*axes):
        yield z, y, x


def _measure_window(volume: np.ndarray, window: Window, median: float, scale: float) -> _Sheets:
    low = [max(0, part.start - HALO) for part in window]
    region = volume[tuple(slice(a, part.stop + HALO) for a, part in zip(low, window, strict=True))]
    core = tuple(slice(part.start - a, part.stop - a) for a, part in zip(low, window, strict=True))
    fields = Fields((region.astype(np.float32) - np.float32(median)) / np.float32(scale))
    parts = tuple(part[core].astype(np.float64) for part in fields.tensor(NORMAL_SCALE))
    l1, l2, l3, size = eigenvalues(*parts)
    normal = principal_eigenvector(*parts, l1, l3, size)
    smooth = fields.gauss(_SIDE_SCALE)
    along = sum(difference(smooth, axis)[core] * normal[axis] for axis in range(3))
    planarity = (l1 - l2) / (l1 + l2 + l3 + PLANARITY_EPSILON)
    return _Sheets(
        window=window,
        normal=np.stack([part.ravel() for part in normal]).astype(np.float32),
        weight=planarity.ravel().astype(np.float32),
        along=np.asarray(along).ravel().astype(np.float32),
    )


def _fitted_divergence(seen: list[_Sheets], direction: np.ndarray) -> float:
    """Divergence of the weighted least-squares linear field through the oriented normals: trace of A in n = c + A x.

    Fitted over the whole volume, local waves of the sheets count far less than in a mean of local divergences.
    """
    weights = sum(sheets.weights_towards(direction).sum() for sheets in seen)
    moments = np.zeros((6, 6))  # of (position, normal)
    means = np.zeros(6)
    for sheets in seen:
        both = np.concatenate([sheets.position(), sheets.normal * np.sign(direction @ sheets.normal)])
        weight = sheets.weights_towards(direction)
        means += np.einsum("n,in->i", weight, both)
        moments += np.einsum("n,in,jn->ij", weight, both, both)
    if weights <= 0:
        return 0.0
    means /= weights
    covariance = moments / weights - np.outer(means, means)
    slopes, *_ = np.linalg.lstsq(covariance[:3, :3], covariance[:3, 3:], rcond=1e-9)
    return float(np.trace(slopes))


def _main_direction(moment: np.ndarray) -> np.ndarray:
    """Principal eigenvector, its component of largest magnitude positive."""
    _, vectors = np.linalg.eigh(moment)
    direction = vectors[:, -1]
    return direction if direction[int(np.argmax(np.abs(direction)))] > 0 else -direction

