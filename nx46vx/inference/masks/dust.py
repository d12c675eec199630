"""Dust: components too small to be a sheet."""

from __future__ import annotations

import numpy as np

from nx46vx.inference.masks.checks import check_volume
from nx46vx.inference.masks.regions import regions, select, sizes


def remove_dust(mask: np.ndarray, min_size: int) -> np.ndarray:
    """Drop the 26-connected components with fewer than ``min_size`` voxels.

    Args:
        mask: bool or 0/1 integers ``(z, y, x)``.

    Returns:
        bool ``(z, y, x)``, a new array.
    """
    check_volume(mask)
    source = mask.astype(bool)
    if min_size <= 1 or not source.any():
        return source
    labels, count = regions(source)
    keep = sizes(labels, count) >= min_size
    keep[0] = False
    return select(labels, keep)
