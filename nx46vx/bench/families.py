"""Candidate families that the feature pool lacks, each computed plainly on a whole volume: what ``bench pool`` tries.

All take v, a robustly standardised volume (z, y, x) float32. G(s) is v smoothed by a Gaussian of s voxels, grad are
central differences, n is the sheet normal, A the volume axis that the sheets mainly face; e = 1e-3 keeps logarithms and
quotients of flat places finite. No value depends on how the volume lies: every family turns with it.

- dog: G(s) - G(1.6 s), s = 1, 2, 4 (Marr and Hildreth 1980).
- frequency: band k = G(2^k) - G(2^(k+1)), k = 0, 1, 2, its energy E_k = band^2 smoothed over 4 voxels; shares of E_0
  and E_2 in the sum, log of the sum; and the local frequency sqrt(mean |grad G(1)|^2 / variance of G(1)) / 2 pi in
  cycles per voxel, both over a Gaussian of 4 voxels (of a plane wave it is the wave's frequency).
- hessian: eigenvalues of s^2 times the Hessian of G(s), |l1| >= |l2| >= |l3|, s = 1, 2.
- sheetness: exp(-(l2 / l1)^2 / 0.5) (1 - exp(-((2 |l1| - |l2| - |l3|) / l1)^2 / 0.5)) (1 - exp(-2 sum l^2)) where
  l1 < 0 (bright sheets), else 0 (Descoteaux et al. 2005, with c = 0.5 on the standardised volume).
- coherence: ((t1 - t3) / (t1 + t3))^2 and linearity (t2 - t3) / (t1 + t2 + t3) of the structure tensor's eigenvalues
  t1 >= t2 >= t3, rho = 2, 4.
- interslice: |G(p + d A) - G(p - d A)| and G(p + d A) + G(p - d A) - 2 G(p) of G(1), d = 2.
- contrast: (G(1) - mean) / (deviation + e) of v in a cube of 9 and of 17 voxels.
- texture: log of the variance of G(1) at p + k n, k = -3 .. 3, and that log less the log of the variance at p and at
  the six p +- 3 t_i; t_i is the i-th axis less its part along n.
- variance: log of the variance of v over a Gaussian of 2 and of 4 voxels.
- entropy: entropy, in nats, of v cut to [-3, 3) in 12 bins, in a cube of 5 and of 9 voxels.
- rank: share of a cube's voxels whose value is below the centre's; v in a cube of 5, G(1) in a cube of 7 voxels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import scipy.ndimage as ndi

from nx46vx.bench.scipy_pool import displaced, gradient, smooth
from nx46vx.features.extractors import compute_pool
from nx46vx.features.pool import NORMAL
from nx46vx.features.reference import VolumeReference
from nx46vx.features.symmetric_eig import COMPONENTS, eigenvalues

EPSILON = np.float32(1e-3)


@dataclass(frozen=True)
class CandidateFamily:
    """A family's name, its features' names, and what computes them: (v, reference) -> one volume a feature."""

    family: str
    names: tuple[str, ...]
    compute: Callable[[np.ndarray, VolumeReference], list[np.ndarray]]


def _dog(v: np.ndarray, _: VolumeReference) -> list[np.ndarray]:
    return [smooth(v, s) - smooth(v, 1.6 * s) for s in (1, 2, 4)]


def _frequency(v: np.ndarray, _: VolumeReference) -> list[np.ndarray]:
    levels = [smooth(v, s) for s in (1, 2, 4, 8)]
    energy = [smooth((fine - coarse) ** 2, 4) for fine, coarse in pairwise(levels)]
    total = sum(energy) + EPSILON
    slope = smooth(sum(part * part for part in gradient(levels[0])), 4)
    frequency = np.sqrt(slope / (_variance_of(levels[0], 4) + EPSILON)) / (2 * np.pi)
    return [energy[0] / total, energy[2] / total, np.log(total), frequency]


def hessian_eigenvalues(v: np.ndarray, s: int) -> np.ndarray:
    """Eigenvalues (3, z, y, x) of s^2 times the Hessian of G(s), the largest magnitude first."""
    orders = [tuple((axis == i) + (axis == j) for axis in range(3)) for i, j in COMPONENTS]
    parts = [s * s * ndi.gaussian_filter(v.astype(np.float64), s, order=order, mode="reflect") for order in orders]
    found = np.stack(eigenvalues(parts)[:3])
    return np.take_along_axis(found, np.argsort(-np.abs(found), axis=0, kind="stable"), axis=0)


def _hessian(v: np.ndarray, _: VolumeReference) -> list[np.ndarray]:
    return [*hessian_eigenvalues(v, 1), *hessian_eigenvalues(v, 2)]


def _sheetness(v: np.ndarray, _: VolumeReference) -> list[np.ndarray]:
    found = []
    for s in (1, 2):
        l1, l2, l3 = hessian_eigenvalues(v, s)
        largest = np.maximum(np.abs(l1), 1e-12)
        sheet = np.exp(-((l2 / largest) ** 2) / 0.5)
        no_blob = 1 - np.exp(-(((2 * largest - np.abs(l2) - np.abs(l3)) / largest) ** 2) / 0.5)
        no_noise = 1 - np.exp(-2 * (l1 * l1 + l2 * l2 + l3 * l3))
        found.append(np.where(l1 < 0, sheet * no_blob * no_noise, 0.0))
    return found


def _coherence(v: np.ndarray, _: VolumeReference) -> list[np.ndarray]:
    slopes = gradient(smooth(v, 1))
    found = []
    for rho in (2, 4):
        t1, t2, t3, _size = eigenvalues([smooth(slopes[i] * slopes[j], rho).astype(float) for i, j in COMPONENTS])
        found += [((t1 - t3) / (t1 + t3 + 1e-6)) ** 2, (t2 - t3) / (t1 + t2 + t3 + 1e-6)]
    return found


def _interslice(v: np.ndarray, reference: VolumeReference) -> list[np.ndarray]:
    axis = int(np.argmax(np.abs(reference.direction)))
    step = np.zeros((3, 1, 1, 1))
    step[axis] = 2
    ahead, behind = displaced(v, 1, step), displaced(v, 1, -step)
    return [np.abs(ahead - behind), ahead + behind - 2 * smooth(v, 1)]


def _contrast(v: np.ndarray, _: VolumeReference) -> list[np.ndarray]:
    found, wide = [], v.astype(np.float64)
    for size in (9, 17):
        mean, square = ndi.uniform_filter(wide, size), ndi.uniform_filter(wide * wide, size)
        found.append((smooth(v, 1) - mean) / (np.sqrt(np.maximum(square - mean * mean, 0)) + EPSILON))
    return found


def _texture(v: np.ndarray, reference: VolumeReference) -> list[np.ndarray]:
    n = compute_pool(v, reference, [spec.name for spec in NORMAL])
    along = np.var([displaced(v, 1, k * n) for k in range(-3, 4)], axis=0)
    tangents = [np.eye(3, dtype=np.float32)[i][:, None, None, None] - n[i] * n for i in range(3)]
    steps = [3 * sign * t for t in tangents for sign in (1, -1)]
    within = np.var([smooth(v, 1), *(displaced(v, 1, step) for step in steps)], axis=0)
    return [np.log(along + EPSILON), np.log(along + EPSILON) - np.log(within + EPSILON)]


def _variance(v: np.ndarray, _: VolumeReference) -> list[np.ndarray]:
    return [np.log(_variance_of(v, s) + EPSILON) for s in (2, 4)]


def _entropy(v: np.ndarray, _: VolumeReference) -> list[np.ndarray]:
    bins, found = np.clip(np.floor(2 * v), -6, 5), []
    for size in (5, 9):
        shares = (np.maximum(ndi.uniform_filter((bins == b).astype(np.float64), size), 0) for b in range(-6, 6))
        found.append(sum(-p * np.log(np.maximum(p, 1e-9)) for p in shares))
    return found


def _rank(v: np.ndarray, _: VolumeReference) -> list[np.ndarray]:
    return [_rank_of(v, 2), _rank_of(smooth(v, 1), 3)]


def _rank_of(v: np.ndarray, reach: int) -> np.ndarray:
    padded, below = np.pad(v, reach, mode="symmetric"), np.zeros(v.shape, np.float32)
    for offset in product(range(2 * reach + 1), repeat=3):
        below += padded[tuple(slice(o, o + size) for o, size in zip(offset, v.shape, strict=True))] < v
    return below / np.float32((2 * reach + 1) ** 3)


def _variance_of(v: np.ndarray, sigma: float) -> np.ndarray:
    """Variance over a Gaussian window."""
    wide = v.astype(np.float64)
    mean = smooth(wide, sigma)
    return np.maximum(smooth(wide * wide, sigma) - mean * mean, 0)


def _named(family: str, endings: str, compute: Callable[..., list[np.ndarray]]) -> CandidateFamily:
    return CandidateFamily(family, tuple(f"{family}_{ending}" for ending in endings.split()), compute)


CANDIDATES: tuple[CandidateFamily, ...] = (
    _named("dog", "s1 s2 s4", _dog),
    _named("frequency", "fine coarse energy cycles", _frequency),
    _named("hessian", "s1_first s1_second s1_third s2_first s2_second s2_third", _hessian),
    _named("sheetness", "s1 s2", _sheetness),
    _named("coherence", "s2 linear_s2 s4 linear_s4", _coherence),
    _named("interslice", "slope curvature", _interslice),
    _named("contrast", "r4 r8", _contrast),
    _named("texture", "along ratio", _texture),
    _named("variance", "s2 s4", _variance),
    _named("entropy", "r2 r4", _entropy),
    _named("rank", "r2 s1_r3", _rank),
)


def candidate_names(families: Sequence[CandidateFamily] = CANDIDATES) -> tuple[str, ...]:
    """Names of the candidate features, in order."""
    return tuple(name for one in families for name in one.names)


def sample_candidates(
    v: np.ndarray, reference: VolumeReference, index: np.ndarray, families: Sequence[CandidateFamily] = CANDIDATES
) -> np.ndarray:
    """Candidate features of a standardised volume at flat voxel indices (n,), as ``sample_features`` gives the pool's.

    Returns:
        ``(2 F, n)`` float32: F rows of features, then F rows of their spatial gradient magnitudes.
    """
    values, slopes = [], []
    for family in families:
        for volume in family.compute(v, reference):
            field = volume.astype(np.float32)
            values.append(field.ravel()[index])
            slopes.append(np.sqrt(sum(part.ravel()[index] ** 2 for part in gradient(field))))
    return np.asarray(np.concatenate([values, slopes]), np.float32)
