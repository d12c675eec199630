"""Yardstick: the feature pool filter by filter, each feature computed by itself with SciPy and LAPACK."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.ndimage as ndi

from nx46vx.features.pool import NORMAL_SCALE, PLANARITY_EPSILON, feature_names
from nx46vx.features.reference import VolumeReference


def scipy_pool(v: np.ndarray, reference: VolumeReference, names: Sequence[str] | None = None) -> np.ndarray:
    """Features of a standardised volume (z, y, x), of its dtype, in pool order: what a user of SciPy would write."""
    return np.stack([scipy_feature(name, v, reference) for name in names or feature_names()])


def scipy_feature(
    name: str, v: np.ndarray, reference: VolumeReference, normal: np.ndarray | None = None
) -> np.ndarray:  # fmt: skip
    """One feature of a standardised volume; see ``nx46vx.features.pool`` for what it is. ``normal``: what ``normal_of``
    gives, where the caller has it."""
    family, scale = name.rsplit("_s", 1)
    s = int(scale)
    if family == "gauss":
        return smooth(v, s)
    if family == "gradmag":
        return np.sqrt(sum(part * part for part in gradient(smooth(v, s))))
    if family == "log":
        kernel = [1, -2, 1] if s == 1 else [0.25, 0, -0.5, 0, 0.25]
        smoothed = smooth(v, s)
        return s * s * sum(ndi.correlate1d(smoothed, kernel, axis=axis, mode="reflect") for axis in range(3))
    if family == "planarity":
        l3, l2, l1 = np.moveaxis(np.linalg.eigvalsh(tensor(v, s)), -1, 0)
        return (l1 - l2) / (l1 + l2 + l3 + PLANARITY_EPSILON)
    normal = normal_of(v, reference) if normal is None else normal
    if family in ("ridge", "bend2", "bend4"):
        distance = {"ridge": 3, "bend2": 2, "bend4": 4}[family]
        return displaced(v, s, distance * normal) + displaced(v, s, -distance * normal) - 2 * smooth(v, s)
    forward = reference.sign_skew * normal
    if family in ("step2", "step4"):
        distance = int(family[-1])
        return displaced(v, s, distance * forward) - displaced(v, s, -distance * forward)
    if family == "face":
        return 0.5 * (displaced(v, s, -forward) - displaced(v, s, -3 * forward))
    return sum(part * n for part, n in zip(gradient(smooth(v, s)), forward, strict=True))


def normal_of(v: np.ndarray, reference: VolumeReference) -> np.ndarray:
    """Sheet normals (3, z, y, x), on the side of the volume's direction."""
    n = np.moveaxis(np.linalg.eigh(tensor(v, NORMAL_SCALE))[1][..., -1], -1, 0)
    towards = sum(d * part for d, part in zip(reference.direction, n, strict=True))
    return np.where(towards >= 0, n, -n)


def clear_voxels(v: np.ndarray, reference: VolumeReference) -> np.ndarray:
    """Where the normal is well defined: the largest eigenvalue stands apart, and the side is no matter of rounding."""
    values, vectors = np.linalg.eigh(tensor(v.astype(np.float64), NORMAL_SCALE))
    cosine = np.abs(np.tensordot(np.array(reference.direction), np.moveaxis(vectors[..., -1], -1, 0), 1))
    return (values[..., 2] - values[..., 1] > 0.05 * values[..., 2]) & (cosine > 1e-3)


def smooth(v: np.ndarray, sigma: float) -> np.ndarray:
    """G(sigma), cut off at three sigma."""
    return ndi.gaussian_filter(v, sigma, mode="reflect", truncate=3.0)


def gradient(field: np.ndarray) -> list[np.ndarray]:
    """Central differences along z, y, x; beyond the border stands the nearest voxel."""
    return [ndi.correlate1d(field, [-0.5, 0, 0.5], axis=axis, mode="reflect") for axis in range(3)]


def tensor(v: np.ndarray, rho: int) -> np.ndarray:
    """Structure tensor (z, y, x, 3, 3) of the gradient of G(1), smoothed over rho."""
    g = gradient(smooth(v, 1))
    parts = {(i, j): smooth(g[i] * g[j], rho) for i in range(3) for j in range(i, 3)}
    return np.stack([np.stack([parts[min(i, j), max(i, j)] for j in range(3)], -1) for i in range(3)], -1)


def displaced(v: np.ndarray, sigma: int, offset: np.ndarray) -> np.ndarray:
    """G(sigma) at each voxel plus ``offset`` (3, z, y, x), interpolated linearly."""
    return ndi.map_coordinates(smooth(v, sigma), np.indices(v.shape) + offset, order=1, mode="reflect")
