"""SurfaceDice: the share of both surfaces' area that lies within two voxels of the other surface.

Surface elements sit at the corners of voxels. A corner's element is what marching cubes puts between the eight voxels
around it, as in Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head and neck anatomy
for radiotherapy" (2018); outside of the volume all is background. Distances are between corners, in voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

#: Largest distance, in voxels, at which an element counts as found; ``_within_tolerance`` is made for it.
TOLERANCE = 2


@dataclass(frozen=True)
class Surface:
    """A mask's surface: ``codes`` uint8 (z + 1, y + 1, x + 1), by corner the bits of the eight voxels around it."""

    codes: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray) -> Surface:
        """Surface of a bool volume (z, y, x)."""
        bits: np.ndarray = np.pad(mask.view(np.uint8), 1)
        bits = bits[..., :-1] | bits[..., 1:] << 1
        bits = bits[:, :-1] | bits[:, 1:] << 2
        return cls(bits[:-1] | bits[1:] << 4)

    @cached_property
    def elements(self) -> np.ndarray:
        """Bool: corners with both foreground and background around them."""
        return (self.codes != 0) & (self.codes != 255)

    @cached_property
    def area(self) -> float:
        """Area of the whole surface."""
        return _area(self.codes)

    @cached_property
    def near(self) -> np.ndarray:
        """Bool: corners within the tolerance of an element."""
        return _within_tolerance(self.elements)

    def area_away_from(self, other: Surface) -> float:
        """Area of the elements that lie beyond the tolerance of the other surface."""
        return _area(self.codes[self.elements & ~other.near])


def surface_dice(a: Surface, b: Surface) -> float:
    """Share of found area in [0, 1]; 1 if both masks are empty, 0 if one is."""
    total = a.area + b.area
    if not a.area or not b.area:
        return 0.0 if total else 1.0
    return 1.0 - (a.area_away_from(b) + b.area_away_from(a)) / total


def _area(codes: np.ndarray) -> float:
    """Summed area of corners given by code."""
    counts = np.zeros(256, np.int64)
    for part in np.array_split(codes.ravel(), max(1, codes.size >> 20)):  # bincount widens its input eightfold
        counts += np.bincount(part, minlength=256)
    return float(counts @ element_areas())


def _within_tolerance(elements: np.ndarray) -> np.ndarray:
    """The elements, dilated by the ball of radius 2: a cube of three corners an edge, and six tips."""
    cube = elements.copy()
    for axis in range(3):
        grown = cube.copy()
        _spread(grown, cube, axis, 1)
        cube = grown
    for axis in range(3):
        _spread(cube, elements, axis, 2)
    return cube


def _spread(target: np.ndarray, source: np.ndarray, axis: int, step: int) -> None:
    """``target |= source`` moved by ``step`` both ways along the axis."""
    if source.shape[axis] > step:
        low, high = ((slice(None),) * axis + (part,) for part in (slice(-step), slice(step, None)))
        target[high] |= source[low]
        target[low] |= source[high]


@cache
def element_areas() -> np.ndarray:
    """Area by code, float64 (256,).

    Marching cubes cuts off each group of corners that are joined by edges of the cube; where more than four corners
    are set, it cuts off the others. The cut runs through the middles of the edges.
    """
    return np.array([_cut(code if code.bit_count() <= 4 else 255 - code) for code in range(256)])


def _cut(code: int) -> float:
    corners = {corner for corner in range(8) if code >> corner & 1}
    area = 0.0
    while corners:
        group = {corners.pop()}
        while joined := {corner for corner in corners if any((corner ^ other).bit_count() == 1 for other in group)}:
            group |= joined
            corners -= joined
        degrees = sorted(sum((corner ^ other).bit_count() == 1 for other in group) for corner in group)
        area += _GROUP_AREAS[tuple(degrees)]
    return area


#: Area of the cut around a group, by the numbers of edges that its corners have within the group.
_GROUP_AREAS = {
    (0,): 3**0.5 / 8,  # one corner: a triangle
    (1, 1): 2**0.5 / 2,  # an edge: a rectangle
    (1, 1, 2): 1 / 2 + 3 * 3**0.5 / 8,  # a bend: a pentagon
    (2, 2, 2, 2): 1.0,  # a face: a square
    (1, 1, 1, 3): 3 * 3**0.5 / 4,  # a corner and its three neighbours: a hexagon
    (1, 1, 2, 2): (3**0.5 + 2**0.5) / 2,  # a twisted chain
}
