"""The best candidate of each meta-neuron, and its logits on the samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nx46vx.model.candidates import Candidate
from nx46vx.model.ensemble import Member
from nx46vx.model.fitplan import FitPlan
from nx46vx.model.neuron import NeuronSpec
from nx46vx.model.samples import Samples, group_ids
from nx46vx.runtime.checkpoint.store import CheckpointStore
from nx46vx.runtime.sink import EventSink
from trainables.task import state_of

Records = Mapping[str, Mapping[str, Any]]

#: Most samples of a role that ensemble weights and growth are judged on; beyond, every so-manieth is taken.
MAX_SAMPLES = 400_000


@dataclass(frozen=True)
class Evaluation:
    """Some samples as the members see them: logits (members, n), labels (n,), group of each sample (n,)."""

    logits: np.ndarray
    y: np.ndarray
    groups: np.ndarray


def best_records(records: Records) -> dict[int, Mapping[str, Any]]:
    """Each meta-neuron's record with the smallest objective (the first by id among equals)."""
    best: dict[int, Mapping[str, Any]] = {}
    for record in sorted(records.values(), key=lambda r: (float(r["objective"]), str(r["candidate_id"]))):
        best.setdefault(int(record["meta_neuron"]), record)
    return dict(sorted(best.items()))


def best_members(plan: FitPlan, records: Records, store: CheckpointStore, sink: EventSink) -> list[Member]:
    """The best candidate of each meta-neuron, with its weights from the store, in the neurons' order."""
    members = []
    for neuron, record in best_records(records).items():
        checkpoint = store.latest(Candidate.from_json(record).candidate_id, sink=sink)
        if checkpoint is None:
            raise LookupError(f"no checkpoint of {record['candidate_id']}")
        theta = tuple(state_of(checkpoint).theta.tolist())
        members.append(Member(str(record["candidate_id"]), plan.spec(neuron), theta, 0.0))
    return members


class Neuron(Protocol):
    """A member, or a joint fit."""

    @property
    def spec(self) -> NeuronSpec: ...

    def logits(self, x: np.ndarray, g: np.ndarray) -> np.ndarray: ...


def evaluate(members: Sequence[Neuron], pool: Sequence[str], cases: Sequence[Samples]) -> Evaluation:
    """Logits at the natural prevalence of all members on (at most ``MAX_SAMPLES``) samples of some cases."""
    stride = max(1, -(-sum(case.y.size for case in cases) // MAX_SAMPLES))
    ids, _ = group_ids(cases)
    blocks, labels, groups = [], [], []
    for case, group in zip(cases, ids, strict=True):
        logits = []
        for member in members:
            at = np.array([list(pool).index(name) for name in member.spec.view])
            x = np.ascontiguousarray(case.features[at, ::stride])
            g = np.ascontiguousarray(case.features[at + len(pool), ::stride])
            logits.append(member.logits(x, g))
        blocks.append(np.stack(logits))
        labels.append(np.asarray(case.y[::stride]))
        groups.append(group[::stride])
    return Evaluation(np.concatenate(blocks, axis=1), np.concatenate(labels), np.concatenate(groups))
