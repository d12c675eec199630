"""The engine as a Ray actor: one per device. It can die and be restarted at any time; trials then ask again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from nx46vx.model.blocks import BlockResult, LaneRequest
from nx46vx.model.neuron import NeuronSpec


class EngineActor:
    """Built from the run's plan on disk, so a restart knows the neurons that growth added."""

    def __init__(self, run: str, cache: str, device: str, threads: int) -> None:
        from nx46vx.model.factory import build_engine  # the numerics are wanted in this process only
        from nx46vx.model.fitplan import load_fit_plan, open_fit_data
        from nx46vx.runtime.sink import NullSink

        plan = load_fit_plan(Path(run))
        data = open_fit_data(plan, Path(cache), NullSink())
        self._engine = build_engine(plan, data, device=device, threads=threads, background=True)

    def advance(self, request: LaneRequest) -> list[BlockResult]:
        """Blocks from the request's state on; waits until there is one."""
        return self._engine.advance(request)

    def expect(self, requests: Sequence[LaneRequest]) -> None:
        self._engine.expect(requests)

    def add_neuron(self, spec: NeuronSpec) -> None:
        self._engine.add_neuron(spec)

    def gpu(self) -> str:
        """The id of the GPU that Ray assigned to this engine; empty on the CPU."""
        ids = ray.get_gpu_ids()
        return str(ids[0]) if ids else ""

    def stats(self) -> dict[str, Any]:
        return self._engine.stats()
