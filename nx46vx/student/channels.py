"""What the network sees of a volume: grey values, and their slope across the sheets with its sign settled.

The label is one face of a sheet, and which of the two it is cannot be told from a small patch with certainty. The
volume as a whole tells, by its sharper faces, measured once per volume
(:func:`nx46vx.features.reference.measure_reference`). A slope along a direction that moves with the volume is a scalar:
it stays true under every symmetry.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from nx46vx.features.reference import VolumeReference

#: Scale of the derivative, in voxels.
SIGMA = 1.0


def channel_count(sides: bool) -> int:
    """Channels of a patch: the grey values, and with ``sides`` the slope towards the sharper faces."""
    return 2 if sides else 1


def standardised(grey: np.ndarray, reference: VolumeReference) -> np.ndarray:
    """Grey values as float32, in the volume's robust standard deviations from its median."""
    return (grey.astype(np.float32) - np.float32(reference.median)) / np.float32(reference.scale)


def channels_of(grey: np.ndarray, reference: VolumeReference, sides: bool) -> np.ndarray:
    """Channels (C, D, H, W) float32 of standardised grey values (D, H, W)."""
    if not sides:
        return grey[None]
    slope = np.zeros_like(grey)
    for axis, along in enumerate(reference.direction):
        order = [1 if axis == other else 0 for other in range(3)]
        slope += np.float32(along) * gaussian_filter(grey, SIGMA, order=order, mode="reflect", truncate=3.0)
    return np.stack([grey, slope * np.float32(reference.sign_skew)])
