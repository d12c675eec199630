"""The engines of a search: one for each spot, each the owner of every so-manieth meta-neuron's tile."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nx46vx.errors import NX46Error
from nx46vx.model.blocks import LaneRequest
from nx46vx.model.neuron import NeuronSpec
from search.engine_actor import EngineActor
from search.entries import start_source
from search.executor import SearchJob
from search.lives import Lives
from search.resources import ENGINE_CPUS, Spot

#: How often engines are asked for events that they have to tell, and for what they did: no more is lost if one dies.
TELL_SECONDS = 1.0


class Engines:
    """Started without waiting for them; ``failure`` says whether one could not be built.

    They ask Ray for no GPU: each is bound to its own by its id, so that what trials ask for is theirs alone.
    """

    def __init__(self, job: SearchJob) -> None:
        resources, number = job.resources, len(job.resources.spots)
        elsewhere = [spot for spot in resources.spots if spot.node != resources.here]
        self._entries = start_source(job.cache, resources.here) if elsewhere else None
        self.actors = [
            _actor(spot, resources.most_in_flight).remote(
                str(job.run), str(job.cache_at(spot)), spot, resources.options, (place, number), self._entries
            )
            for place, spot in enumerate(resources.spots)
        ]
        self._sink = job.sink
        self._pending = {actor.ready.remote(): place for place, actor in enumerate(self.actors)}
        self._spots = resources.spots
        self._failure: NX46Error | None = None
        self._asked: dict[Any, int] = {}
        self._lives = Lives()
        self._ask_again = time.monotonic() + TELL_SECONDS
        self.expect(job.expected)

    def expect(self, requests: Sequence[LaneRequest]) -> None:
        """Tell each engine which lanes to go ahead with: those of its own tiles."""
        count = len(self.actors)
        for number, actor in enumerate(self.actors):
            actor.expect.remote([r for r in requests if r.candidate.meta_neuron % count == number])

    def add_neuron(self, spec: NeuronSpec) -> None:
        ray.get([actor.add_neuron.remote(spec) for actor in self.actors])

    @property
    def failure(self) -> NX46Error | None:
        """Why an engine could not be built, as far as is known by now. Never waits; tells what engines have to tell."""
        for one, place in _there(self._pending):
            try:
                found = ray.get(one)
            except NX46Error as error:
                self._failure = self._failure or error
                continue
            spot = self._spots[place]
            self._sink.emit("ENGINE_READY", engine=place, device=spot.device, kind=spot.kind, **found)
            self._asked[self.actors[place].told.remote()] = place
        for one, place in _there(self._asked):
            self._tell(place, *ray.get(one))
        if time.monotonic() >= self._ask_again and not self._pending and not self._asked:
            self._ask_again = time.monotonic() + TELL_SECONDS
            self._asked = {actor.told.remote(): place for place, actor in enumerate(self.actors)}
        return self._failure

    def _tell(self, place: int, notes: list[tuple[str, dict[str, Any]]], stats: dict[str, Any] | None) -> None:
        for event, fields in notes:
            self._sink.emit(event, engine=place, **fields)
        if stats is not None:
            self._lives.tell(place, stats)

    def stats(self) -> list[dict[str, Any]]:
        """Of each engine, over all its lives as far as they are known; what they have to tell is told first.

        Raises:
            NX46Error: one could not be built.
        """
        ray.get([actor.stats.remote() for actor in self.actors])
        if self.failure is not None:
            raise self.failure
        for asked, place in [*self._asked.items(), *((a.told.remote(), n) for n, a in enumerate(self.actors))]:
            self._tell(place, *ray.get(asked))
        if self._entries is not None:
            sent = ray.get(self._entries.sent.remote())
            self._sink.emit("ENTRIES_SENT", entries=len(sent), times=sum(sent.values()))
        return [self._lives.total(place) for place in range(len(self.actors))]

    def end(self) -> None:
        for actor in (*self.actors, *([self._entries] if self._entries is not None else [])):
            ray.kill(actor)


def _there(asked: dict[Any, int]) -> list[tuple[Any, int]]:
    """What has been answered by now; it is taken out."""
    if not asked:
        return []
    done = ray.wait(list(asked), num_returns=len(asked), timeout=0)[0]
    return [(one, asked.pop(one)) for one in done]


def _actor(spot: Spot, trials: int) -> Any:
    options: dict[str, Any] = {
        "num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "max_concurrency": trials + 16,
    }  # fmt: skip
    if spot.node:  # soft: if the machine is lost, the engine goes on elsewhere
        options["num_cpus"] = ENGINE_CPUS  # Ray takes a soft wish for no hint at all where nothing is asked for
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(spot.node, soft=True)
    return ray.remote(**options)(EngineActor)
