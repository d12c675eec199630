"""The eight parts of a volume whose topology is counted one by one."""

from __future__ import annotations

from itertools import product

Window = tuple[slice, slice, slice]


def octants(shape: tuple[int, ...]) -> list[Window]:
    """Windows into a (z, y, x) volume: each axis is halved, the first half is the larger one of an odd axis."""
    z, y, x = ([slice(0, n - n // 2), slice(n - n // 2, n)] for n in shape)
    return [(a, b, c) for a, b, c in product(z, y, x) if all(part.stop > part.start for part in (a, b, c))]
