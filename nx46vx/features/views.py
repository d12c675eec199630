"""Two ways of looking at a region's fields: a dense window of it, or single voxels.

Both answer with the same bits for the same voxel, so that features can be computed only where samples fall.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from nx46vx.features.array_namespace import namespace
from nx46vx.features.smoothing import Window, mirrored, relative


class View(Protocol):
    def inside(self, core: Window) -> View:
        """The same voxels, of fields that cover a part of the region only."""
        ...

    def at(self, field: Any) -> Any:
        """A field's values at the voxels looked at."""
        ...

    def beside(self, field: Any, axis: int, step: int) -> Any:
        """A field's values ``step`` voxels further along an axis, reflected at the region's border."""
        ...

    def displaced(self, field: Any, offset: tuple[Any, Any, Any]) -> Any:
        """A field's values at an offset in voxels (z, y, x: float32, one per voxel looked at), trilinear."""
        ...


class WindowView:
    """All voxels of a box; answers have the box's shape."""

    def __init__(self, window: Window) -> None:
        self.window = window

    def inside(self, core: Window) -> WindowView:
        return WindowView(relative(self.window, core))

    def at(self, field: Any) -> Any:
        return field[self.window]

    def beside(self, field: Any, axis: int, step: int) -> Any:
        start, stop, length = self.window[axis].start, self.window[axis].stop, field.shape[axis]
        if start + step >= 0 and stop + step <= length:
            moved = list(self.window)
            moved[axis] = slice(start + step, stop + step)
            return field[tuple(moved)]
        xp = namespace(field)
        rest = list(self.window)
        rest[axis] = slice(None)
        places = mirrored(xp.arange(start + step, stop + step), length)
        return xp.take(field[tuple(rest)], places, axis=axis)

    def displaced(self, field: Any, offset: tuple[Any, Any, Any]) -> Any:
        xp = namespace(field)
        z, y, x = (xp.arange(part.start, part.stop) for part in self.window)
        return _interpolated(xp, field, (z[:, None, None], y[:, None], x), offset)


class PointView:
    """Single voxels at integer positions ``z, y, x`` (one-dimensional arrays); answers are one-dimensional."""

    def __init__(self, z: Any, y: Any, x: Any, shape: tuple[int, int, int]) -> None:
        self._xp = namespace(z)
        self._position = (z, y, x)
        self._shape = shape
        self._flat = (z * shape[1] + y) * shape[2] + x

    def inside(self, core: Window) -> PointView:
        z, y, x = (place - part.start for place, part in zip(self._position, core, strict=True))
        nz, ny, nx = (part.stop - part.start for part in core)
        return PointView(z, y, x, (nz, ny, nx))

    def at(self, field: Any) -> Any:
        return field.ravel()[self._flat]

    def beside(self, field: Any, axis: int, step: int) -> Any:
        places = list(self._position)
        places[axis] = _reflected(places[axis] + step, self._shape[axis])
        z, y, x = places
        return field.ravel()[(z * self._shape[1] + y) * self._shape[2] + x]

    def displaced(self, field: Any, offset: tuple[Any, Any, Any]) -> Any:
        return _interpolated(self._xp, field, self._position, offset)


def _reflected(places: Any, length: int) -> Any:
    """Positions outside an axis mirrored about its borders (d c b a | a b c d | d c b a)."""
    inside = int(places.min()) >= 0 and int(places.max()) < length if places.size else True
    return places if inside else mirrored(places, length)


def _interpolated(xp: Any, field: Any, position: tuple[Any, Any, Any], offset: tuple[Any, Any, Any]) -> Any:
    """Trilinear interpolation at integer positions plus offsets; weights come from the offsets alone, so the result
    does not depend on where the region starts."""
    strides = (field.shape[1] * field.shape[2], field.shape[2], 1)
    near, far, weights = [], [], []
    for axis in range(3):
        whole = xp.floor(offset[axis])
        weights.append(offset[axis] - whole)
        places = position[axis] + whole.astype(np.int64)
        near.append(_reflected(places, field.shape[axis]) * strides[axis])
        far.append(_reflected(places + 1, field.shape[axis]) * strides[axis])
    flat = field.ravel()

    def along_x(zy: Any) -> Any:
        low, high = flat[zy + near[2]], flat[zy + far[2]]
        return low + (high - low) * weights[2]

    def along_yx(z: Any) -> Any:
        low, high = along_x(z + near[1]), along_x(z + far[1])
        return low + (high - low) * weights[1]

    low, high = along_yx(near[0]), along_yx(far[0])
    return low + (high - low) * weights[0]
