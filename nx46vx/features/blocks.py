"""Features of a volume block by block: each block is read with a halo, so its values are those of the whole volume."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from nx46vx.features.extractors import compute_points, compute_window, gradient_magnitude, standardise
from nx46vx.features.fields import Fields
from nx46vx.features.pool import HALO
from nx46vx.features.reference import VolumeReference
from nx46vx.features.views import Window

_STENCIL = ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))


def block_windows(shape: Sequence[int], block: int) -> Iterator[Window]:
    """Boxes of at most ``block`` voxels' edge that cover a volume once, in (z, y, x) order."""
    axes = [[slice(start, min(start + block, length)) for start in range(0, length, block)] for length in shape]
    yield from itertools.product(*axes)


def iter_blocks(
    volume: np.ndarray,
    reference: VolumeReference,
    names: Sequence[str],
    *,
    block: int,
    gradients: bool = True,
    where: np.ndarray | None = None,
) -> Iterator[tuple[Window, np.ndarray, np.ndarray]]:
    """Yield ``(window, x, g)`` for each block of a volume.

    Args:
        volume: ``(z, y, x)`` uint8; only one block and its halo are read at a time.
        reference: measured on the whole volume.
        names: features wanted, in order.
        block: edge of the blocks, voxels.
        gradients: whether ``g`` is wanted; without it ``g`` has no rows.
        where: blocks without any of these voxels are skipped; ``(z, y, x)`` bool, or flat indices.

    Yields:
        The block's place in the volume; features ``(F, bz, by, bx)`` float32; their spatial gradient magnitudes, alike.
    """
    wanted = None if where is None else _wanted_blocks(where, volume.shape, block)
    for place, window in enumerate(block_windows(volume.shape, block)):
        if wanted is not None and not wanted[place]:
            continue
        if not gradients:
            fields, inner = _region(volume, window, reference)
            x = compute_window(fields, inner, reference, names)
            yield window, x, np.empty((0, *x.shape[1:]), np.float32)
            continue
        wider = _grown(window, volume.shape, 1)
        fields, inner = _region(volume, wider, reference)
        x = compute_window(fields, inner, reference, names)
        del fields
        core = tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(window, wider, strict=True))
        g = np.stack([gradient_magnitude(feature)[core] for feature in x])
        yield window, x[(slice(None), *core)], g


def sample_features(
    volume: np.ndarray, reference: VolumeReference, names: Sequence[str], index: np.ndarray, *, block: int
) -> np.ndarray:
    """Features and their spatial gradient magnitudes at single voxels.

    Args:
        volume: ``(z, y, x)`` uint8.
        reference: measured on the whole volume.
        names: features wanted, in order.
        index: flat voxel indices, any order, ``(n,)``.
        block: edge of the blocks the volume is processed in; changes no value.

    Returns:
        ``(2 F, n)`` float32: F rows of features, then F rows of gradient magnitudes.
    """
    count = len(names)
    out = np.empty((2 * count, len(index)), np.float32)
    z, y, x = np.unravel_index(index, volume.shape)
    member = _block_of((z, y, x), volume.shape, block)
    order = np.argsort(member, kind="stable")
    bounds = np.searchsorted(member[order], np.arange(_block_count(volume.shape, block) + 1))
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
        out[:, here] = _sample_block(volume, tight, points, reference, names)
    return out


def _sample_block(
    volume: np.ndarray,
    window: Window,
    points: tuple[np.ndarray, np.ndarray, np.ndarray],
    reference: VolumeReference,
    names: Sequence[str],
) -> np.ndarray:
    """Sampled features of one block: dense where most voxels are needed anyway, else only where samples fall."""
    wider = _grown(window, volume.shape, 1)
    fields, inner = _region(volume, wider, reference)
    if (1 + len(_STENCIL)) * len(points[0]) >= np.prod([part.stop - part.start for part in wider]):
        dense = compute_window(fields, inner, reference, names)
        del fields
        place = tuple(p - part.start for p, part in zip(points, wider, strict=True))
        x = [feature[place] for feature in dense]
        return np.stack(x + [gradient_magnitude(feature)[place] for feature in dense])
    # Each voxel and its six neighbours (reflected at the volume's border), every voxel once.
    shape = fields.shape
    local = [p - part.start + core.start for p, part, core in zip(points, wider, inner, strict=True)]
    stencil = [local] + [
        [np.clip(p + step, 0, n - 1) for p, step, n in zip(local, offset, shape, strict=True)] for offset in _STENCIL
    ]
    flat = np.stack([(az * shape[1] + ay) * shape[2] + ax for az, ay, ax in stencil])
    unique, inverse = np.unique(flat, return_inverse=True)
    values = compute_points(fields, np.unravel_index(unique, shape), reference, names)
    centre, *sides = (values[:, row] for row in inverse.reshape(flat.shape))
    total = np.zeros_like(centre)
    for ahead, behind in zip(sides[0::2], sides[1::2], strict=True):
        slope = np.float32(0.5) * (ahead - behind)
        total += slope * slope
    return np.concatenate([centre, np.sqrt(total)])


def _region(volume: np.ndarray, window: Window, reference: VolumeReference) -> tuple[Fields, Window]:
    """Fields of a box and its halo, and where the box lies in them."""
    outer = _grown(window, volume.shape, HALO)
    inner = tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(window, outer, strict=True))
    return Fields(standardise(volume[outer], reference)), (inner[0], inner[1], inner[2])


def _grown(window: Window, shape: Sequence[int], by: int) -> Window:
    z, y, x = (slice(max(0, part.start - by), min(n, part.stop + by)) for part, n in zip(window, shape, strict=True))
    return z, y, x


def _block_count(shape: Sequence[int], block: int) -> int:
    return int(np.prod([-(-n // block) for n in shape]))


def _block_of(points: tuple[np.ndarray, ...], shape: Sequence[int], block: int) -> np.ndarray:
    """Number of the block each voxel lies in, in the order of ``block_windows``."""
    z, y, x = points
    _, ny, nx = (-(-n // block) for n in shape)
    return ((z // block) * ny + y // block) * nx + x // block


def _wanted_blocks(where: np.ndarray, shape: Sequence[int], block: int) -> np.ndarray:
    if where.dtype == np.bool_:
        return np.array([bool(where[window].any()) for window in block_windows(shape, block)])
    wanted = np.zeros(_block_count(shape, block), bool)
    wanted[_block_of(np.unravel_index(where, tuple(shape)), shape, block)] = True
    return wanted
