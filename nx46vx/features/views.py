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
        """A field's values one voxel further (step +1 or -1) along an axis, reflected at the region's border."""
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
        places = xp.clip(xp.arange(start + step, stop + step), 0, length - 1)
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
        stride = (self._shape[1] * self._shape[2], self._shape[2], 1)[axis]
        place = self._position[axis]
        inside = place < self._shape[axis] - 1 if step > 0 else place > 0
        return field.ravel()[self._flat + self._xp.where(inside, step * stride, 0)]
