"""Seeded (prediction, label) pairs whose scores by the competition's own programs are in ``metric_vectors.json``.

The first 22 were scored by the competition's scorer as a whole. The pairs after ``perforated`` were scored part by
part: counts by its matcher (Betti-Matching-3D), SurfaceDice by DeepMind's surface-distance, VOI from a contingency
table. They hold what the first ones lack: false beside missed components, loops and cavities that are noise in both
masks, and volumes a few voxels thick.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

DATA = Path(__file__).resolve().parents[1] / "data" / "metric_vectors.json"
Pair = tuple[np.ndarray, np.ndarray]


def sheets(n: int = 64, spacing: int = 16, thickness: int = 3, amplitude: float = 4.0) -> np.ndarray:
    """Wavy parallel sheets, uint8 (n, n, n)."""
    z, y, x = np.indices((n, n, n)).astype(float)
    height = z + amplitude * np.sin(2 * np.pi * y / n) + 0.5 * amplitude * np.cos(2 * np.pi * x / n)
    return (np.mod(height, spacing) < thickness).astype(np.uint8)


def perforated(volume: np.ndarray, count: int, seed: int) -> np.ndarray:
    """A copy with square holes through the sheets, along z; at most two sheets deep."""
    rng = np.random.default_rng(seed)
    pierced, n = volume.copy(), volume.shape[0]
    for _ in range(count):
        z, y, x = rng.integers(4, n - 8, 3)
        edge = int(rng.integers(2, 6))
        pierced[z : z + 16, y : y + edge, x : x + edge] = 0
    return pierced


def flipped(volume: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A copy with a share of the voxels exchanged, at random."""
    return volume ^ (np.random.default_rng(seed).random(volume.shape) < share).astype(np.uint8)


def pairs() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(name, prediction, label): labels hold 0 background, 1 surface, 2 ignored."""
    g = sheets()
    zero, full = np.zeros_like(g), np.ones_like(g)
    yield "identical", g, g
    yield "empty_pred", zero, g
    yield "empty_gt", g, zero
    yield "both_empty", zero, zero
    for k in (1, 2, 3):
        yield f"shift{k}_z", np.roll(g, k, 0), g
    yield "thick5", sheets(thickness=5), g
    bridge, ignore = g.copy(), g.copy()
    bridge[:, 30:33, 30:33] = 1
    ignore[:, :, 40:] = 2
    yield "bridge_column", bridge, g
    holes, cut = g.copy(), g.copy()
    holes[:, 20:26, 20:26] = 0
    yield "square_holes", holes, g
    cut[:, 31:33, :] = 0
    yield "cut_all_y31_32", cut, g
    yield "salt_0.1pct_seed0", np.where(np.random.default_rng(0).random(g.shape) < 0.001, full, g), g
    yield "pepper_2pct_seed1", np.where(np.random.default_rng(1).random(g.shape) < 0.02, zero, g), g
    yield "ignore_x40+", bridge, ignore
    yield "ignore_x40+_fullpred", full, ignore
    yield "all_ones", full, g
    odd = sheets(65)
    yield "odd_65", np.roll(odd, 1, 1), odd
    yield from _solids()
    yield "perforated", *_perforated(g)
    yield from _beyond()


def _solids() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    z, y, x = np.indices((64, 64, 64)).astype(float)
    ring = ((np.hypot(y - 16, x - 16) - 9) ** 2 + (z - 16) ** 2 <= 9).astype(np.uint8)
    yield "ring_shift", np.roll(ring, 2, 2), ring
    yield "ring_vs_two_rings", ring, np.maximum(ring, np.roll(ring, 32, 0))
    far = np.sqrt((z - 16) ** 2 + (y - 16) ** 2 + (x - 16) ** 2)
    shell = ((far <= 11) & (far > 8)).astype(np.uint8)
    yield "shell_vs_ball", shell, (far <= 11).astype(np.uint8)
    yield "two_shells", shell, np.maximum(shell, np.roll(shell, 32, 1))


def _perforated(g: np.ndarray) -> Pair:
    a, b = g.copy(), g.copy()
    for i in range(6, 60, 12):
        for j in range(6, 60, 12):
            b[:, i : i + 3, j : j + 3] = 0
            if (i + j) % 24:
                a[:, i + 1 : i + 4, j : j + 3] = 0
    return a, b


def _beyond() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    g = sheets(48, 12)
    g[:8], g[24:32] = 0, 0
    a, b = g.copy(), g.copy()
    for volume, y in ((a, 3), (b, 12)):  # specks before the first sheet, false ones in a, missed ones in b
        for x in range(2, 48, 6):
            volume[2::24, y : y + 2, x : x + 2] = 1
    yield "false_and_missed_specks", a, b
    yield "holes_moved", np.roll(perforated(sheets(48, 12), 25, 3), 1, 0), perforated(sheets(48, 12), 40, 3)
    noisy = flipped(sheets(48, 12, 6), 0.06, 5)
    yield "noise_in_both", flipped(noisy, 0.02, 4), noisy
    rough = _smooth_noise((40, 41, 39), 6)
    yield "rough", (rough + _smooth_noise(rough.shape, 7) // 2 > 12).astype(np.uint8), (rough > 4).astype(np.uint8)
    thin = (np.random.default_rng(8).random((3, 40, 33)) < 0.6).astype(np.uint8)
    yield "three_slices", flipped(thin, 0.1, 9), thin


def _smooth_noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Integers around zero, each a sum over 3 x 3 x 3 neighbours, twice; the volume is a torus."""
    noise = np.random.default_rng(seed).integers(-8, 9, shape)
    for axis in (0, 1, 2, 0, 1, 2):
        noise = noise + np.roll(noise, 1, axis) + np.roll(noise, -1, axis)
    return noise // 16


def expected() -> dict[str, Any]:
    """By name: score, topo, surface_dice, voi, voi_split, voi_merge, counts [[matched, predicted, true], ...]."""
    return dict(orjson.loads(DATA.read_bytes()))
