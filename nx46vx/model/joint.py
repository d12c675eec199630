"""The joint fit: all features that the meta-neurons see, as one neuron, fitted together and mixed into the ensemble.

Each meta-neuron is fitted as if it were alone; a weighted sum of them cannot let one feature take back what another
says too much. The joint fit has the same columns (feature, square, spatial gradient) over the union of the views, and
is nearly unpenalised and fitted to convergence, which costs little: it has few parameters, so a part of the training
samples will do. The penalty, and the shares of the members' sum and of the joint fit, are chosen on validation samples.
It is a quadratic form as the members are, so inference costs the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from nx46vx.model.metrics import cross_entropy
from nx46vx.model.neuron import NeuronSpec, block_of, design_columns, neuron_logits, prepare_neuron
from nx46vx.model.samples import FitData, Samples

#: Most training samples it is fitted on; beyond, every so-manieth of each case is taken.
MAX_SAMPLES = 200_000
#: Weights of the squared penalty that are tried, strongest first.
RIDGES = (1e-2, 1e-3, 1e-4, 1e-5)
_TOLERANCE = 1e-7  # of the gradient, in the whitened parameters


@dataclass(frozen=True)
class Joint:
    """logit = intercept + members_share * (the members' weighted sum) + share * (the joint neuron's logit)."""

    spec: NeuronSpec
    theta: tuple[float, ...]
    ridge: float
    members_share: float
    share: float
    intercept: float

    def logits(self, x: np.ndarray, g: np.ndarray) -> np.ndarray:
        """The joint neuron's own logits at the natural prevalence (n,), from its view's features and gradients."""
        return neuron_logits(self.spec, np.array(self.theta), x, g)

    def to_json(self) -> dict[str, Any]:
        return {
            "ridge": self.ridge,
            "members_share": self.members_share,
            "share": self.share,
            "intercept": self.intercept,
            "theta": list(self.theta),
            "spec": self.spec.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Joint:
        theta = tuple(float(v) for v in value["theta"])
        numbers = (float(value[key]) for key in ("ridge", "members_share", "share", "intercept"))
        return cls(NeuronSpec.from_json(value["spec"]), theta, *numbers)


@dataclass(frozen=True)
class JointNeuron:
    """One fit: the neuron, its weights (3F + 1,), and the penalty they were fitted with."""

    spec: NeuronSpec
    theta: np.ndarray
    ridge: float

    def logits(self, x: np.ndarray, g: np.ndarray) -> np.ndarray:
        """Logits at the natural prevalence (n,), from the view's features and gradients."""
        return neuron_logits(self.spec, self.theta, x, g)


@threadpool_limits.wrap(limits=1, user_api="blas")  # the same bits on any machine's threads, and none that wait
def fit_joint(data: FitData, view: Sequence[str], *, seed: int, meta_neuron: int) -> list[JointNeuron]:
    """The neuron over ``view``, once for each of ``RIDGES``.

    Minimises mean cross-entropy + ridge/2 |theta|^2 (intercept free) over every so-manieth training sample, by L-BFGS
    on whitened columns. ``meta_neuron`` only names it.

    Raises:
        DataError: the training samples hold a single class, or a feature does not vary.
    """
    thin = _thinned(data)
    ones = np.ones(thin.train_groups[1], np.int64)
    spec = prepare_neuron(thin, seed, meta_neuron, view, multiplicity=ones)
    rows, shift, scale = data.rows(view), np.array(spec.shift), np.array(spec.scale)
    blocks = [design_columns(block_of(thin.train, chunk, rows), shift, scale) for chunk in thin.train_chunks]
    columns = np.concatenate(blocks, axis=1)
    y = np.concatenate([np.asarray(case.y) for case in thin.train]).astype(np.float64)
    gram = columns @ columns.T / y.size
    found, theta = [], np.zeros(spec.columns)
    for ridge in RIDGES:
        theta = _fitted(columns, gram, y, ridge, theta)
        found.append(JointNeuron(spec, theta, ridge))
    return found


def _fitted(columns: np.ndarray, gram: np.ndarray, y: np.ndarray, ridge: float, start: np.ndarray) -> np.ndarray:
    """theta (C,) from columns (C, n), the last of which is the intercept's."""
    from scipy.linalg import cholesky, solve_triangular  # slow to load, and wanted once a run
    from scipy.optimize import minimize

    penalty = np.full(len(gram), ridge)
    penalty[-1] = 0.0
    # theta = R^-T phi: in phi the bound 1/4 of the curvature is round.
    root = cholesky(0.25 * gram + np.diag(penalty + 1e-9), lower=True)

    def loss(phi: np.ndarray) -> tuple[float, np.ndarray]:
        theta = solve_triangular(root, phi, lower=True, trans="T")
        z = theta @ columns
        error = 1.0 / (1.0 + np.exp(-np.clip(z, -700, 700))) - y
        gradient = columns @ error / y.size + penalty * theta
        value = float(cross_entropy(z, y).mean()) + 0.5 * float(penalty @ (theta * theta))
        return value, solve_triangular(root, gradient, lower=True)

    options = {"maxiter": 500, "ftol": 1e-13, "gtol": _TOLERANCE}
    found = minimize(loss, root.T @ start, jac=True, method="L-BFGS-B", options=options)
    return np.asarray(solve_triangular(root, found.x, lower=True, trans="T"))


@dataclass(frozen=True)
class _Thin:
    """Every ``step``-th sample of a case."""

    case: Samples
    step: int

    @property
    def case_id(self) -> str:
        return self.case.case_id

    @property
    def features(self) -> np.ndarray:
        return self.case.features[:, :: self.step]

    @property
    def y(self) -> np.ndarray:
        return self.case.y[:: self.step]

    @property
    def index(self) -> np.ndarray:
        return self.case.index[:: self.step]

    @property
    def group(self) -> np.ndarray:
        return self.case.group[:: self.step]

    @property
    def counts(self) -> tuple[int, int]:
        return self.case.counts


def _thinned(data: FitData) -> FitData:
    step = max(1, -(-data.train_samples // MAX_SAMPLES))
    return FitData(data.pool, [_Thin(case, step) for case in data.train], data.validation, data.chunk)
