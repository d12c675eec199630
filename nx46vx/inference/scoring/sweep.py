"""The compiled part of loop matching: closing squares, the relations between them, and their elimination.

All arrays are flat over a lattice with one layer of padding before the volume: voxel ``v`` has three squares and three
edges, ``3 v + axis``; a square lies across its axis, an edge along it. A larger number comes later in the raster.
"""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(nogil=True)
def _find(parent: np.ndarray, item: int) -> int:
    while parent[item] != item:
        parent[item] = parent[parent[item]]
        item = parent[item]
    return item


@numba.njit(nogil=True)
def close_loops(rep: np.ndarray, age: np.ndarray, node: np.ndarray, strides: np.ndarray) -> None:
    """Add squares from last to first, the older age before; one whose two sides are joined already closes a loop.

    ``node`` holds the cubes' parents. ``rep[s] = s`` is set for closing squares; the others keep "no square".
    """
    for wanted in (2, 1):
        for s in range(age.size - 1, -1, -1):
            if age[s] == wanted:
                v = s // 3
                a, b = _find(node, v), _find(node, v - strides[s - 3 * v])
                if a == b:
                    rep[s] = s
                else:
                    node[min(a, b)] = max(a, b)


@numba.njit(nogil=True)
def _around(rep: np.ndarray, e: int, strides: np.ndarray, term: np.ndarray) -> int:
    """Representatives, over Z/2, of the squares around edge ``e``; returns how many there are."""
    v = e // 3
    axis = e - 3 * v
    none = rep.size - 1
    count = 0
    for i in range(4):
        across = (axis + 1 + (i & 1)) % 3  # the square's own axis; it spans the edge's and the third one
        third = 3 - axis - across
        r = _find(rep, 3 * (v - (i >> 1) * strides[third]) + across)
        if r == none:
            continue
        for j in range(count):
            if term[j] == r:
                count -= 1
                term[j] = term[count]
                r = none
                break
        if r != none:
            term[count] = r
            count += 1
    return count


@numba.njit(nogil=True)
def merge_squares(rep: np.ndarray, age: np.ndarray, edge: np.ndarray, strides: np.ndarray) -> None:
    """Use up the relations of at most two squares: one is no loop, two are the same and the older stands for both.

    ``edge`` marks the relations; those of three or four squares stay marked.
    """
    term = np.empty(4, rep.dtype)
    merged = True
    while merged:
        merged = False
        for e in range(edge.size - 1, -1, -1):
            if edge[e]:
                count = _around(rep, e, strides, term)
                if count > 2:
                    continue
                edge[e] = 0
                if count:
                    merged = True
                    young = term[0]
                    old = rep[rep.size - 1] if count == 1 else term[1]
                    if count == 2 and (age[young] > age[old] or (age[young] == age[old] and young > old)):
                        young, old = old, young
                    rep[young] = old


@numba.njit(nogil=True)
def relations(rep: np.ndarray, edge: np.ndarray, strides: np.ndarray, rows: np.ndarray) -> None:
    """Fill ``rows`` (relations, 4) with the squares of the marked relations; -1 elsewhere."""
    term = np.empty(4, rep.dtype)
    row = 0
    for e in range(edge.size - 1, -1, -1):
        if edge[e]:
            count = _around(rep, e, strides, term)
            for j in range(4):
                rows[row, j] = term[j] if j < count else -1
            row += 1


@numba.njit(nogil=True)
def _copy(source: np.ndarray, size: int, room: int) -> np.ndarray:
    """The first ``size`` items at the head of a new array; a slice would cost seconds to compile."""
    target = np.empty(room, source.dtype)
    for i in range(size):
        target[i] = source[i]
    return target


@numba.njit(nogil=True)
def leading(rows: np.ndarray, start: np.ndarray) -> None:
    """Bring rows over Z/2 to echelon form; ``start`` of a variable becomes nonnegative when it leads a row.

    ``rows`` (relations, 4) holds variables, ascending, -1 first; ``start`` comes filled with -1.
    """
    stop = np.zeros_like(start)
    pool = np.empty(4 * rows.shape[0] + 16, rows.dtype)
    row = np.empty(16, rows.dtype)
    work = np.empty(16, rows.dtype)
    used = 0
    for i in range(rows.shape[0]):
        size = 0
        for j in range(4):
            if rows[i, j] >= 0:
                row[size] = rows[i, j]
                size += 1
        while size and start[row[0]] >= 0:
            a, b, end, k = 0, start[row[0]], stop[row[0]], 0
            if size + end - b > work.size:
                work = _copy(work, 0, 2 * (size + end - b))
            while a < size or b < end:  # symmetric difference of two ascending rows
                take, give = b == end or (a < size and row[a] <= pool[b]), a == size or (b < end and pool[b] <= row[a])
                if take != give:
                    work[k] = row[a] if take else pool[b]
                    k += 1
                a += take
                b += give
            row, work = work, row
            size = k
        if size:
            if used + size > pool.size:
                pool = _copy(pool, used, 2 * (used + size))
            start[row[0]] = used
            for j in range(size):
                pool[used + j] = row[j]
            used += size
            stop[row[0]] = used
