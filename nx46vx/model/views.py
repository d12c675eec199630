"""Which features of the pool each meta-neuron sees: a seeded draw that prefers relevant and unlike features.

Features enter a view one after the other. The chance of each is proportional to what it adds to the share of the
label's variance that its three columns (feature, square, spatial gradient) explain together with those already in:
a relevant feature adds much, one that resembles a chosen one adds little. A feature that those already in foretell too
well stays out: what it adds is a difference of nearly equal numbers, which takes the solver very long to find.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nx46vx.errors import UsageError
from nx46vx.model.neuron import view_generator
from nx46vx.model.samples import FitData

#: Most samples the relevance is measured on; beyond, every so-manieth is taken.
RELEVANCE_SAMPLES = 200_000
#: Largest share of a feature's variance that those already in a view may foretell.
MOST_ALIKE = 0.75


def relevance_gram(data: FitData) -> np.ndarray:
    """Correlations (3M + 1, 3M + 1) of all columns [x | x^2 | g] of the pool and, last, the label."""
    m = len(data.pool)
    stride = max(1, -(-data.train_samples // RELEVANCE_SAMPLES))
    parts, labels = [], []
    for case in data.train:
        parts.append(np.asarray(case.features[:, ::stride], dtype=np.float64))
        labels.append(case.y[::stride].astype(np.float64))
    raw, y = np.concatenate(parts, axis=1), np.concatenate(labels)
    x = _standardise(raw[:m])
    columns = np.concatenate([x, _standardise(x * x), _standardise(raw[m:]), _standardise(y[None])])
    return columns @ columns.T / y.size


def draw_views(
    gram: np.ndarray, pool: Sequence[str], *, seed: int, width: int, meta_neurons: Sequence[int]
) -> dict[int, tuple[str, ...]]:
    """The views of meta-neurons 0, 1, ... (pass all from 0 on: no two neurons get the same set of features).

    Raises:
        UsageError: the view is wider than the pool, or the pool has no further different one.
    """
    if width > len(pool):
        raise UsageError(
            "a view cannot be wider than the feature pool", where="grid.features_per_neuron",
            found=f"{width} of {len(pool)}", fix=f"choose at most {len(pool)}",
        )  # fmt: skip
    views: dict[int, tuple[str, ...]] = {}
    for neuron in meta_neurons:
        rng = view_generator(seed, neuron)
        for _ in range(200):
            chosen = _draw(gram, len(pool), width, rng)
            view = tuple(pool[index] for index in sorted(chosen))
            if view not in views.values():
                break
        if view in views.values():
            raise UsageError(
                "the feature pool has too few different views for the meta-neurons",
                where="grid.features_per_neuron", found=f"{width} of {len(pool)} features, meta-neuron {neuron}",
                fix="choose a smaller view or fewer meta-neurons",
            )  # fmt: skip
        views[neuron] = view
    return views


def explained(gram: np.ndarray, pool: int, features: Sequence[int]) -> float:
    """Share of the label's variance that a linear fit on the columns of some features explains (R squared)."""
    if not features:
        return 0.0
    rows = [part * pool + feature for part in range(3) for feature in features]
    inner = gram[np.ix_(rows, rows)] + 1e-6 * np.eye(len(rows))
    target = gram[rows, -1]
    return float(target @ np.linalg.solve(inner, target))


def foretold(gram: np.ndarray, features: Sequence[int], other: int) -> float:
    """Share of another feature's variance that a linear fit on some features explains (R squared)."""
    if not features:
        return 0.0
    rows = list(features)
    target = gram[rows, other]
    return float(target @ np.linalg.solve(gram[np.ix_(rows, rows)] + 1e-6 * np.eye(len(rows)), target))


def _draw(gram: np.ndarray, pool: int, width: int, rng: np.random.Generator) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < width:
        base = explained(gram, pool, chosen)
        alike = np.array([np.inf if f in chosen else foretold(gram, chosen, f) for f in range(pool)])
        enters = alike <= max(MOST_ALIKE, alike.min())
        gains = np.array(
            [max(explained(gram, pool, [*chosen, f]) - base, 0.0) if enters[f] else 0.0 for f in range(pool)]
        )
        floor = 0.02 * gains.max() + 1e-12
        weights = np.where(enters, gains + floor, 0.0)
        chosen.append(int(rng.choice(pool, p=weights / weights.sum())))
    return chosen


def _standardise(rows: np.ndarray) -> np.ndarray:
    centred = rows - rows.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, keepdims=True)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-12)
