"""Continuity from slice to slice: gaps of a few slices are bridged, and what only one slice shows is dropped."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import binary_dilation, label

from nx46vx.inference.masks.checks import check_not_negative, check_volume

_SQUARE = np.ones((3, 3), dtype=bool)


def bridge_slices(mask: np.ndarray, gap: int) -> np.ndarray:
    """Fill the runs of background along z that are at most ``gap`` voxels long and end in foreground on both sides.

    Args:
        mask: bool or 0/1 integers ``(z, y, x)``.

    Returns:
        bool ``(z, y, x)``, a new array.
    """
    check_volume(mask)
    check_not_negative("slice_gap", gap)
    source = mask.astype(bool)
    bridged = source.copy()
    for length in range(1, min(gap, len(source) - 2) + 1):
        ends = source[: -length - 1] & source[length + 1 :]
        for inside in range(1, length + 1):
            bridged[inside : inside + len(ends)] |= ends
    return bridged


def drop_unsupported(mask: np.ndarray) -> np.ndarray:
    """Drop each 8-connected region of a slice that has no foreground within one voxel in the slices next to it.

    A volume of one slice is left as it is.

    Args:
        mask: bool or 0/1 integers ``(z, y, x)``.

    Returns:
        bool ``(z, y, x)``, a new array.
    """
    check_volume(mask)
    kept = mask.astype(bool)
    if len(kept) < 2:
        return kept
    source = kept.copy()
    for z, plane in enumerate(source):
        if plane.any():
            beside = np.zeros_like(plane)
            for other in (z - 1, z + 1):
                if 0 <= other < len(source):
                    beside |= source[other]
            parts, count = label(plane, _SQUARE)
            supported = np.zeros(count + 1, dtype=bool)
            supported[parts[binary_dilation(beside, _SQUARE)]] = True
            supported[0] = False
            kept[z] = supported[parts]
    return kept
