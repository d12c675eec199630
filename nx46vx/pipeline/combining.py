"""From each meta-neuron's best candidate to the ensemble: weights of the members, and the joint fit beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nx46vx.model.ensemble import Ensemble, Member, combine, mixed
from nx46vx.model.joint import fit_joint
from nx46vx.model.samples import FitData, Samples
from nx46vx.pipeline.best import Evaluation, evaluate
from nx46vx.runtime.sink import EventSink, trace_array


def combined(members: Sequence[Member], data: FitData, *, seed: int, sink: EventSink) -> tuple[Ensemble, Evaluation]:
    """The ensemble of some members, chosen on the validation samples, and how its members see those.

    The joint fit is over all features that any member sees, and left out where it does not help.
    """
    seen = evaluate(members, data.pool, data.validation)
    trace_array(sink, "validation_logits", seen.logits)
    found = combine(seen.logits, seen.y)
    weighted = tuple(replace(one, weight=float(w)) for one, w in zip(members, found.weights, strict=True))
    view = [name for name in data.pool if any(name in member.spec.view for member in members)]
    neurons = fit_joint(data, view, seed=seed, meta_neuron=len(members))
    logits = evaluate(neurons, data.pool, data.validation).logits
    trace_array(sink, "joint_validation_logits", logits)
    joint = mixed(found.logits(seen.logits), list(zip(neurons, logits, strict=True)), seen.y)
    return Ensemble(weighted, found.intercept, joint), seen


def combined_logits(ensemble: Ensemble, seen: Evaluation, pool: Sequence[str], cases: Sequence[Samples]) -> np.ndarray:
    """The ensemble's logits (n,) on the samples where its members' logits are those of ``seen``."""
    members = np.array([member.weight for member in ensemble.members]) @ seen.logits
    joint = ensemble.joint
    if joint is None:
        return np.asarray(ensemble.constant + members)
    (own,) = evaluate([joint], pool, cases).logits
    return np.asarray(ensemble.constant + joint.members_share * members + joint.share * own)
