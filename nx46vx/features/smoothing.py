"""Gaussian smoothing along the three axes, in one order of operations that every way of computing it keeps.

The kernel is cut off at three sigma. Outside, an array continues by reflection about its border (SciPy's ``reflect``:
d c b a | a b c d | d c b a). The weighted values are added from the outermost inwards in groups of three, which keeps
the rounding of float32 small; the compiled code (``kernels_smooth``) adds in the same order and gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from nx46vx.features.array_namespace import namespace

TRUNCATE = 3
#: Weighted pairs that are added up before they join the sum. Every radius is a multiple of it.
GROUP = 3
_PIECE = 1 << 17  # voxels smoothed at a time: temporaries stay in the processor's cache
_GPU_PIECE = 1 << 26  # the same on a GPU, where each piece costs launches: 320^3 voxels are one piece

Window = tuple[slice, slice, slice]
#: ``smooth``, or what gives the same bits in another way.
Smooth = Callable[[Any, int, Window, Any], Any]


def grown(window: Window, shape: Sequence[int], by: int) -> Window:
    """A window with more around it, within a volume."""
    z, y, x = (slice(max(0, part.start - by), min(n, part.stop + by)) for part, n in zip(window, shape, strict=True))
    return z, y, x


def relative(window: Window, outer: Window) -> Window:
    """A window's place in another one."""
    z, y, x = (slice(a.start - b.start, a.stop - b.start) for a, b in zip(window, outer, strict=True))
    return z, y, x


def radius(sigma: int) -> int:
    """Half width of the Gaussian's kernel, in voxels."""
    return TRUNCATE * sigma


def half_kernel(sigma: int, dtype: Any) -> np.ndarray:
    """The kernel's weights from its centre outwards, ``(radius + 1,)``; the whole kernel sums to 1."""
    distance = np.arange(radius(sigma) + 1)
    weights = np.exp(-0.5 / (sigma * sigma) * distance**2)
    return (weights / (weights[0] + 2 * weights[1:].sum())).astype(dtype)


def mirrored(places: Any, length: int) -> Any:
    """Positions, of any distance from an axis of that length, reflected into it."""
    places = places % (2 * length)
    return np.where(places < length, places, 2 * length - 1 - places)


def smooth(array: Any, sigma: int, window: Window, dtype: Any) -> Any:
    """A Gaussian's average of an array ``(z, y, x)`` at the voxels of a window; sums and result are of ``dtype``."""
    weights = half_kernel(sigma, dtype)
    for axis in range(3):
        array = _along(array, weights, axis, window[axis])
    return array


def _along(array: Any, weights: np.ndarray, axis: int, part: slice) -> Any:
    xp = namespace(array)
    reach, length, size = len(weights) - 1, array.shape[axis], part.stop - part.start
    shape = list(array.shape)
    shape[axis] = size
    out = xp.empty(shape, weights.dtype)
    places = mirrored(np.arange(part.start - reach, part.stop + reach), length)
    whole = bool(np.all(np.diff(places) == 1))
    for piece in _pieces(array.shape, axis, _PIECE if xp is np else _GPU_PIECE):
        wide = array[piece]
        if whole:
            wide = wide[_at(axis, int(places[0]), len(places))]
        else:
            wide = xp.take(wide, xp.asarray(places), axis=axis)
        wide = wide.astype(weights.dtype, copy=False)
        total: Any = None
        for first in range(reach, 0, -GROUP):
            group = _pair(wide, weights, axis, first, size)
            for tap in range(first - 1, first - GROUP, -1):
                group += _pair(wide, weights, axis, tap, size)
            total = group if total is None else total + group
        total += weights[0] * wide[_at(axis, reach, size)]
        out[piece] = total
    return out


def _pair(wide: Any, weights: np.ndarray, axis: int, tap: int, size: int) -> Any:
    """The values ``tap`` voxels away on both sides, weighted."""
    reach = len(weights) - 1
    pair = wide[_at(axis, reach - tap, size)] + wide[_at(axis, reach + tap, size)]
    pair *= weights[tap]
    return pair


def _at(axis: int, start: int, length: int) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(start, start + length),)


def _pieces(shape: tuple[int, ...], axis: int, size: int) -> Iterator[tuple[slice, ...]]:
    """Cuts across another axis than the one that is smoothed along."""
    across = 1 if axis == 0 else 0
    step = max(1, size * shape[across] // max(1, int(np.prod(shape))))
    for start in range(0, shape[across], step):
        yield _at(across, start, step)
