"""Betti matching by its definition: boundary matrices over Z/2, reduced column by column. For tiny volumes."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np

Cell = tuple[tuple[int, ...], tuple[int, ...]]


def cells(shape: tuple[int, ...], dimension: int) -> list[Cell]:
    """Cells of the whole volume in raster order, as (first voxel, axes); of one voxel, the lowest normal axis first."""
    kinds = list(combinations(range(3), dimension))
    if dimension == 2:
        kinds.reverse()  # across axis 0 comes first
    return [
        (voxel, axes)
        for voxel in product(*map(range, shape))
        for axes in kinds
        if all(voxel[axis] + 1 < shape[axis] for axis in axes)
    ]


def _corner(voxel: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(n + (a == axis) for a, n in enumerate(voxel))


def faces(cell: Cell) -> list[Cell]:
    voxel, axes = cell
    rests = [tuple(a for a in axes if a != axis) for axis in axes]
    return [(at, rest) for axis, rest in zip(axes, rests, strict=True) for at in (voxel, _corner(voxel, axis))]


def birth(cell: Cell, mask: np.ndarray) -> int:
    """0 for cells of the foreground, 1 for those that come with the background."""
    voxel, axes = cell
    window = tuple(slice(n, n + 1 + (a in axes)) for a, n in enumerate(voxel))
    return int(not mask[window].all())


def matched_and_own(prediction: np.ndarray, label: np.ndarray) -> list[tuple[int, int, int]]:
    """(matched, predicted, true) for dimensions 0, 1 and 2: features of the foreground that the background ends."""
    union = prediction | label
    counts = []
    for dimension in range(3):
        ends = [_ends(mask, union, dimension) for mask in (prediction, label)]
        own = [_ends(mask, mask, dimension) for mask in (prediction, label)]
        counts.append((len(ends[0] & ends[1]), len(own[0]), len(own[1])))
    return counts


def _ends(inner: np.ndarray, outer: np.ndarray, dimension: int) -> set[Cell]:
    """Cells by which the outer mask's background ends the classes that come from the inner mask (its foreground)."""
    rows = sorted(cells(inner.shape, dimension), key=lambda cell: birth(cell, inner))  # stable: raster order within
    columns = sorted(cells(inner.shape, dimension + 1), key=lambda cell: birth(cell, outer))
    place = {cell: n for n, cell in enumerate(rows)}
    reduced: dict[int, int] = {}
    ends = set()
    for cell in columns:
        column = 0
        for face in faces(cell):
            column ^= 1 << place[face]
        while column and (pivot := column.bit_length() - 1) in reduced:
            column ^= reduced[pivot]
        if column:
            reduced[pivot] = column
            if birth(rows[pivot], inner) == 0 and birth(cell, outer) == 1:
                ends.add(cell)
    return ends
