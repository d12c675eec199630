"""How good a student is on whole validation volumes, how alike it is on all of them, and when to stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nx46vx.model.metrics import THRESHOLDS, Counts, count_at_thresholds, sigmoid
from nx46vx.student.spec import IGNORED


def volume_counts(logits: np.ndarray, label: np.ndarray) -> Counts:
    """Counts over a volume's labelled voxels at every scanned threshold."""
    known = label != IGNORED
    return count_at_thresholds(sigmoid(logits[known]), (label[known] == 1).astype(np.uint8))


@dataclass(frozen=True)
class Quality:
    """F0.5 at the threshold that is best over all volumes together, of each volume, and the score they make.

    score = mean F0.5 of the volumes - ``stability_weight`` * their standard deviation: a student that is good on some
    volumes and bad on others is worth less than one that is as good on average and steady.
    """

    threshold: float
    pooled: float
    each: tuple[float, ...]
    score: float

    @classmethod
    def of(cls, counts: Sequence[Counts], stability_weight: float) -> Quality:
        together = counts[0]
        for one in counts[1:]:
            together = together + one
        at = together.best()
        each = tuple(float(one.f_beta(0.5)[at]) for one in counts)
        score = float(np.mean(each)) - stability_weight * float(np.std(each))
        return cls(THRESHOLDS[at], float(together.f_beta(0.5)[at]), each, score)

    def to_json(self) -> dict[str, Any]:
        return {
            "f_beta": self.pooled, "f_beta_each": list(self.each), "f_beta_spread": float(np.std(self.each)),
            "threshold": self.threshold, "score": self.score,
        }  # fmt: skip


@dataclass
class EarlyStopping:
    """The best epoch so far, and how long ago it was. ``epoch`` counts from 1; 0: there was none yet."""

    patience: int
    min_delta: float
    best: float | None = None
    epoch: int = 0
    reference: float | None = None
    quiet: int = 0

    def saw(self, epoch: int, score: float) -> bool:
        """Take an epoch's score in; whether it is the best so far. Small gains are kept but do not renew patience."""
        if self.reference is None or score > self.reference + self.min_delta:
            self.reference, self.quiet = score, 0
        else:
            self.quiet += 1
        if self.best is None or score > self.best:
            self.best, self.epoch = score, epoch
            return True
        return False

    @property
    def over(self) -> bool:
        return self.quiet >= self.patience

    def to_json(self) -> dict[str, Any]:
        return {"best": self.best, "epoch": self.epoch, "reference": self.reference, "quiet": self.quiet}

    def load(self, value: dict[str, Any]) -> None:
        self.best, self.epoch = value["best"], int(value["epoch"])
        self.reference, self.quiet = value["reference"], int(value["quiet"])
