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
    """Robust grey-value centre and scale, the sheets' main direction (z, y, x), and the side of their sharper face."""

    median: float
    scale: float
    direction: tuple[float, float, float]
    sign_skew: int


@dataclass(frozen=True)
class _Sheets:
    """Per voxel of a window, flat: unit normal (its sign arbitrary), weight, and what depends on the normal's sign."""

    normal: np.ndarray  # (3, n) float32
    weight: np.ndarray  # (n,) float32, planarity; 0 near parts where the scan is masked out (zero)
    along: np.ndarray  # (n,) float32, derivative along the normal

    def towards(self, direction: np.ndarray) -> np.ndarray:
        """n.d, (n,) float64; without a matrix product, whose bits could depend on threads."""
        z, y, x = self.normal
        return np.asarray(direction[0] * z + direction[1] * y + direction[2] * x)


def measure_reference(volume: np.ndarray, *, threads: int = 1, how: Backend | None = None) -> VolumeReference:
    """Measure a volume, ``(z, y, x)`` uint8. Neither ``threads`` nor ``how`` changes a bit.

    Grey values: median and (q90 - q10) / 2.563 over the voxels that are not zero, exact from a histogram.
    Direction d: principal eigenvector of the mean of n n^T weighted by planarity; its largest component is positive.
    sign_skew: sign of the third moment of the derivative along n (n.d > 0): the sharper face of the sheets.
    It is +1 where the volume does not tell. Sums are weighted by planarity and |n.d| (normals near perpendicular
    to d, whose sign is uncertain, count little). The last two are measured in up to eight windows placed
    symmetrically, so memory does not grow with the volume.
    """
    median, scale = _grey_values(volume)
    grey = VolumeReference(median, scale, (0.0, 0.0, 0.0), 1)
    how = how or backend()
    seen = [_measure_window(volume, window, grey, how, threads) for window in _windows(volume.shape)]
    moment = sum(
        (np.einsum("n,in,jn->ij", s.weight, s.normal, s.normal, dtype=np.float64) for s in seen), np.zeros((3, 3))
    )
    direction = _main_direction(moment)
    skew = 0.0
    for sheets in seen:
        skew += float(np.sum(sheets.weight * sheets.towards(direction) * sheets.along**3, dtype=np.float64))
    return VolumeReference(
        median=median,
        scale=scale,
        direction=(float(direction[0]), float(direction[1]), float(direction[2])),
        sign_skew=-1 if skew < 0 else 1,
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
    return _Sheets(normal=found[1:4], weight=found[0] * _scanned(volume, window).ravel(), along=found[4])


def _scanned(volume: np.ndarray, window: Window) -> np.ndarray:
    """False in parts of a window that are zero (not single zero voxels) and around them."""
    outer = grown(window, volume.shape, _MASK_REACH + 1)
    region, place = volume[outer], relative(window, outer)
    masked = scipy.ndimage.maximum_filter(region, 3, mode="reflect") == 0
    if not masked.any():
        return np.ones([part.stop - part.start for part in window], bool)
    return np.asarray(~scipy.ndimage.maximum_filter(masked, 2 * _MASK_REACH + 1, mode="reflect")[place])


def _main_direction(moment: np.ndarray) -> np.ndarray:
    """Principal eigenvector, its component of largest magnitude positive."""
    _, vectors = np.linalg.eigh(moment)
    direction = vectors[:, -1]
    return direction if direction[int(np.argmax(np.abs(direction)))] > 0 else -direction
