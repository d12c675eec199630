"""Yardstick: boosted trees on the very samples and features that the ensemble is fitted on."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from nx46vx.bench.dependencies import need
from nx46vx.bench.quality_methods import Probabilities, Training
from nx46vx.features.blocks import iter_blocks
from nx46vx.features.pool import feature_names
from nx46vx.features.reference import measure_reference
from nx46vx.features.spread import usable_cpus
from nx46vx.inference.masks.doubt import Prediction
from nx46vx.model.metrics import cross_entropy, sigmoid
from nx46vx.model.neuron import logit
from nx46vx.model.samples import FitData

#: Most trees, and after how many the validation samples are asked.
TREES, EVERY = 300, 25
_BLOCK, _ROWS = 64, 1 << 17


def need_trees() -> Any:
    """scikit-learn's boosted trees.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    need("scikit-learn's boosted trees", "sklearn.ensemble")
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier


class BoostedTrees(Probabilities):
    """scikit-learn's HistGradientBoostingClassifier with its defaults but for the number of trees, which has the lowest
    cross-entropy on the run's validation samples. Like a neuron's, its logits are moved to the natural prevalence."""

    stages: ClassVar[tuple[str, ...]] = ("features",)

    def __init__(self) -> None:
        self.model: Any = None
        self.shift = 0.0

    def fit(self, training: Training) -> None:
        self.fit_samples(training.samples())

    def fit_samples(self, data: FitData) -> None:
        """Fit on training samples (balanced), choose the number of trees on validation samples (as they come)."""
        kind = need_trees()
        x, y = _table(data.train)
        seen, truth = _table(data.validation)
        self.shift = logit(data.natural_prior) - logit(float(y.mean()))

        def grown(trees: int) -> Any:
            return kind(max_iter=trees, early_stopping=False, random_state=0).fit(x, y)

        whole = grown(TREES)
        losses = {
            trees: float(cross_entropy(np.ravel(raw) + self.shift, truth).mean())
            for trees, raw in enumerate(whole.staged_decision_function(seen), start=1)
            if trees % EVERY == 0
        }
        best = min(losses, key=lambda trees: (losses[trees], trees))
        self.model = whole if best == TREES else grown(best)

    def predict(self, volume: np.ndarray) -> Prediction:
        reference, names = measure_reference(volume, threads=usable_cpus()), feature_names()
        probability = np.empty(volume.shape, np.float32)
        for window, x, g in iter_blocks(volume, reference, names, block=_BLOCK, threads=usable_cpus()):
            rows = np.concatenate([x, g]).reshape(2 * len(names), -1)
            found = [
                self.model.decision_function(np.ascontiguousarray(rows[:, first : first + _ROWS].T))
                for first in range(0, rows.shape[1], _ROWS)
            ]
            probability[window] = sigmoid(np.concatenate(found) + self.shift).reshape(x.shape[1:])
        return Prediction.certain(probability)


def _table(cases: Any) -> tuple[np.ndarray, np.ndarray]:
    """Samples of cases as rows: features and their gradients (n, 2M), labels (n,)."""
    x = np.concatenate([np.asarray(case.features).T for case in cases])
    return np.ascontiguousarray(x), np.concatenate([np.asarray(case.y) for case in cases])
