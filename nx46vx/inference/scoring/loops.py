"""Loops that both masks have: an exact count over Z/2, without a boundary matrix.

By Alexander duality a loop of a mask is a loop of its background, as a graph of cubes (of eight voxels, and one node
for the outside) that squares (of four voxels) join; squares around one edge (of two voxels) bound. The background of
the union is filled square by square in raster order, and a loop of the union is named by the square that fills it.
Taken from last to first, that is the square that closes the loop of the background.

Each mask's background contains the union's. What it has more turns some of the union's loops into boundaries, always
the youngest that is free; the loops that are left are those which the mask's own loops become in the union. A loop
matches when it is left by both masks.

So: close loops along a spanning forest, write each edge as a relation between closing squares, and eliminate the
youngest square of each relation. Nearly all relations have one or two squares and cost a union-find each.
"""

from __future__ import annotations

import numpy as np

from nx46vx.inference.scoring import sweep


def matched_loops(prediction: np.ndarray, label: np.ndarray) -> int:
    """Loops of the union that both masks have; bool volumes (z, y, x) of one shape."""
    union = ~(prediction | label)
    predicted, true = (_loops_left(union, ~mask) for mask in (prediction, label))
    return int(np.intersect1d(predicted, true, assume_unique=True).size)


def _loops_left(union: np.ndarray, wider: np.ndarray) -> np.ndarray:
    """Closing squares of the background ``union`` whose loops do not bound, nor equal older ones, in ``wider``."""
    shape = tuple(n + 1 for n in union.shape)
    strides = np.array([shape[1] * shape[2], shape[2], 1])
    age = _cells(union, across=True)
    age += _cells(wider, across=True)  # 2 in the union's background, 1 in the wider one only
    edge = _cells(wider, across=False)
    kind = np.int32 if age.size < np.iinfo(np.int32).max else np.int64
    rep = np.full(age.size + 1, age.size, kind)
    sweep.close_loops(rep, age, _cubes(shape, kind), strides)
    sweep.merge_squares(rep, age, edge, strides)
    rows = np.empty((np.count_nonzero(edge), 4), kind)
    sweep.relations(rep, edge, strides, rows)
    own = np.flatnonzero((rep[:-1] == np.arange(age.size, dtype=kind)) & (age == 2))
    return np.setdiff1d(own, _eliminated(rows, age), assume_unique=True)


def _eliminated(rows: np.ndarray, age: np.ndarray) -> np.ndarray:
    """Squares that the relations express by older ones; ``rows`` (relations, 4), -1 where there is no square."""
    squares = np.unique(rows)
    squares = squares[squares >= 0]
    by_age = np.lexsort((squares, age[squares]))
    rank = np.empty(squares.size, np.int32)
    rank[by_age] = np.arange(squares.size, dtype=np.int32)
    ranked = np.full(rows.shape, -1, np.int32)
    ranked[rows >= 0] = rank[np.searchsorted(squares, rows[rows >= 0])]
    ranked.sort(axis=1)
    start = np.full(squares.size, -1)
    sweep.leading(ranked, start)
    return squares[by_age[start >= 0]]


def _cells(background: np.ndarray, *, across: bool) -> np.ndarray:
    """Flat uint8: for each voxel of the padded lattice and axis, whether the cell there touches the background.

    The cell is the square ``across`` the axis, or the edge along it.
    """
    cells = np.zeros((*(n + 1 for n in background.shape), 3), np.uint8)
    for axis in range(3):
        touched = background
        for along in range(3):
            if (along != axis) == across:
                low, high = ((slice(None),) * along + (part,) for part in (slice(-1), slice(1, None)))
                touched = touched[low] | touched[high]
        z, y, x = touched.shape
        cells[1 : z + 1, 1 : y + 1, 1 : x + 1, axis] = touched
    return cells.ravel()


def _cubes(shape: tuple[int, ...], kind: type) -> np.ndarray:
    """Flat parents of the padded lattice's cubes: each its own, those outside of the volume the last one."""
    size = int(np.prod(shape))
    parent: np.ndarray = np.full(shape, size - 1, kind)
    inside = tuple(slice(1, n - 1) for n in shape)
    parent[inside] = np.arange(size, dtype=kind).reshape(shape)[inside]
    return parent.ravel()
