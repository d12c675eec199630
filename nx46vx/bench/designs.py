"""What one meta-neuron minimises, as other people's solvers want it: a design matrix, labels, an objective."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nx46vx.model.neuron import NeuronSpec, bootstrap, case_weights, design_columns
from nx46vx.model.samples import FitData


@dataclass(frozen=True)
class Design:
    """Standardised columns (n, 3F) float32 without the ones, labels (n,) of 0 and 1.

    A sample that the bootstrap drew twice stands there twice: not every solver knows weights.
    """

    columns: np.ndarray
    y: np.ndarray

    @classmethod
    def of(cls, spec: NeuronSpec, data: FitData, seed: int) -> Design:
        rows = data.rows(spec.view)
        raw = np.concatenate([case.features[rows] for case in data.train], axis=1).astype(np.float64)
        drawn = np.concatenate(case_weights(data, bootstrap(data, seed, spec.meta_neuron))).astype(np.int64)
        columns = design_columns(raw, np.array(spec.shift), np.array(spec.scale))[:-1].astype(np.float32)
        y = np.concatenate([case.y for case in data.train])
        return cls(np.ascontiguousarray(np.repeat(columns, drawn, axis=1).T), np.repeat(y, drawn))

    @cached_property
    def by_columns(self) -> np.ndarray:
        """The columns in float64, each contiguous."""
        return np.asfortranarray(self.columns, dtype=np.float64)

    def objective(self, theta: np.ndarray, l1: float, l2: float) -> float:
        """Mean cross-entropy + l1 |w|_1 + l2/2 |w|^2 of weights (3F + 1,), the intercept last; in float64."""
        z = self.columns @ theta[:-1].astype(np.float64) + theta[-1]
        body = theta[:-1]
        loss = float(np.mean(np.logaddexp(0.0, z) - self.y * z))
        return loss + l1 * float(np.abs(body).sum()) + l2 / 2 * float(body @ body)
