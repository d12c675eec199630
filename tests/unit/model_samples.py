"""Samples to fit on, and the neuron's objective written out in float64 NumPy: what the tests of the model compare with.

Rows are (x, y) as everywhere: features (2M, n), M features and then their spatial gradients; labels (n,).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nx46vx.data.synthetic import make_case
from nx46vx.features.blocks import sample_features
from nx46vx.features.pool import feature_names
from nx46vx.features.reference import measure_reference
from nx46vx.features.sampling import case_seed, labelled_counts, sample_balanced, sample_natural, spatial_blocks
from nx46vx.model.candidates import Grid
from nx46vx.model.neuron import NeuronSpec, bootstrap, case_weights, design_columns, prepare_neuron
from nx46vx.model.samples import FitData

#: The grid of the shipped configurations.
FULL_GRID = Grid((1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (1e-4, 1e-3, 1e-2))


@dataclass
class ArraySamples:
    """One case's samples, in memory."""

    case_id: str
    features: np.ndarray
    y: np.ndarray
    group: np.ndarray
    counts: tuple[int, int]
    index: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


def names(pool: int) -> tuple[str, ...]:
    return tuple(f"f{number:02d}" for number in range(pool))


def make_samples(
    n: int,
    pool: int,
    seed: int,
    *,
    correlation: float = 0.0,
    intercept: float = 0.0,
    groups: int = 8,
    strength: float = 1.0,
    counts: tuple[int, int] | None = None,
) -> ArraySamples:
    """Labels of a logistic model on the first features, their squares and gradients; columns of unlike scales.

    ``correlation`` is what neighbouring features share; ``intercept`` makes a class rare. The label's model is the
    same for every ``seed``: only the samples differ.
    """
    rng = np.random.default_rng([seed, 46])
    mixed = rng.standard_normal((2 * pool, n))
    shared = rng.standard_normal((2, n))
    mixed = np.sqrt(1 - correlation) * mixed + np.sqrt(correlation) * np.repeat(shared, pool, axis=0)
    model = np.random.default_rng(46)
    weights = strength * model.standard_normal(3 * pool) * (model.random(3 * pool) < 0.6)
    x, g = mixed[:pool], np.abs(mixed[pool:])
    z = intercept + weights[:pool] @ x + 0.3 * weights[pool : 2 * pool] @ (x * x - 1) + weights[2 * pool :] @ (g - 0.8)
    y = (rng.random(n) < 1 / (1 + np.exp(-z))).astype(np.uint8)
    scales, offsets = np.exp(model.uniform(-2, 2, 2 * pool)), model.uniform(-3, 3, 2 * pool)
    offsets[pool:] = 0.0
    features = np.concatenate([x, g]) * scales[:, None] + offsets[:, None]
    found = (int((y == 0).sum()), int((y == 1).sum()))
    return ArraySamples(
        f"case-{seed}", features.astype(np.float32), y,
        np.sort(rng.integers(0, groups, n)).astype(np.int32), counts or found,
    )  # fmt: skip


def make_data(
    sizes: Sequence[int] = (500, 700),
    pool: int = 5,
    *,
    validation: int = 400,
    chunk: int = 256,
    seed: int = 0,
    **how: Any,
) -> FitData:
    """Training cases of some sizes and one validation case."""
    train = [make_samples(n, pool, 100 * seed + number, **how) for number, n in enumerate(sizes)]
    return FitData(names(pool), train, [make_samples(validation, pool, 100 * seed + 99, **how)], chunk)


def make_volume_data(cases: int = 3, edge: int = 48, samples: int = 3000) -> FitData:
    """Samples of the real feature pool on synthetic scroll volumes; the last case validates."""
    made = [_volume_samples(edge, scroll, samples, balanced=scroll < cases) for scroll in range(cases + 1)]
    return FitData(feature_names(), made[:-1], made[-1:])


def _volume_samples(edge: int, scroll: int, limit: int, *, balanced: bool) -> ArraySamples:
    image, label = make_case((edge, edge, edge), scroll=scroll, seed=5)
    draw = sample_balanced if balanced else sample_natural
    index = draw(label, limit, case_seed(0, str(scroll), "test"))
    group = spatial_blocks(index, label.shape, edge=16)
    order = np.lexsort((index, group))
    index, group = index[order], group[order]
    features = sample_features(image, measure_reference(image), feature_names(), index, block=96)
    return ArraySamples(str(scroll), features, label.ravel()[index], group, labelled_counts(label), index)


def make_specs(data: FitData, *, neurons: int = 2, width: int = 3, seed: int = 0) -> list[NeuronSpec]:
    """Meta-neurons with different views of the pool."""
    pool = len(data.pool)
    views = [[data.pool[(k + step) % pool] for step in range(width)] for k in range(neurons)]
    return [prepare_neuron(data, seed, k, view) for k, view in enumerate(views)]


@dataclass(frozen=True)
class Problem:
    """What a meta-neuron minimises, in float64: design (n, 3F + 1) with the ones last, labels, bootstrap weights."""

    design: np.ndarray
    y: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, spec: NeuronSpec, data: FitData, seed: int = 0) -> Problem:
        rows = data.rows(spec.view)
        raw = np.concatenate([case.features[rows] for case in data.train], axis=1).astype(np.float64)
        design = design_columns(raw, np.array(spec.shift), np.array(spec.scale)).T
        weights = np.concatenate(case_weights(data, bootstrap(data, seed, spec.meta_neuron))).astype(np.float64)
        return cls(design, np.concatenate([case.y for case in data.train]).astype(np.float64), weights)

    def loss(self, theta: np.ndarray) -> float:
        z = self.design @ theta
        return float(np.average(np.logaddexp(0.0, z) - self.y * z, weights=self.weights))

    def gradient(self, theta: np.ndarray) -> np.ndarray:
        error = 1 / (1 + np.exp(-(self.design @ theta))) - self.y
        return self.design.T @ (self.weights * error) / self.weights.sum()

    def objective(self, theta: np.ndarray, l1: float, l2: float) -> float:
        body = theta[:-1]
        return self.loss(theta) + l1 * float(np.abs(body).sum()) + l2 / 2 * float((body * body).sum())
