"""The ensemble: each meta-neuron's best candidate, combined by non-negative weights fitted on validation logits, and
mixed with the joint fit of all features that they see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nx46vx.model.joint import Joint, JointNeuron
from nx46vx.model.metrics import cross_entropy
from nx46vx.model.neuron import NeuronSpec, neuron_logits

#: A neuron, its weights (3F + 1,), and the share of its logit in a sum.
Form = tuple[NeuronSpec, np.ndarray, float]

#: A neuron joins when it lowers the validation cross-entropy by more than this share of it.
MIN_RELATIVE_GAIN = 1e-4


@dataclass(frozen=True)
class Member:
    """One meta-neuron's best candidate; ``weight`` 0 means that it did not help."""

    candidate_id: str
    spec: NeuronSpec
    theta: tuple[float, ...]
    weight: float

    def to_json(self) -> dict[str, Any]:
        return {
            "candidate_id": self.candidate_id,
            "meta_neuron": self.spec.meta_neuron,
            "weight": self.weight,
            "theta": list(self.theta),
            "spec": self.spec.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Member:
        theta = tuple(float(v) for v in value["theta"])
        return cls(str(value["candidate_id"]), NeuronSpec.from_json(value["spec"]), theta, float(value["weight"]))

    def logits(self, x: np.ndarray, g: np.ndarray) -> np.ndarray:
        """Logits at the natural prevalence (n,) from the view's features and gradients, (F, n) each."""
        return neuron_logits(self.spec, np.array(self.theta), x, g)


@dataclass(frozen=True)
class Ensemble:
    """logit = intercept + sum over members of weight * member logit, and what ``joint`` makes of it if there is one."""

    members: tuple[Member, ...]
    intercept: float
    joint: Joint | None = None

    @property
    def active(self) -> tuple[Member, ...]:
        """The members that have a say; none where the joint fit leaves their sum out."""
        heard = self.joint is None or self.joint.members_share > 0
        return tuple(member for member in self.members if heard and member.weight > 0)

    @property
    def forms(self) -> list[Form]:
        """Everything that is summed up."""
        share = 1.0 if self.joint is None else self.joint.members_share
        found = [(m.spec, np.array(m.theta), share * m.weight) for m in self.active]
        if self.joint is not None:
            found.append((self.joint.spec, np.array(self.joint.theta), self.joint.share))
        return found

    @property
    def constant(self) -> float:
        """What is added to the sum of ``forms``."""
        joint = self.joint
        return self.intercept if joint is None else joint.intercept + joint.members_share * self.intercept

    @property
    def features(self) -> tuple[str, ...]:
        """The features that the active members and the joint fit see, sorted by name."""
        seen = {name for member in self.active for name in member.spec.view}
        return tuple(sorted(seen | set(self.joint.spec.view if self.joint is not None else ())))

    def logits(self, names: Sequence[str], x: np.ndarray, g: np.ndarray) -> np.ndarray:
        """Logits (n,) from features and gradients (len(names), n)."""
        z = np.full(x.shape[1], self.constant)
        for spec, theta, weight in self.forms:
            rows = [list(names).index(name) for name in spec.view]
            z += weight * neuron_logits(spec, theta, x[rows], g[rows])
        return z

    def to_json(self) -> dict[str, Any]:
        return {
            "intercept": self.intercept,
            "members": [member.to_json() for member in self.members],
            "joint": self.joint.to_json() if self.joint is not None else None,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Ensemble:
        joint = Joint.from_json(value["joint"]) if value.get("joint") is not None else None
        return cls(tuple(Member.from_json(one) for one in value["members"]), float(value["intercept"]), joint)


@dataclass(frozen=True)
class Combination:
    """Weights (members,), intercept and the mean cross-entropy they reach."""

    weights: np.ndarray
    intercept: float
    loss: float

    def logits(self, logits: np.ndarray) -> np.ndarray:
        return self.intercept + self.weights @ logits


def combine(logits: np.ndarray, y: np.ndarray) -> Combination:
    """Greedy forward choice of members (rows of ``logits``, (members, n)) by validation cross-entropy.

    In each round every member still outside is tried with all weights fitted anew; the one that lowers the
    cross-entropy most joins, as long as it does by ``MIN_RELATIVE_GAIN``. The others keep weight 0.
    """
    best: Combination | None = None
    inside: list[int] = []
    while len(inside) < len(logits):
        trials = []
        for member in range(len(logits)):
            if member not in inside:
                rows = [*inside, member]
                start = None if best is None else np.append([*best.weights[inside], 0.0], best.intercept)
                trials.append((_fit(logits, y, rows, start), member))
        chosen, member = min(trials, key=lambda trial: (trial[0].loss, trial[1]))
        if best is not None and best.loss - chosen.loss <= MIN_RELATIVE_GAIN * best.loss:
            break
        best, inside = chosen, [*inside, member]
    if best is None:
        raise ValueError("an ensemble needs at least one member")
    return best


def _fit(logits: np.ndarray, y: np.ndarray, rows: list[int], start: np.ndarray | None) -> Combination:
    """Non-negative logistic regression on some members' logits, by L-BFGS-B."""
    from scipy.optimize import minimize  # slow to load, and wanted once a run

    chosen = logits[rows]
    if start is None:
        start = np.append(np.full(len(rows), 1.0 / len(rows)), 0.0)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        z = parameters[-1] + np.einsum("m,mn->n", parameters[:-1], chosen)
        error = 1.0 / (1.0 + np.exp(-np.clip(z, -700, 700))) - y
        gradient = np.append(np.einsum("mn,n->m", chosen, error), error.sum()) / y.size
        return float(cross_entropy(z, y).mean()), gradient

    bounds = [(0.0, None)] * len(rows) + [(None, None)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-12, "gtol": 1e-8})
    weights = np.zeros(len(logits))
    weights[rows] = found.x[:-1]
    return Combination(weights, float(found.x[-1]), float(found.fun))


def mixed(members: np.ndarray, joints: Sequence[tuple[JointNeuron, np.ndarray]], y: np.ndarray) -> Joint | None:
    """The joint fit with the lowest cross-entropy once mixed with the members' sum; None if none lowers it.

    Args:
        members: the members' weighted sum on validation samples (n,).
        joints: fits and their logits on the same samples (n,).
        y: labels (n,).
    """
    alone = _fit(members[None], y, [0], None).loss
    best: tuple[float, Joint] | None = None
    for neuron, logits in joints:
        found = combine(np.stack([members, logits]), y)
        share, theta = float(found.weights[1]), tuple(neuron.theta.tolist())
        if share > 0 and alone - found.loss > MIN_RELATIVE_GAIN * alone and (best is None or found.loss < best[0]):
            best = found.loss, Joint(
                neuron.spec, theta, neuron.ridge, float(found.weights[0]), share, found.intercept
            )  # fmt: skip
    return best[1] if best is not None else None
