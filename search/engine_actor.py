"""The engine as a Ray actor: one per device. It can die and be restarted at any time; trials then ask again."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from nx46vx.errors import EnvironmentFault, NX46Error
from nx46vx.model.blocks import BlockResult, LaneRequest
from nx46vx.model.neuron import NeuronSpec
from nx46vx.model.options import EngineOptions
from search.resources import Spot

#: Longest that the first trials wait for one another, from when the first one is there.
TOGETHER_SECONDS = 20.0


class EngineActor:
    """Built from the run's plan on disk, so a restart knows the neurons that growth added.

    ``owned``: (engine's number, number of engines); it advances the tiles of every so-manieth meta-neuron.
    ``entries``: where entries come from that this machine's cache lacks (``search.entries``), or None.
    """

    def __init__(
        self, run: str, cache: str, spot: Spot, options: EngineOptions, owned: tuple[int, int], entries: Any = None
    ) -> None:
        self._run, self._owned, self._life = Path(run), owned, uuid.uuid4().hex
        self._restarted = bool(ray.get_runtime_context().was_current_actor_reconstructed)
        self._changed = threading.Condition()
        self._arrived, self._first_arrival, self._met = 0, 0.0, self._restarted
        self._engine: Any = None
        self._failure: NX46Error | None = None
        try:
            self._build(Path(cache), _bound(spot), options, entries)
        except NX46Error as error:  # starting it again would not help: who asks is told
            self._failure = error

    def _build(self, cache: Path, spot: Spot, options: EngineOptions, entries: Any) -> None:
        from nx46vx.model.factory import build_engine  # the numerics are wanted in this process only
        from nx46vx.model.fitplan import load_fit_plan, open_fit_data
        from nx46vx.runtime.sink import NullSink

        plan = load_fit_plan(self._run)
        if entries is not None:
            from search.entries import fetch_missing

            fetch_missing((*plan.train_keys, *plan.validation_keys), cache, entries)
        data = open_fit_data(plan, cache, NullSink())
        device = "cuda:0" if spot.device == "cuda" else "cpu"
        self._engine = build_engine(plan, data, device=device, threads=spot.threads, background=True, options=options)
        self._plan = plan

    def ready(self) -> dict[str, Any]:
        """That it stands, and where.

        Raises:
            NX46Error: it could not be built.
        """
        self._check()
        context = ray.get_runtime_context()
        return {"node": context.get_node_id(), "pid": os.getpid(), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES", "")}

    def advance(self, request: LaneRequest) -> list[BlockResult]:
        """Blocks from the request's state on; waits until there is one."""
        self._check()
        if self._restarted:
            self._catch_up(request.until)
        return self._engine.advance(request)

    def expect(self, requests: Sequence[LaneRequest]) -> None:
        self._check()
        self._engine.expect(requests)

    def add_neuron(self, spec: NeuronSpec) -> None:
        self._check()
        self._engine.add_neuron(spec)

    def meet(self, trials: int) -> None:
        """Wait until so many trials' processes are there, or long enough.

        A trial that ends while others' processes are still starting hands its own process to one of them, and Tune then
        ends the one that is nearly there and starts another: without end, if trials are shorter than starts.
        """
        with self._changed:
            self._first_arrival = self._first_arrival or time.monotonic()
            self._arrived += 1
            self._met = self._met or self._arrived >= trials
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._met, max(self._first_arrival + TOGETHER_SECONDS - time.monotonic(), 0.0)
            )
            self._met = True

    def stats(self) -> dict[str, Any]:
        """``FitEngine.stats`` since this life of the actor began, and ``life``, its name."""
        self._check()
        return {**self._engine.stats(), "life": self._life}

    def told(self) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, Any] | None]:
        """Events that it has to tell since it was last asked (name and fields), and ``stats``, if it could be built."""
        return ([], None) if self._engine is None else (self._engine.notes(), self.stats())

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _catch_up(self, until: int) -> None:
        """After a restart: go ahead with all lanes of its tiles again, from where the store says they stand."""
        from search.standing import standing_requests

        with self._changed:
            if self._restarted:
                self._restarted = False
                self._engine.expect(standing_requests(self._plan, self._run, until, self._owned))


def _bound(spot: Spot) -> Spot:
    """Bind this process to its spot's GPU, before anything looks for one.

    Raises:
        EnvironmentFault: restarted on another machine, which has no GPU of the same kind: it would give other bits.
    """
    if not spot.gpu:
        return spot
    if spot.node not in ("", ray.get_runtime_context().get_node_id()):
        from nx46vx.runtime.device import choose_device

        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        gpus = [gpu for gpu in choose_device("auto", "most_free").gpus if gpu.kind == spot.kind]
        if not gpus:
            raise EnvironmentFault(
                "the machine of a GPU is gone, and no other one of its kind is left", where=f"node {spot.node}",
                found=f"no {spot.kind} here", fix="run the same command again: it continues on what there is",
            )  # fmt: skip
        spot = replace(spot, gpu=gpus[0].id)
    os.environ["CUDA_VISIBLE_DEVICES"] = spot.gpu
    return spot
