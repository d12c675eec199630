"""Facts about a whole volume that make the features of any block of it equal to those of the whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.ndimage

from nx46vx.features.backend import Backend, backend
from nx46vx.features.pool import ALONG, NORMAL, NORMAL_SCALE
from nx46vx.features.smoothing import Window, grown, relative

_WHOLE = 112  # axes up to this long are looked at whole, longer ones through two windows
_WINDOW = 56
#: What is measured in each window: how much it looks like a sheet, the normal, and the derivative along it whose third
#: moment tells the sides apart.
_MEASURED = (f"planarity_s{NORMAL_SCALE}", *(spec.name for spec in NORMAL), ALONG.name)
_MASK_REACH = 2 * NORMAL_SCALE  # voxels around a masked-out part whose gradients are those of the mask
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
    weight: np.ndarray  # (n,) float32, planarity; 0 near parts where the scan is masked out (zero)
    along: np.ndarray  # (n,) float32, derivative along the normal

    def position(self) -> np.ndarray:
        """Voxel positions in the volume, (3, n)."""
        axes = [np.arange(part.start, part.stop, dtype=np.float32) for part in self.window]
        return np.stack([grid.ravel() for grid in np.meshgrid(*axes, indexing="ij")])

    def towards(self, direction: np.ndarray) -> np.ndarray:
        """n.d, (n,) float64; without a matrix product, whose bits could depend on threads."""
        z, y, x = self.normal
        return np.asarray(direction[0] * z + direction[1] * y + direction[2] * x)


def measure_reference(volume: np.ndarray, *, threads: int = 1, how: Backend | None = None) -> VolumeReference:
    """Measure a volume, ``(z, y, x)`` uint8. Neither ``threads`` nor ``how`` changes a bit.

    Grey values: median and (q90 - q10) / 2.563 over the voxels that are not zero, exact from a histogram.
    Direction d: principal eigenvector of the mean of n n^T weighted by planarity; its largest component is positive.
    sign_skew: sign of the third moment of the derivative along n (n.d > 0): the sharper face of the sheets.
    sign_curvature: sign of the divergence of n (n.d > 0): +1 where sheets bend around an axis that lies towards -d.
    Both are +1 where the volume does not tell. Sums are weighted by planarity and |n.d| (normals near perpendicular
    to d, whose sign is uncertain, count little). The last three are measured in up to eight windows placed
    symmetrically, so memory does not grow with the volume.
    """
    median, scale = _grey_values(volume)
    grey = VolumeReference(median, scale, (0.0, 0.0, 0.0), 1, 1)
    how = how or backend()
    seen = [_measure_window(volume, window, grey, how, threads) for window in _windows(volume.shape)]
    moment = sum(
        (np.einsum("n,in,jn->ij", s.weight, s.normal, s.normal, dtype=np.float64) for s in seen), np.zeros((3, 3))
    )
    direction = _main_direction(moment)
    skew = 0.0
    for sheets in seen:
        skew += float(np.sum(sheets.weight * sheets.towards(direction) * sheets.along**3, dtype=np.float64))
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
    yield from itertools.product(*axes)


def _measure_window(
    volume: np.ndarray, window: Window, grey: VolumeReference, how: Backend, threads: int
) -> _Sheets:  # fmt: skip
    # Without a direction the normals keep the sign they come with.
    block = how.block(volume, window, grey, _MEASURED, threads=threads)
    planes = [plane[:, 1:-1, 1:-1] for plane in block.planes(window[0].start, window[0].stop)]
    found = np.stack(planes, axis=1).reshape(len(_MEASURED), -1)
    return _Sheets(window=window, normal=found[1:4], weight=found[0] * _scanned(volume, window).ravel(), along=found[4])


def _scanned(volume: np.ndarray, window: Window) -> np.ndarray:
    """False in parts of a window that are zero (not single zero voxels) and around them."""
    outer = grown(window, volume.shape, _MASK_REACH + 1)
    region, place = volume[outer], relative(window, outer)
    masked = scipy.ndimage.maximum_filter(region, 3, mode="reflect") == 0
    if not masked.any():
        return np.ones([part.stop - part.start for part in window], bool)
    return np.asarray(~scipy.ndimage.maximum_filter(masked, 2 * _MASK_REACH + 1, mode="reflect")[place])


def _fitted_divergence(seen: list[_Sheets], direction: np.ndarray) -> float:
    """Divergence of the weighted least-squares linear field through the oriented normals: trace of A in n = c + A x.

    Fitted over the whole volume, local waves of the sheets count far less than in a mean of local divergences.
    """
    weights = 0.0
    moments = np.zeros((6, 6))  # of (position, normal)
    means = np.zeros(6)
    for sheets in seen:
        cosine = sheets.towards(direction)
        both = np.concatenate([sheets.position(), sheets.normal * np.sign(cosine)])
        weight = sheets.weight * np.abs(cosine)
        weights += float(weight.sum())
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
