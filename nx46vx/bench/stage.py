"""A run directory and a feature cache of any size, made of random samples: where a search can be run for real."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

from nx46vx.bench.lanes import learnable_data, neurons_of, plan_of
from nx46vx.features.cache import FeatureCache
from nx46vx.features.entry import write_entry
from nx46vx.model.candidates import Candidate
from nx46vx.model.fitplan import FitPlan, open_fit_data
from nx46vx.model.neuron import NeuronSpec
from nx46vx.model.samples import FitData
from nx46vx.paths import RunPaths
from nx46vx.runtime.atomic import write_json
from nx46vx.runtime.digest import digest_json
from nx46vx.runtime.memory import read_family
from nx46vx.runtime.sink import MemorySink, NullSink
from search.executor import Executor, SearchJob
from search.resources import Resources
from search.source import CandidateSource

#: Samples of one case, as the shipped configurations draw them.
PER_CASE = 40_000


@dataclass
class Stage:
    """A frozen fit that was not begun, and everything that a search needs around it."""

    root: Path
    cache: Path
    plan: FitPlan
    sink: MemorySink = field(default_factory=MemorySink)

    @classmethod
    def make(cls, folder: Path, samples: int, validation: int, neurons: int) -> Stage:
        """Write the cache and the plan below ``folder``."""
        cache = FeatureCache(folder / "cache", sink=NullSink())
        keys: dict[str, list[str]] = {"train": [], "validation": []}
        for role, total in (("train", samples), ("validation", validation)):
            for number, start in enumerate(range(0, total, PER_CASE)):
                keys[role].append(digest_json([role, number, total]))
                size = min(PER_CASE, total - start)
                _write_case(
                    cache, keys[role][-1], f"{role}-{number}", size, seed=number + (role != "train") * 1_000_000
                )
        root = folder / "run"
        data = FitData(
            learnable_data(2, 2).pool, [cache.open(key) for key in keys["train"]],
            [cache.open(key) for key in keys["validation"]],
        )  # fmt: skip
        plan = replace(
            plan_of(data, neurons_of(data, neurons), "bench"),
            train_keys=tuple(keys["train"]), validation_keys=tuple(keys["validation"]),
        )  # fmt: skip
        write_json(RunPaths(root).plan, {"fit": plan.to_json()})
        return cls(root, folder / "cache", plan)

    def data(self) -> FitData:
        return open_fit_data(self.plan, self.cache, NullSink())

    def search(self, executor: Executor, resources: Resources) -> dict[str, Any]:
        """Every candidate through all its iterations; the engine's statistics."""
        self.sink.events.clear()
        requests = tuple(self.plan.start(candidate, self.plan.max_iter) for candidate in self.plan.candidates)

        def grow(records: Any) -> tuple[NeuronSpec, list[Candidate]] | None:
            return None

        source = CandidateSource(self.plan.candidates, {}, grow)
        job = SearchJob(
            plan=self.plan, run=self.root, cache=self.cache, source=source, expected=requests,
            until=self.plan.max_iter, fence=1, resources=resources, sink=self.sink, should_stop=lambda: False,
            may_start=lambda: True, on_progress=lambda *told: None, on_report=lambda *told: None,
        )  # fmt: skip
        executor.run(job)
        if len(source.records) != len(self.plan.candidates):
            raise RuntimeError(f"{len(source.records)} of {len(self.plan.candidates)} candidates came back")
        return self.sink.named("ENGINE_STATS")[-1]


def _write_case(cache: FeatureCache, key: str, name: str, size: int, seed: int) -> None:
    case = learnable_data(size, 2, seed=seed).train[0]
    arrays = {"features": case.features, "y": case.y, "index": case.index, "group": case.group}
    write_entry(cache.path(key), arrays, case_id=name, counts=case.counts, facts={})


@contextmanager
def peak_memory(every_s: float = 0.5) -> Iterator[Callable[[], int]]:
    """The most bytes that this process and all it started held at once, shared pages counted once."""
    most, over = 0, Event()

    def loop() -> None:
        nonlocal most
        while not over.wait(every_s):
            most = max(most, read_family().resident_bytes)

    thread = Thread(target=loop, name="peak-memory", daemon=True)
    thread.start()
    try:
        yield lambda: most
    finally:
        over.set()
        thread.join()
