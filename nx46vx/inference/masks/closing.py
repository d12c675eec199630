"""Binary closing with an ellipsoid that may be flatter along z."""

from __future__ import annotations

import math

import numpy as np

from nx46vx.inference.masks.checks import check_not_negative, check_volume


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
    check_volume(mask)
    check_not_negative("z_radius", z_radius)
    check_not_negative("xy_radius", xy_radius)
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
