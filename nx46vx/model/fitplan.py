"""What a fit is made of, as plain data: enough to rebuild the engine and every trial in any process.

This is the part of ``plan.json`` that trials and engines read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import orjson
from pydantic import TypeAdapter

from nx46vx.features.entry import entry_path, open_entry
from nx46vx.model.blocks import LaneRequest, start_request
from nx46vx.model.candidates import TILE, Candidate, Grid
from nx46vx.model.neuron import NeuronSpec
from nx46vx.model.samples import FitData
from nx46vx.model.solver import Method
from nx46vx.paths import RunPaths
from nx46vx.runtime.digest import digest_json
from nx46vx.runtime.record import read_record, understood, unusable
from nx46vx.runtime.sink import EventSink


@dataclass(frozen=True)
class FitPlan:
    """One run's fit. ``train_keys`` and ``validation_keys`` are content addresses in the feature cache."""

    run_id: str
    seed: int
    pool: tuple[str, ...]
    train_keys: tuple[str, ...]
    validation_keys: tuple[str, ...]
    l1: tuple[float, ...]
    l2: tuple[float, ...]
    max_iter: int
    method: Method
    block: int
    identity: Mapping[str, str]
    neurons: tuple[NeuronSpec, ...]

    @property
    def grid(self) -> Grid:
        return Grid(self.l1, self.l2)

    @property
    def candidates(self) -> list[Candidate]:
        """All candidates of the neurons there are, in the grid's order."""
        return self.grid.candidates(spec.meta_neuron for spec in self.neurons)

    @property
    def data_cursor(self) -> dict[str, Any]:
        """Which data a checkpoint was fitted on: files by content, and how far each iteration reads (all of it)."""
        files = [*self.train_keys, *self.validation_keys]
        return {"files": len(files), "offset": 0, "digest": digest_json(files)}

    def spec(self, meta_neuron: int) -> NeuronSpec:
        return self.neurons[meta_neuron]

    def grown(self, spec: NeuronSpec) -> FitPlan:
        """The same fit with one more meta-neuron."""
        return replace(self, neurons=(*self.neurons, spec))

    def start(self, candidate: Candidate, until: int) -> LaneRequest:
        """The request of a candidate that has not begun."""
        return start_request(candidate, self.spec(candidate.meta_neuron), until)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"neurons": [spec.to_json() for spec in self.neurons]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FitPlan:
        """Strictly: every value is of its type and possible.

        Raises:
            ValueError: what is not.
        """
        plan = _schema().validate_json(orjson.dumps(value), strict=True)
        told = [spec.get("digest") for spec in value["neurons"]]
        for number, spec in enumerate(plan.neurons):
            if spec.meta_neuron != number or spec.digest != told[number]:
                raise ValueError(f"fit.neurons[{number}] does not match its own digest")
            if len(spec.shift) != 3 * len(spec.view) or len(spec.scale) != 3 * len(spec.view):
                raise ValueError(f"fit.neurons[{number}] has {len(spec.view)} features and {len(spec.scale)} scales")
        pairs = len(set(plan.l1)) * len(set(plan.l2))
        if min(plan.max_iter, plan.block, pairs) < 1 or max(pairs, len(plan.l1) * len(plan.l2)) > TILE:
            raise ValueError("fit: max_iter, block, l1 or l2 is impossible")
        return plan


@cache
def _schema() -> TypeAdapter[FitPlan]:
    return TypeAdapter(FitPlan)


def load_fit_plan(run: Path) -> FitPlan:
    """The fit of a run directory, with the neurons that growth added so far.

    Raises:
        IntegrityError: ``plan.json`` is missing, unreadable or holds no frozen fit.
    """
    path = RunPaths(run).plan
    try:
        plan = read_record(path)
    except FileNotFoundError as error:
        raise unusable(path, "there is none") from error
    with understood(path):
        return FitPlan.from_json(plan["fit"])


def open_fit_data(plan: FitPlan, cache_root: Path, sink: EventSink | None = None) -> FitData:
    """Map the samples of a fit from the feature cache. What computes features is not loaded for it.

    Raises:
        IntegrityError: an entry is missing or damaged.
    """
    train, validation = (
        [open_entry(entry_path(cache_root, key), "") for key in keys]
        for keys in (plan.train_keys, plan.validation_keys)
    )
    return FitData(plan.pool, train, validation)
