"""Voxel metrics from counts, and the objective that ranks candidates.

Counts are integers over a fixed scan of 19 thresholds, so metrics of several cases add up exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Scanned probability thresholds: 0.05 to 0.95 by 0.05.
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))


@dataclass(frozen=True)
class Counts:
    """True and false positives at each threshold (``p >= t``), and the class totals."""

    true_positives: np.ndarray
    false_positives: np.ndarray
    positives: int
    negatives: int

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.true_positives + other.true_positives, self.false_positives + other.false_positives,
            self.positives + other.positives, self.negatives + other.negatives,
        )  # fmt: skip

    def f_beta(self, beta: float) -> np.ndarray:
        """F-beta at each threshold; 0 where nothing is found or there is nothing to find."""
        tp, fp = self.true_positives.astype(float), self.false_positives.astype(float)
        fn = self.positives - tp
        b2 = beta * beta
        denominator = (1 + b2) * tp + b2 * fn + fp
        return np.divide((1 + b2) * tp, denominator, out=np.zeros_like(tp), where=denominator > 0)

    def iou(self) -> np.ndarray:
        """Intersection over union at each threshold; 0 where the union is empty."""
        tp, union = self.true_positives.astype(float), (self.positives + self.false_positives).astype(float)
        return np.divide(tp, union, out=np.zeros_like(tp), where=union > 0)

    def best(self) -> int:
        """Index of the threshold with the best F0.5 (the lowest one among equals)."""
        return int(np.argmax(self.f_beta(0.5)))


def count_at_thresholds(probability: np.ndarray, y: np.ndarray) -> Counts:
    """Counts of ``probability`` (n,) against binary labels ``y`` (n,) at every scanned threshold."""
    bins = np.searchsorted(np.array(THRESHOLDS), probability, side="right")
    above = [np.bincount(bins[y == label], minlength=len(THRESHOLDS) + 1)[::-1].cumsum()[::-1][1:] for label in (1, 0)]
    positives = int((y == 1).sum())
    return Counts(above[0], above[1], positives, int(y.size - positives))


def average_precision(score: np.ndarray, y: np.ndarray) -> float:
    """Area under the precision-recall curve, as sum over distinct scores of (R_i - R_{i-1}) P_i.

    Equal scores form one step, so the order of the input does not matter. NaN without positives.
    """
    positives = int((y == 1).sum())
    if positives == 0:
        return float("nan")
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(y[order] == 1)
    ends = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))
    precision = hits[ends] / (ends + 1)
    recall = hits[ends] / positives
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def sigmoid(z: np.ndarray) -> np.ndarray:
    """Probability of a logit, without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * z))


def cross_entropy(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cross-entropy of each sample, in nats, computed in float64 without overflow."""
    z = logits.astype(np.float64)
    return np.logaddexp(0.0, z) - y * z


@dataclass(frozen=True)
class ValidationFigures:
    """What a candidate scores on the validation samples, at its best threshold."""

    val_ce: float
    val_f1: float
    val_fbeta: float
    val_iou: float
    best_threshold: float
    sparsity: float
    lambda_dyn: float
    objective: float


def validation_figures(
    mean_ce: float, counts: Counts, theta: np.ndarray, features: int, log_variance: float
) -> ValidationFigures:
    """The ranking objective and its parts (smaller is better).

    objective = CE + 0.02 (1 - sparsity) - 0.20 F1 - 0.15 F0.5 - 0.10 IoU + 0.005 lambda_dyn, at the scanned threshold
    with the best F0.5; sparsity is the share of features with |w| + |alpha| + |beta| < 1e-8; lambda_dyn is the
    variance of the predicted mask over ``log_variance`` = |mean_f log(1 + Var(x_f))| of the validation samples.
    """
    at = counts.best()
    f1, fbeta, iou = float(counts.f_beta(1.0)[at]), float(counts.f_beta(0.5)[at]), float(counts.iou()[at])
    magnitude = np.abs(theta[: 3 * features]).reshape(3, features).sum(axis=0)
    sparsity = float((magnitude < 1e-8).mean())
    predicted = int(counts.true_positives[at] + counts.false_positives[at])
    share = predicted / max(counts.positives + counts.negatives, 1)
    lambda_dyn = share * (1 - share) / max(abs(log_variance), 1e-12)
    objective = mean_ce + 0.02 * (1 - sparsity) - 0.20 * f1 - 0.15 * fbeta - 0.10 * iou + 0.005 * lambda_dyn
    return ValidationFigures(mean_ce, f1, fbeta, iou, THRESHOLDS[at], sparsity, lambda_dyn, objective)
