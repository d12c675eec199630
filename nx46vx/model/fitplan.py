"""What a fit is made of, as plain data: enough to rebuild the engine and every trial in any process.

This is the part of ``plan.json`` that trials and engines read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from nx46vx.errors import IntegrityError
from nx46vx.model.blocks import LaneRequest, start_request
from nx46vx.model.candidates import Candidate, Grid
from nx46vx.model.neuron import NeuronSpec
from nx46vx.model.samples import FitData
from nx46vx.model.solver import Method
from nx46vx.paths import RunPaths
from nx46vx.runtime.digest import digest_json
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
        fields = {name: value[name] for name in cls.__dataclass_fields__}
        for name in ("pool", "train_keys", "validation_keys", "l1", "l2"):
            fields[name] = tuple(fields[name])
        fields["neurons"] = tuple(NeuronSpec.from_json(spec) for spec in value["neurons"])
        return cls(**fields)


def load_fit_plan(run: Path) -> FitPlan:
    """The fit of a run directory, with the neurons that growth added so far.

    Raises:
        IntegrityError: ``plan.json`` is missing, unreadable or holds no frozen fit.
    """
    path = RunPaths(run).plan
    try:
        return FitPlan.from_json(orjson.loads(path.read_bytes())["fit"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            "the plan cannot be read", where=path, found=f"{type(error).__name__}: {error}",
            fix="restore plan.json from a copy, or start a new run directory",
        ) from error  # fmt: skip


def open_fit_data(plan: FitPlan, cache_root: Path, sink: EventSink) -> FitData:
    """Map the samples of a fit from the feature cache.

    Raises:
        IntegrityError: an entry is missing or damaged.
    """
    from nx46vx.features.cache import FeatureCache  # loads what computes features, which trials do not need

    cache = FeatureCache(cache_root, sink=sink)
    return FitData(
        plan.pool, [cache.open(key) for key in plan.train_keys], [cache.open(key) for key in plan.validation_keys]
    )
