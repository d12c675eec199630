"""Plugging: voids that the mask encloses, and tunnels through it.

A sheet with a hole in it has a tunnel. What a closing would add to a component is taken piece by piece, and only the
pieces that raise Euler's number (components - tunnels + cavities) and touch no other component are kept: a plug closes
a tunnel and joins nothing. Pieces are not 26-adjacent to each other, so each changes Euler's number by itself.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import find_objects

from nx46vx.inference.masks.checks import check_not_negative, check_volume
from nx46vx.inference.masks.closing import closing
from nx46vx.inference.masks.regions import regions, select, sizes
from nx46vx.inference.scoring.betti import euler_number, sealed_voids

#: Voxels of the smallest ring, which has a tunnel.
_LEAST = 4


def fill_cavities(mask: np.ndarray, max_size: int) -> np.ndarray:
    """Fill the 26-connected voids of at most ``max_size`` voxels that touch no face of the volume.

    Args:
        mask: bool or 0/1 integers ``(z, y, x)``.

    Returns:
        bool ``(z, y, x)``, a new array.
    """
    check_volume(mask)
    check_not_negative("hole_size", max_size)
    source = mask.astype(bool)
    if max_size == 0 or not source.any() or source.all():
        return source
    labels, sealed = sealed_voids(source)
    fill = sealed & (sizes(labels, len(sealed) - 1) <= max_size)
    return source | select(labels, fill) if fill.any() else source


def plug_tunnels(mask: np.ndarray, radius: int) -> np.ndarray:
    """Close tunnels that balls of radius 1 up to ``radius`` voxels fill, smallest first.

    Args:
        mask: bool or 0/1 integers ``(z, y, x)``.

    Returns:
        bool ``(z, y, x)``, a new array; it contains the mask and has as many 26-connected components or fewer holes.
    """
    check_volume(mask)
    check_not_negative("tunnel_radius", radius)
    plugged = mask.astype(bool)
    for ball in range(1, radius + 1):
        owners, count = regions(plugged)
        large = sizes(owners, count) >= _LEAST
        for number, box in enumerate(find_objects(owners), start=1):
            if large[number]:
                plugged[box] |= _plugs(owners[box], number, ball)
    return plugged


def _plugs(owners: np.ndarray, number: int, ball: int) -> np.ndarray:
    """What of a component's closing plugs it; ``owners`` is the component's box, which holds its closing."""
    component = owners == number
    pieces, count = regions(closing(component, ball, ball) & ~component)
    keep = np.zeros(count + 1, dtype=bool)
    for piece_number, box in enumerate(find_objects(pieces), start=1):
        wider = tuple(slice(max(part.start - 1, 0), part.stop + 1) for part in box)
        piece = pieces[wider] == piece_number
        around = owners[wider][_neighbours(piece)]
        if ((around == 0) | (around == number)).all():
            near = component[wider]
            keep[piece_number] = euler_number(near | piece) > euler_number(near)
    return select(pieces, keep)


def _neighbours(piece: np.ndarray) -> np.ndarray:
    """The voxels of a box within one voxel of a piece, along all three axes, itself included."""
    grown = piece.copy()
    for axis in range(3):
        low, high = ((slice(None),) * axis + (part,) for part in (slice(-1), slice(1, None)))
        line = grown.copy()
        grown[low] |= line[high]
        grown[high] |= line[low]
    return grown
