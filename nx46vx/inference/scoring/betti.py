"""How many components, loops and cavities a mask has, as a complex of voxels, edges, squares and cubes.

A voxel is a vertex; two that share a face are joined by an edge, four by a square, eight by a cube. So the foreground
is 6-connected and its background 26-connected.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import cc3d
import numpy as np
from scipy.ndimage import label


class Betti(NamedTuple):
    """Components, loops and cavities of a mask."""

    components: int
    loops: int
    cavities: int


def betti_numbers(mask: np.ndarray) -> Betti:
    """Betti numbers of a bool volume (z, y, x). A void that touches a face of the volume is no cavity."""
    _, components = label_components(mask, 6)
    cavities = int(np.count_nonzero(sealed_voids(mask)[1]))
    return Betti(components, components + cavities - euler_number(mask), cavities)


def label_components(mask: np.ndarray, connectivity: Literal[6, 26]) -> tuple[np.ndarray, int]:
    """Labels 1..count of the components of a bool volume, 0 elsewhere; numbered along the raster."""
    if not mask.any():
        return np.zeros(mask.shape, np.uint8), 0
    if sorted(mask.shape)[1] == 1:  # cc3d sets too little memory aside for a single line of voxels
        return label(mask)
    labels, count = cc3d.connected_components(
        np.ascontiguousarray(mask), connectivity=connectivity, return_N=True, binary_image=True
    )
    return labels, int(count)


def sealed_voids(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the background's 26-connected parts, and by label whether the part is a cavity."""
    labels, count = label_components(~mask, 26)
    sealed = np.ones(count + 1, dtype=bool)
    sealed[0] = False
    for axis in range(3):
        for side in (0, -1):
            sealed[labels.take(side, axis)] = False
    return labels, sealed


def euler_number(mask: np.ndarray, axis: int = 0) -> int:
    """Vertices - edges + squares - cubes of a bool volume: along each axis, cells less the joints between them."""
    if axis == mask.ndim:
        return int(np.count_nonzero(mask))
    low, high = (tuple(s if a == axis else slice(None) for a in range(mask.ndim)) for s in (slice(-1), slice(1, None)))
    return euler_number(mask, axis + 1) - euler_number(mask[low] & mask[high], axis + 1)
