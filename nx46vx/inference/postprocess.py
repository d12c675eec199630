"""From a probability volume to a mask: hysteresis in 3D, closing, dust removal.

All arrays are ``(z, y, x)``; radii and sizes are in voxels. Every step is integer or comparison arithmetic on one
thread, so the same probabilities give the same mask everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import cc3d
import numpy as np

from nx46vx.errors import NX46Error, UsageError

_CONNECTIVITY: Final = 26
_SLAB_VOXELS = 1 << 21  # voxels looked up at a time: index arrays are eight times wider than masks


@dataclass(frozen=True)
class MaskParameters:
    """How probabilities become a mask. Thresholds are compared as float32, like the probabilities.

    Raises:
        UsageError: thresholds that are no numbers or out of order, a negative radius or size.
    """

    strong_th: float
    weak_th: float
    z_radius: int
    xy_radius: int
    dust_min_size: int

    def __post_init__(self) -> None:
        _check_thresholds(self.strong_th, self.weak_th)
        for name in ("z_radius", "xy_radius", "dust_min_size"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is negative", found=getattr(self, name), fix=f"set mask.{name} to 0 or more")


def hysteresis(probability: np.ndarray, strong: float, weak: float) -> np.ndarray:
    """The 26-connected components of ``p >= weak`` that contain a voxel with ``p >= strong``.

    Args:
        probability: floats ``(z, y, x)``.

    Returns:
        bool ``(z, y, x)``.

    Raises:
        NX46Error: not a 3D array of floats, or NaN in it.
        UsageError: ``weak`` above ``strong``, or NaN.
    """
    _check_thresholds(strong, weak)
    _check_probability(probability)
    seeds = probability >= np.float32(strong)
    if not seeds.any():
        return seeds
    labels, count = _components(probability >= np.float32(weak))
    keep = np.zeros(count + 1, dtype=bool)
    for slab in _slabs(labels):
        keep[labels[slab][seeds[slab]]] = True
    return _select(labels, keep)


def closing(mask: np.ndarray, z_radius: int, xy_radius: int) -> np.ndarray:
    """Binary closing with the ellipsoid ``(dz / z_radius)^2 + (dy^2 + dx^2) / xy_radius^2 <= 1``.

    A radius of 0 makes the element flat along that axis. The mask is closed as a set in unbounded space and then cut
    to its volume, so closing never removes foreground, at the faces neither.

    The element is a union of runs along x: a dilation is an OR of masks dilated along x, shifted in z and y. An
    erosion is the dilation of the complement (the element is its own mirror image).

    Args:
        mask: bool or 0/1 integers ``(z, y, x)``.

    Returns:
        bool ``(z, y, x)``, a new array.
    """
    _check_volume(mask)
    if z_radius < 0 or xy_radius < 0:
        raise UsageError("a closing radius is negative", found=(z_radius, xy_radius), fix="set it to 0 or more")
    source = mask.astype(bool)
    if (z_radius == 0 and xy_radius == 0) or not source.any():
        return source
    radii = (z_radius, xy_radius, xy_radius)
    runs = _ellipsoid_runs(z_radius, xy_radius)
    padded = np.pad(source, [(radius, radius) for radius in radii])
    grown = _dilate(padded, runs)
    np.logical_not(grown, out=grown)
    outside = _dilate(grown, runs)
    inside = tuple(slice(radius, size - radius) for radius, size in zip(radii, outside.shape, strict=True))
    return np.logical_not(outside[inside])


def remove_dust(mask: np.ndarray, min_size: int) -> np.ndarray:
    """Drop the 26-connected components with fewer than ``min_size`` voxels.

    Args:
        mask: bool or 0/1 integers ``(z, y, x)``.

    Returns:
        bool ``(z, y, x)``, a new array.
    """
    _check_volume(mask)
    source = mask.astype(bool)
    if min_size <= 1 or not source.any():
        return source
    labels, count = _components(source)
    sizes = np.zeros(count + 1, dtype=np.int64)
    for slab in _slabs(labels):
        sizes += np.bincount(labels[slab].ravel(), minlength=count + 1)
    keep = sizes >= min_size
    keep[0] = False
    return _select(labels, keep)


def make_mask(probability: np.ndarray, parameters: MaskParameters) -> np.ndarray:
    """Hysteresis, closing, dust removal.

    Args:
        probability: floats ``(z, y, x)``.

    Returns:
        uint8 ``(z, y, x)`` of 0 and 1; all 0 where no probability reaches ``strong_th``.

    Raises:
        NX46Error: not a 3D array of floats, or NaN in it.
    """
    mask = hysteresis(probability, parameters.strong_th, parameters.weak_th)
    mask = closing(mask, parameters.z_radius, parameters.xy_radius)
    mask = remove_dust(mask, parameters.dust_min_size)
    return mask.view(np.uint8)


def _check_thresholds(strong: float, weak: float) -> None:
    if not weak <= strong:  # also refuses NaN
        raise UsageError(
            "the weak threshold has to be at most the strong one",
            where="mask.weak_th, mask.strong_th", found=f"weak {weak}, strong {strong}", fix="swap or lower weak_th",
        )  # fmt: skip


def _check_volume(array: np.ndarray) -> None:
    if array.ndim != 3:
        raise NX46Error("the array is no (z, y, x) volume", where="postprocess", found=f"shape {array.shape}")


def _check_probability(probability: np.ndarray) -> None:
    _check_volume(probability)
    if not np.issubdtype(probability.dtype, np.floating):
        raise NX46Error("probabilities have to be floats", where="postprocess", found=f"dtype {probability.dtype}")
    if probability.size and np.isnan(probability.min()):
        first_z = next(z for z, plane in enumerate(probability) if np.isnan(plane).any())
        y, x = np.argwhere(np.isnan(probability[first_z]))[0]
        total = sum(int(np.isnan(plane).sum()) for plane in probability)
        raise NX46Error(
            "the probability volume contains NaN",
            where=f"first at (z, y, x) = ({first_z}, {y}, {x})", found=f"{total} NaN of {probability.size} voxels",
            fix="look for NaN in the model's weights or in the features of this case",
        )  # fmt: skip


def _components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Labels 1..count of the 26-connected components of a non-empty bool volume; 0 is background."""
    labels, count = cc3d.connected_components(
        np.ascontiguousarray(mask), connectivity=_CONNECTIVITY, return_N=True, binary_image=True
    )
    return labels, int(count)


def _slabs(volume: np.ndarray) -> Iterator[slice]:
    """Cut along z into slabs small enough for wide temporaries."""
    thickness = max(1, _SLAB_VOXELS // max(1, volume[0].size))
    for start in range(0, volume.shape[0], thickness):
        yield slice(start, start + thickness)


def _select(labels: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The voxels whose label is to be kept; ``keep`` is indexed by label."""
    chosen = np.empty(labels.shape, dtype=bool)
    for slab in _slabs(labels):
        chosen[slab] = keep[labels[slab]]
    return chosen


def _ellipsoid_runs(z_radius: int, xy_radius: int) -> dict[int, list[tuple[int, int]]]:
    """The ellipsoid as runs along x: half length -> the ``(dz, dy)`` offsets that have it. Exact, in integers."""
    zz, rr = max(z_radius, 1) ** 2, max(xy_radius, 1) ** 2
    runs: dict[int, list[tuple[int, int]]] = {}
    for dz in range(-z_radius, z_radius + 1):
        for dy in range(-xy_radius, xy_radius + 1):
            room = zz * rr - dz * dz * rr - dy * dy * zz  # dx^2 * zz <= room
            if room >= 0:
                runs.setdefault(min(math.isqrt(room // zz), xy_radius), []).append((dz, dy))
    return runs


def _dilate(mask: np.ndarray, runs: dict[int, list[tuple[int, int]]]) -> np.ndarray:
    """Dilate a bool volume; outside it counts as background."""
    result = np.zeros_like(mask)
    line = mask.copy()  # the mask dilated along x by the half length reached so far
    for half in range(max(runs) + 1):
        if half and half < mask.shape[2]:
            line[:, :, half:] |= mask[:, :, :-half]
            line[:, :, :-half] |= mask[:, :, half:]
        for dz, dy in runs.get(half, ()):
            to_z, from_z = _overlap(dz, mask.shape[0])
            to_y, from_y = _overlap(dy, mask.shape[1])
            result[to_z, to_y] |= line[from_z, from_y]
    return result


def _overlap(shift: int, size: int) -> tuple[slice, slice]:
    """Target and source ranges of one axis under a shift that may push everything out."""
    length = max(0, size - abs(shift))
    return slice(max(shift, 0), max(shift, 0) + length), slice(max(-shift, 0), max(-shift, 0) + length)
