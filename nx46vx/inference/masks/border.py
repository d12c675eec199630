"""The border of the volume, where the filters see half of what they need: nothing is claimed there."""

from __future__ import annotations

import numpy as np

from nx46vx.inference.masks.checks import check_not_negative, check_volume


def clear_border(mask: np.ndarray, width: int) -> np.ndarray:
    """Set the ``width`` outermost voxels of each face to background.

    Args:
        mask: bool or 0/1 integers ``(z, y, x)``.

    Returns:
        bool ``(z, y, x)``, a new array; empty where an edge is at most twice the width.
    """
    check_volume(mask)
    check_not_negative("border", width)
    cleared = np.zeros(mask.shape, dtype=bool)
    inner = tuple(slice(width, max(size - width, width)) for size in mask.shape)
    cleared[inner] = mask[inner]
    return cleared
