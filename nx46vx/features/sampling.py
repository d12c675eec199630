"""Which voxels of a case are used, drawn from seeds that no other case can change."""

from __future__ import annotations

import hashlib

import numpy as np


def case_seed(seed: int, case_id: str, role: str) -> np.random.SeedSequence:
    """Seed of one case's draws: from the run's seed, the case's name and what the draw is for, and nothing else."""
    digest = hashlib.sha512(f"{role}\0{case_id}".encode()).digest()
    words = np.frombuffer(digest[:16], "<u4")
    return np.random.SeedSequence(seed, spawn_key=tuple(int(word) for word in words))


def sample_balanced(label: np.ndarray, limit: int, seed: np.random.SeedSequence) -> np.ndarray:
    """Equal numbers of voxels labelled 1 and 0, at most ``limit`` in all, without replacement.

    Args:
        label: ``(z, y, x)`` uint8 of 0, 1 and 2; voxels with 2 are never drawn.
        limit: most voxels in all; of an odd limit one is left over.
        seed: of the draw.

    Returns:
        Sorted flat indices, int64; empty where a class is missing.
    """
    per_plane = _class_counts(label)
    zeros, ones = int(per_plane[0].sum()), int(per_plane[1].sum())
    each = min(limit // 2, zeros, ones)
    rng = np.random.default_rng(seed)
    chosen = []
    for value, total in ((1, ones), (0, zeros)):
        ranks = np.sort(rng.choice(total, each, replace=False)) if each else np.empty(0, np.int64)
        chosen.append(_flat_of_ranks(label, ranks, per_plane[value], (value,)))
    return np.sort(np.concatenate(chosen))


def sample_natural(label: np.ndarray, limit: int, seed: np.random.SeedSequence) -> np.ndarray:
    """At most ``limit`` voxels, each labelled one (0 or 1) being equally likely; sorted flat indices, int64."""
    per_plane = _class_counts(label).sum(axis=0)
    total = int(per_plane.sum())
    size = min(limit, total)
    ranks = np.sort(np.random.default_rng(seed).choice(total, size, replace=False)) if size else np.empty(0, np.int64)
    return _flat_of_ranks(label, ranks, per_plane, (0, 1))


def labelled_counts(label: np.ndarray) -> tuple[int, int]:
    """Numbers of voxels labelled 0 and 1."""
    zeros, ones = _class_counts(label).sum(axis=1)
    return int(zeros), int(ones)


def spatial_blocks(index: np.ndarray, shape: tuple[int, int, int], edge: int = 32) -> np.ndarray:
    """Number of the cube (``edge`` voxels wide) that each voxel lies in, int32; neighbours are too alike to be counted
    as independent, cubes are what a bootstrap draws."""
    z, y, x = np.unravel_index(index, shape)
    _, ny, nx = (-(-n // edge) for n in shape)
    return (((z // edge) * ny + y // edge) * nx + x // edge).astype(np.int32)


def _class_counts(label: np.ndarray) -> np.ndarray:
    """``(2, z)`` int64: voxels labelled 0 and 1 in each plane."""
    counts = [(np.count_nonzero(plane == 0), np.count_nonzero(plane == 1)) for plane in label]
    return np.array(counts, np.int64).reshape(-1, 2).T


def _flat_of_ranks(label: np.ndarray, ranks: np.ndarray, per_plane: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    """Flat index of the r-th voxel (in memory order) that holds one of ``values``, for each sorted rank r."""
    ends = np.cumsum(per_plane)
    plane_size = label[0].size if len(label) else 0
    out = np.empty(len(ranks), np.int64)
    cuts = np.searchsorted(ranks, np.concatenate([[0], ends]))
    for z in range(len(label)):
        low, high = cuts[z], cuts[z + 1]
        if low < high:
            places = np.flatnonzero(np.isin(label[z], values))
            out[low:high] = z * plane_size + places[ranks[low:high] - (ends[z] - per_plane[z])]
    return out
