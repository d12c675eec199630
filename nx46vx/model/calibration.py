"""How fast this machine fits: a short timing of real passes over random samples."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from nx46vx.model.candidates import TILE
from nx46vx.model.neuron import prepare_neuron
from nx46vx.model.passes import Passes
from nx46vx.model.samples import FitData


@dataclass
class RandomSamples:
    """A case of standard normal features and coin-flip labels."""

    case_id: str
    features: np.ndarray
    y: np.ndarray
    group: np.ndarray
    index: np.ndarray
    counts: tuple[int, int]


def random_samples(samples: int, pool: int, seed: int = 0) -> RandomSamples:
    """``samples`` random voxels over ``pool`` features, in 16 spatial blocks."""
    rng = np.random.default_rng(seed)
    return RandomSamples(
        f"random-{seed}",
        rng.standard_normal((2 * pool, samples), dtype=np.float32),
        rng.integers(0, 2, samples).astype(np.uint8),
        np.sort(rng.integers(0, 16, samples)).astype(np.int32),
        np.arange(samples),
        (samples // 2, samples // 2),
    )


def seconds_per_cell(features: int, *, device: str, threads: int, samples: int = 65_536, passes: int = 5) -> float:
    """Best of a few passes of one tile: seconds per sample, lane and iteration."""
    pool = tuple(f"random{index}" for index in range(features))
    data = FitData(pool, [random_samples(samples, features)], [random_samples(1024, features, 1)])
    spec = prepare_neuron(data, 0, 0, pool)
    engine = Passes(data, seed=0, device=device, threads=threads)
    engine.add(spec)
    theta = {0: np.zeros((spec.columns, TILE))}
    best = float("inf")
    for _ in range(passes + 1):
        started = time.perf_counter()
        engine.gradients(theta)
        best = min(best, time.perf_counter() - started)
    engine.close()
    return best / (samples * TILE)
