"""Features of a volume block by block: each block is read with a halo, so its values are those of the whole volume."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from nx46vx.features.backend import Backend, BlockFeatures, backend
from nx46vx.features.reference import VolumeReference
from nx46vx.features.smoothing import Window, grown
from nx46vx.features.spread import spread

#: Planes that a slab should have at least: each slab computes a few more than it has.
_THICK = 16
_STENCIL = ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))

#: Takes a plane's number in its block, the features before it, its own, and those after it (see ``BlockFeatures``).
OnPlane = Callable[[int, np.ndarray, np.ndarray, np.ndarray], None]


def block_windows(shape: Sequence[int], block: int) -> Iterator[Window]:
    """Boxes of at most ``block`` cubed voxels that cover a volume once, in (z, y, x) order.

    Slabs of whole planes, which have the fewest neighbours, where they are thick enough; else cubes.
    """
    z, y, x = ([slice(a, b) for a, b in itertools.pairwise(cuts)] for cuts in _cuts(shape, block))
    yield from itertools.product(z, y, x)


def _cuts(shape: Sequence[int], block: int) -> list[list[int]]:
    """Where the blocks' borders lie on each axis."""
    depth = block**3 // (shape[1] * shape[2])
    if depth < min(_THICK, shape[0]):
        return [[*range(0, length, block), length] for length in shape]
    pieces = -(-shape[0] // depth)
    return [[shape[0] * piece // pieces for piece in range(pieces + 1)], [0, shape[1]], [0, shape[2]]]


def each_plane(
    block: BlockFeatures, window: Window, shape: Sequence[int], on_plane: OnPlane, *, threads: int
) -> None:  # fmt: skip
    """Call ``on_plane(number, before, here, after)`` for each plane of a block, each thread on a range of its own.

    Outside the volume the nearest plane stands for a neighbour.
    """
    low, high = window[0].start, window[0].stop

    def some(first: int, last: int) -> None:
        start, stop = low + first, low + last
        planes = block.planes(max(start - 1, 0), min(stop + 1, shape[0]))
        before = here = next(planes)
        if start > 0:
            here = next(planes)
        for number in range(first, last):
            after = next(planes, here)
            on_plane(number, before, here, after)
            before, here = here, after

    spread(some, high - low, threads, -(-(high - low) // max(1, threads)))


def iter_blocks(
    volume: np.ndarray,
    reference: VolumeReference,
    names: Sequence[str],
    *,
    block: int,
    gradients: bool = True,
    where: np.ndarray | None = None,
    threads: int = 1,
    how: Backend | None = None,
) -> Iterator[tuple[Window, np.ndarray, np.ndarray]]:
    """Yield ``(window, x, g)`` for each block of a volume.

    Args:
        volume: ``(z, y, x)`` uint8; only one block and its halo are read at a time.
        reference: measured on the whole volume.
        names: features wanted, in order.
        block: edge of the cube that no block is larger than, voxels.
        gradients: whether ``g`` is wanted; without it ``g`` has no rows.
        where: blocks without any of these voxels are skipped; ``(z, y, x)`` bool, or flat indices.
        threads: share the work; they change no value, nor does ``how``.

    Yields:
        The block's place in the volume; features ``(F, bz, by, bx)`` float32; their spatial gradient magnitudes, alike.
    """
    how = how or backend()
    wanted = None if where is None else _wanted_blocks(where, volume.shape, block)
    for place, window in enumerate(block_windows(volume.shape, block)):
        if wanted is not None and not wanted[place]:
            continue
        features = how.block(volume, window, reference, names, threads=threads)
        edges = tuple(part.stop - part.start for part in window)
        x = np.empty((len(names), *edges), np.float32)
        g = np.empty((len(names) if gradients else 0, *edges), np.float32)
        each_plane(features, window, volume.shape, partial(_fill, x, g, how), threads=threads)
        del features
        yield window, x, g
        del x, g  # the caller may let go of them now


def _fill(
    x: np.ndarray, g: np.ndarray, how: Backend, number: int, before: np.ndarray, here: np.ndarray, after: np.ndarray
) -> None:
    x[:, number] = here[:, 1:-1, 1:-1]
    if len(g):
        g[:, number] = how.slopes(before, here, after)


def sample_features(
    volume: np.ndarray, reference: VolumeReference, names: Sequence[str], index: np.ndarray, *, block: int,
    threads: int = 1, how: Backend | None = None,
) -> np.ndarray:  # fmt: skip
    """Features and their spatial gradient magnitudes at single voxels.

    Args:
        volume: ``(z, y, x)`` uint8.
        reference: measured on the whole volume.
        names: features wanted, in order.
        index: flat voxel indices, any order, ``(n,)``.
        block: edge of the cube that no block is larger than, voxels; changes no value.
        threads: share the work; they change no value, nor does ``how``.

    Returns:
        ``(2 F, n)`` float32: F rows of features, then F rows of gradient magnitudes.
    """
    how = how or backend()
    out = np.empty((2 * len(names), len(index)), np.float32)
    z, y, x = np.unravel_index(index, volume.shape)
    member = _block_of((z, y, x), volume.shape, block)
    order = np.argsort(member, kind="stable")
    bounds = np.searchsorted(member[order], np.arange(member.max(initial=0) + 2))
    for first, last in itertools.pairwise(bounds):
        here = order[first:last]
        if len(here) == 0:
            continue
        points = (z[here], y[here], x[here])
        tight = (
            slice(int(points[0].min()), int(points[0].max()) + 1),
            slice(int(points[1].min()), int(points[1].max()) + 1),
            slice(int(points[2].min()), int(points[2].max()) + 1),
        )
        out[:, here] = _sample_block(volume, tight, points, reference, names, how, threads)
    return out


def _sample_block(
    volume: np.ndarray,
    window: Window,
    points: tuple[np.ndarray, np.ndarray, np.ndarray],
    reference: VolumeReference,
    names: Sequence[str],
    how: Backend,
    threads: int,
) -> np.ndarray:
    """Sampled features of one block: dense where most voxels are needed anyway, else only where samples fall."""
    features = how.block(volume, window, reference, names, threads=threads)
    out = np.empty((2 * len(names), len(points[0])), np.float32)
    if (1 + len(_STENCIL)) * len(points[0]) >= np.prod([part.stop - part.start for part in window]):
        take = partial(_take, out, _by_plane(points, window), how)
        each_plane(features, window, volume.shape, take, threads=threads)
        return out
    # Each voxel and its six neighbours (reflected at the volume's border), every voxel once.
    wider = grown(window, volume.shape, 1)
    shape = [part.stop - part.start for part in wider]
    local = [
        np.clip(np.stack([place + step for step in (0, *steps)]), part.start, part.stop - 1) - part.start
        for place, steps, part in zip(points, zip(*_STENCIL, strict=True), wider, strict=True)
    ]
    unique, inverse = np.unique(np.ravel_multi_index(local, shape), return_inverse=True)
    places = (place + part.start for place, part in zip(np.unravel_index(unique, shape), wider, strict=True))
    values = features.points(*places)
    centre, *sides = (values[:, row] for row in inverse.reshape(local[0].shape))
    total = np.zeros_like(centre)
    for ahead, behind in zip(sides[0::2], sides[1::2], strict=True):
        slope = np.float32(0.5) * (ahead - behind)
        total += slope * slope
    out[: len(names)], out[len(names) :] = centre, np.sqrt(total)
    return out


def _by_plane(points: tuple[np.ndarray, ...], window: Window) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """For each plane of a window, which of some voxels lie in it, and where."""
    z, y, x = (place - part.start for place, part in zip(points, window, strict=True))
    order = np.argsort(z, kind="stable")
    bounds = np.searchsorted(z[order], np.arange(window[0].stop - window[0].start + 1))
    return [(order[a:b], y[order[a:b]], x[order[a:b]]) for a, b in itertools.pairwise(bounds)]


def _take(
    out: np.ndarray, chosen: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], how: Backend,
    number: int, before: np.ndarray, here: np.ndarray, after: np.ndarray,
) -> None:  # fmt: skip
    rows, y, x = chosen[number]
    count = len(here)
    out[:count, rows], out[count:, rows] = here[:, y + 1, x + 1], how.slopes(before, here, after)[:, y, x]


def _block_of(points: tuple[np.ndarray, ...], shape: Sequence[int], block: int) -> np.ndarray:
    """Number of the block each voxel lies in, in the order of ``block_windows``."""
    member = np.zeros(len(points[0]), np.int64)
    for places, cuts in zip(points, _cuts(shape, block), strict=True):
        member = member * (len(cuts) - 1) + np.searchsorted(cuts, places, side="right") - 1
    return member


def _wanted_blocks(where: np.ndarray, shape: Sequence[int], block: int) -> np.ndarray:
    windows = list(block_windows(shape, block))
    if where.dtype == np.bool_:
        return np.array([bool(where[window].any()) for window in windows])
    wanted = np.zeros(len(windows), bool)
    wanted[_block_of(np.unravel_index(where, tuple(shape)), shape, block)] = True
    return wanted
