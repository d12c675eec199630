"""Two ways of looking at a region's fields: a dense window of it, or single voxels.

Both answer with the same bits for the same voxel, so that features can be computed only where samples fall.
"""

from __future__ import annotations

from typing import Any, Protocol

from nx46vx.features.array_namespace import namespace

Window = tuple[slice, slice, slice]


class View(Protocol):
    def at(self, field: Any) -> Any:
        """A field's values at the voxels looked at."""
        ...

    def beside(self, field: Any, axis: int, step: int) -> Any:
        """A field's values ``step`` voxels further along an axis, reflected at the region's border."""
        ...


class WindowView:
    """All voxels of a box; answers have the box's shape."""

    def __init__(self, window: Window) -> None:
        self.window = window

    def at(self, field: Any) -> Any:
        return field[self.window]

    def beside(self, field: Any, axis: int, step: int) -> Any:
        start, stop, length = self.window[axis].start, self.window[axis].stop, field.shape[axis]
        if start + step >= 0 and stop + step <= length:
            moved = list(self.window)
            moved[axis] = slice(start + step, stop + step)
            return field[tuple(moved)]
        xp, _ = namespace(field)
        rest = list(self.window)
        rest[axis] = slice(None)
        places = _reflected(xp, xp.arange(start + step, stop + step), length)
        return xp.take(field[tuple(rest)], places, axis=axis)


class PointView:
    """Single voxels at integer positions ``z, y, x`` (one-dimensional arrays); answers are one-dimensional."""

    def __init__(self, z: Any, y: Any, x: Any, shape: tuple[int, int, int]) -> None:
        self._xp, _ = namespace(z)
        self._position = (z, y, x)
        self._shape = shape
        self._flat = (z * shape[1] + y) * shape[2] + x

    def at(self, field: Any) -> Any:
        return field.ravel()[self._flat]

    def beside(self, field: Any, axis: int, step: int) -> Any:
        places = list(self._position)
        places[axis] = _reflected(self._xp, places[axis] + step, self._shape[axis])
        z, y, x = places
        return field.ravel()[(z * self._shape[1] + y) * self._shape[2] + x]


def _reflected(xp: Any, places: Any, length: int) -> Any:
    """Positions outside an axis mirrored about its borders (d c b a | a b c d | d c b a)."""
    places = xp.where(places < 0, -1 - places, places)
    places = xp.where(places >= length, 2 * length - 1 - places, places)
    return xp.clip(places, 0, length - 1)
