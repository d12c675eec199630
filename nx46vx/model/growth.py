"""Whether one more meta-neuron pays: a pure function of validation and training figures.

One more is added when the ensemble's validation gain from its last neuron exceeds one standard error, and the
ensemble fits its training data better than its validation data by less than one: then capacity, not data, is short.
Both at the natural prevalence; standard errors over groups of samples (cases, or spatial blocks of them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nx46vx.settings import GrowthSettings


@dataclass(frozen=True)
class GrowthFigures:
    """What the decision rests on, in nats per voxel."""

    gain: float
    gain_se: float
    gap: float
    gap_se: float


@dataclass(frozen=True)
class GrowthDecision:
    """Whether to add meta-neuron ``neurons`` (counted from 0), and why."""

    neurons: int
    grow: bool
    reason: str
    figures: GrowthFigures | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> GrowthDecision:
        figures = value["figures"]
        return cls(
            int(value["neurons"]), bool(value["grow"]), str(value["reason"]),
            GrowthFigures(**figures) if figures else None,
        )  # fmt: skip


def grouped_error(values: np.ndarray, groups: np.ndarray, weights: np.ndarray | None = None) -> tuple[float, float]:
    """Weighted mean of ``values`` (n,) and its standard error over groups (ratio estimator)."""
    w = np.ones(values.size) if weights is None else weights
    size = int(groups.max()) + 1
    mass = np.bincount(groups, weights=w, minlength=size)
    sums = np.bincount(groups, weights=w * values, minlength=size)
    present = mass > 0
    total, count = mass.sum(), int(present.sum())
    mean = float(sums.sum() / total)
    if count < 2:
        return mean, float("inf")
    residual = (sums - mean * mass)[present]
    return mean, float(np.sqrt((residual**2).sum() * count / (count - 1)) / total)


def decide_growth(settings: GrowthSettings, neurons: int, figures: GrowthFigures, time_allows: bool) -> GrowthDecision:
    """The rule, for an ensemble that has ``neurons`` meta-neurons now."""
    if not settings.enabled:
        return GrowthDecision(neurons, False, "growth is switched off", None)
    if neurons >= settings.max_meta_neurons:
        return GrowthDecision(neurons, False, f"max_meta_neurons = {settings.max_meta_neurons} is reached", figures)
    if not figures.gain > settings.min_gain_se * figures.gain_se:
        return GrowthDecision(neurons, False, "the last neuron's gain is within the error", figures)
    if not figures.gap < settings.max_gap_se * figures.gap_se:
        return GrowthDecision(neurons, False, "training is clearly better than validation: data is short", figures)
    if not time_allows:
        return GrowthDecision(neurons, False, "the time budget does not allow another neuron", figures)
    return GrowthDecision(neurons, True, "the last neuron gained, and capacity is short", figures)
