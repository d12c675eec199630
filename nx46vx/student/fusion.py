"""The student's and the ensemble's logits as one: weights fitted on validation cases, kept where the gain is stable.

The rule, for fusion and test-time augmentation alike. Fold = case: everything that is fitted (weights, intercept, the
threshold) is fitted on the other cases and judged on the one left out, against what would be used otherwise, whose
threshold is chosen on the other cases too. It is kept if there are two folds or more, the mean gain in F0.5 reaches
``min_gain`` and exceeds its own standard error over the folds, and three quarters of the folds gain (of two or three,
all).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nx46vx.model.ensemble import combine
from nx46vx.model.metrics import Counts, count_at_thresholds, sigmoid

#: Logits beyond this tell nothing more, and a probability kept as float32 could not tell them apart.
CLIP = 14.0
#: Why a stable gain is not used all the same.
TOO_LATE = "too little time is left to segment with both"
#: Share of the folds that have to gain.
FOLDS_THAT_GAIN = 0.75

Scores = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class FusionCase:
    """Voxels (n,) of one validation case: logits of both sides, and labels 0 or 1."""

    case_id: str
    neurons: np.ndarray
    student: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Fusion:
    """logit = intercept + ``neurons`` * the ensemble's logit + ``student`` * the student's."""

    neurons: float
    student: float
    intercept: float

    def logits(self, neurons: np.ndarray, student: np.ndarray) -> np.ndarray:
        return self.intercept + self.neurons * _clipped(neurons) + self.student * _clipped(student)

    def probability(self, probability: np.ndarray, student: np.ndarray) -> np.ndarray:
        """Probability float32 from the ensemble's probability and the student's logits, both (z, y, x)."""
        fused = np.empty(probability.shape, np.float32)
        edge = float(sigmoid(np.array(-CLIP)))
        for z, plane in enumerate(probability):
            p = np.clip(plane.astype(np.float64), edge, 1.0 - edge)
            fused[z] = sigmoid(self.logits(np.log(p) - np.log1p(-p), student[z].astype(np.float64)))
        return fused

    def to_json(self) -> dict[str, float]:
        return {"neurons": self.neurons, "student": self.student, "intercept": self.intercept}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Fusion:
        return cls(float(value["neurons"]), float(value["student"]), float(value["intercept"]))


@dataclass(frozen=True)
class Verdict:
    """Whether a change is kept, why, and each fold's F0.5 with and without it."""

    kept: bool
    reason: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    min_gain: float = 0.0

    @property
    def gains(self) -> list[float]:
        return [after - before for before, after in zip(self.before, self.after, strict=True)]

    def to_json(self) -> dict[str, Any]:
        return {
            "kept": self.kept, "reason": self.reason, "min_gain": self.min_gain, "folds_before": list(self.before),
            "folds_after": list(self.after), "gains": self.gains,
            "mean_gain": float(np.mean(self.gains)) if self.gains else None,
        }  # fmt: skip


def fit_fusion(cases: Sequence[FusionCase]) -> Fusion:
    """Non-negative weights and an intercept by cross-entropy; a side that adds nothing gets weight 0."""
    logits = np.stack(
        [_clipped(np.concatenate([getattr(case, side) for case in cases])) for side in ("neurons", "student")]
    )
    found = combine(logits, np.concatenate([case.y for case in cases]))
    return Fusion(float(found.weights[0]), float(found.weights[1]), found.intercept)


def judge_fusion(cases: Sequence[FusionCase], min_gain: float) -> Verdict:
    """Whether fusing beats the ensemble alone."""

    def fitted(others: Sequence[FusionCase]) -> Scores:
        return fit_fusion(others).logits

    return judge(cases, lambda others: lambda neurons, student: neurons, fitted, min_gain)


def judge_averaging(plain: Sequence[FusionCase], averaged: Sequence[FusionCase], min_gain: float) -> Verdict:
    """Whether test-time augmentation makes the student better; the second cases hold its averaged logits."""
    both = [
        FusionCase(one.case_id, one.student, other.student, one.y) for one, other in zip(plain, averaged, strict=True)
    ]
    return judge(both, lambda others: lambda once, often: once, lambda others: lambda once, often: often, min_gain)


def judge(
    cases: Sequence[FusionCase], before: Callable[[Sequence[FusionCase]], Scores],
    after: Callable[[Sequence[FusionCase]], Scores], min_gain: float,
) -> Verdict:  # fmt: skip
    """Leave each case out in turn; both sides are fitted on the others."""
    if len(cases) < 2:
        return Verdict(False, f"{len(cases)} validation case: nothing to judge stability on", (), (), min_gain)
    told = []
    for fold, case in enumerate(cases):
        others = [*cases[:fold], *cases[fold + 1 :]]
        told.append(tuple(_left_out(side(others), others, case) for side in (before, after)))
    verdict = Verdict(False, "", tuple(one for one, _ in told), tuple(two for _, two in told), min_gain)
    reason = why_not(verdict.gains, min_gain)
    return Verdict(reason is None, reason or "a stable gain", verdict.before, verdict.after, min_gain)


def _left_out(scores: Scores, others: Sequence[FusionCase], case: FusionCase) -> float:
    """F0.5 on a case at the threshold that is best on the others."""
    at = pooled_counts(others, scores).best()
    return float(pooled_counts([case], scores).f_beta(0.5)[at])


def pooled_counts(cases: Sequence[FusionCase], scores: Scores) -> Counts:
    """Counts over all voxels of some cases, of scores made from both sides' logits."""
    counts = [count_at_thresholds(sigmoid(scores(case.neurons, case.student)), case.y) for case in cases]
    total = counts[0]
    for one in counts[1:]:
        total = total + one
    return total


def why_not(gains: Sequence[float], min_gain: float) -> str | None:
    """Why gains of two folds or more are no stable gain, in words; None if they are one."""
    mean, error = float(np.mean(gains)), float(np.std(gains, ddof=1)) / math.sqrt(len(gains))
    if mean < min_gain:
        return f"the mean gain is {mean:.4f}, less than {min_gain}"
    if mean <= error:
        return f"the mean gain {mean:.4f} is within its standard error {error:.4f}"
    gaining = sum(gain > 0 for gain in gains)
    if gaining < FOLDS_THAT_GAIN * len(gains):
        return f"only {gaining} of {len(gains)} folds gain"
    return None


def _clipped(logits: np.ndarray) -> np.ndarray:
    return np.clip(logits, -CLIP, CLIP)
