"""What every executor promises, by the same tests for the inline one and the one on Ray Tune."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
from tiny import ITERATIONS, events, iterations_done, opened, run, tiny_settings

from nx46vx.errors import EnvironmentFault, NX46Error
from nx46vx.events import verify_log
from nx46vx.model.blocks import BlockResult, LaneRequest
from nx46vx.model.candidates import Candidate
from nx46vx.model.factory import build_engine
from nx46vx.model.fitplan import FitPlan, load_fit_plan, open_fit_data
from nx46vx.model.neuron import NeuronSpec, prepare_neuron
from nx46vx.model.views import draw_views, relevance_gram
from nx46vx.paths import RunPaths
from nx46vx.pipeline.dataset import find_cases
from nx46vx.pipeline.fit import freeze, load_samples
from nx46vx.pipeline.run import make_executor
from nx46vx.pipeline.session import open_session
from nx46vx.runtime.atomic import write_json
from nx46vx.runtime.sink import MemorySink, NullSink
from nx46vx.runtime.stop import StopFlag
from nx46vx.settings import ResourceSettings, Settings
from search.cluster import prepare_environment
from search.executor import Executor, SearchJob
from search.inline import InlineExecutor
from search.resources import plan_resources
from search.source import CandidateSource
from trainables import task as task_room
from trainables.task import TaskFactory, open_store, read_record, state_of

RESOURCES = ResourceSettings(device="cpu", trials_in_flight=2)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> tuple[Path, Path]:
    """A run directory whose fit is frozen and not begun, and its cache."""
    root, cache = tmp_path_factory.mktemp("frozen") / "run", tmp_path_factory.mktemp("cache")
    settings = tiny_settings(tiny_data, {"features.cache_dir": str(cache)})
    with open_session(root, settings, StopFlag(), fresh=True) as session, ThreadPoolExecutor(2) as mapper:
        cases = find_cases(session, mapper)
        data, _, keys = load_samples(session, cases, mapper)
        freeze(session, cases, data, keys)
    return root, cache


@pytest.fixture(scope="module", params=["inline", "ray"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    made = make_executor(Settings.model_validate({"resources": {"executor": request.param}}))
    yield made
    made.close()


#: Through Ray in the slow tests only.
RAY_IS_SLOW = pytest.mark.parametrize(
    "executor", ["inline", pytest.param("ray", marks=pytest.mark.slow)], indirect=True, scope="module"
)


@dataclass
class Bench:
    """One run directory, and sessions on it."""

    root: Path
    cache: Path
    grow: Callable[[Mapping[str, Any]], tuple[NeuronSpec, list[Candidate]] | None] = lambda records: None
    fence: int = 1
    sink: MemorySink = field(default_factory=MemorySink)
    progress: list[tuple[int, int, int]] = field(default_factory=list)
    reports: list[tuple[str, int]] = field(default_factory=list)

    @property
    def plan(self) -> FitPlan:
        return load_fit_plan(self.root)

    def search(
        self, executor: Executor, until: int = ITERATIONS, should_stop: Callable[[], bool] = lambda: False
    ) -> CandidateSource:
        """One session: what is not finished is run."""
        self.fence += 1
        plan, store = self.plan, open_store(self.plan, self.root, self.fence)
        finished: dict[str, dict[str, Any]] = {}
        pending: list[LaneRequest] = []
        for candidate in plan.candidates:
            checkpoint = store.latest(candidate.candidate_id, sink=NullSink())
            if checkpoint is None:
                pending.append(plan.start(candidate, until))
            elif (record := read_record(plan, candidate, checkpoint))["iter"] >= until:
                finished[candidate.candidate_id] = record
            else:
                pending.append(LaneRequest(candidate, state_of(checkpoint), until))
        source = CandidateSource([request.candidate for request in pending], finished, self.grow)
        executor.run(
            SearchJob(
                plan, self.root, self.cache, source, tuple(pending), until, self.fence, plan_resources(RESOURCES),
                self.sink, should_stop, lambda: True, lambda *counts: self.progress.append(counts),
                lambda *report: self.reports.append(report),
            )
        )  # fmt: skip
        return source

    def states(self) -> dict[str, str]:
        """Digest of each candidate's state."""
        plan, store = self.plan, open_store(self.plan, self.root, self.fence)
        found = {c.candidate_id: store.latest(c.candidate_id, sink=NullSink()) for c in plan.candidates}
        return {name: state_of(checkpoint).digest for name, checkpoint in found.items() if checkpoint is not None}


@pytest.fixture
def bench(tmp_path: Path, frozen: tuple[Path, Path]) -> Bench:
    root = tmp_path / "run"
    shutil.copytree(frozen[0], root)
    return Bench(root, frozen[1])


@pytest.fixture(scope="module")
def expected(
    tmp_path_factory: pytest.TempPathFactory, frozen: tuple[Path, Path]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Records and states of an uninterrupted inline search."""
    root = tmp_path_factory.mktemp("expected") / "run"
    shutil.copytree(frozen[0], root)
    bench = Bench(root, frozen[1])
    records = bench.search(InlineExecutor()).records
    return untimed(records), bench.states()


def untimed(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {name: {k: v for k, v in record.items() if k != "seconds"} for name, record in records.items()}


def whole(until: int) -> list[int]:
    return list(range(1, until + 1))


def test_the_bits_are_those_of_the_inline_executor(bench: Bench, executor: Executor, expected: Any) -> None:
    source = bench.search(executor)
    assert source.ended
    assert untimed(source.records) == expected[0]
    assert bench.states() == expected[1]
    assert iterations_done(bench.root) == {c.candidate_id: whole(ITERATIONS) for c in bench.plan.candidates}
    assert len(events(bench.root, "CANDIDATE_DONE")) == len(bench.plan.candidates)
    assert {done for done, _, _ in bench.progress} == set(range(1, len(bench.plan.candidates) + 1))
    assert all(total == len(bench.plan.candidates) for _, total, _ in bench.progress)
    assert bench.sink.named("ENGINE_STATS")[0]["lane_iterations"] >= ITERATIONS * len(bench.plan.candidates)


def test_a_stopped_search_is_continued_to_the_same_bits(bench: Bench, executor: Executor, expected: Any) -> None:
    def stop() -> bool:  # once the first candidate is through
        return len(events(bench.root, "CANDIDATE_DONE")) > 0

    first = bench.search(executor, should_stop=stop)
    assert len(first.records) < len(bench.plan.candidates)
    finished = {event["candidate_id"] for event in events(bench.root, "CANDIDATE_DONE")}
    assert finished
    before = opened(bench.root)
    source = bench.search(executor)
    assert untimed(source.records) == expected[0]
    assert bench.states() == expected[1]
    assert iterations_done(bench.root) == {c.candidate_id: whole(ITERATIONS) for c in bench.plan.candidates}
    assert {name: opened(bench.root)[name] for name in finished} == {name: before[name] for name in finished}


def test_a_search_that_is_to_stop_at_once_does_nothing(bench: Bench, executor: Executor) -> None:
    source = bench.search(executor, should_stop=lambda: True)
    assert source.records == {}
    assert iterations_done(bench.root) == {}


@RAY_IS_SLOW
def test_more_epochs_continue_from_the_states(bench: Bench, executor: Executor, expected: Any) -> None:
    bench.search(executor)
    records = bench.search(executor, until=2 * ITERATIONS).records
    assert {record["iter"] for record in records.values()} == {2 * ITERATIONS}
    assert {record["epoch"] for record in records.values()} == {2}
    assert iterations_done(bench.root) == {c.candidate_id: whole(2 * ITERATIONS) for c in bench.plan.candidates}
    assert not set(bench.states().values()) & set(expected[1].values())
    at_once = Bench(bench.root.with_name("at-once"), bench.cache)
    shutil.copytree(bench.root, at_once.root)
    shutil.rmtree(RunPaths(at_once.root).checkpoints)
    shutil.rmtree(RunPaths(at_once.root).events)
    at_once.search(InlineExecutor(), until=2 * ITERATIONS)
    assert at_once.states() == bench.states()


@RAY_IS_SLOW
def test_growth_appends_a_neuron_whose_candidates_run_too(bench: Bench, executor: Executor, expected: Any) -> None:
    asked: list[set[str]] = []

    def grow(records: Mapping[str, Any]) -> tuple[NeuronSpec, list[Candidate]] | None:
        asked.append(set(records))
        plan = bench.plan
        if (k := len(plan.neurons)) == 3:
            return None
        data = open_fit_data(plan, bench.cache, NullSink())
        width = len(plan.neurons[0].view)
        views = draw_views(
            relevance_gram(data), data.pool, seed=plan.seed, width=width, meta_neurons=range(k + 1)
        )  # fmt: skip
        spec = prepare_neuron(data, plan.seed, k, views[k])
        path = RunPaths(bench.root).plan
        write_json(path, {**orjson.loads(path.read_bytes()), "fit": plan.grown(spec).to_json()})
        return spec, plan.grid.candidates([k])

    bench.grow = grow
    source = bench.search(executor)
    assert len(bench.plan.neurons) == 3
    old, new = bench.plan.grid.candidates(range(2)), bench.plan.grid.candidates([2])
    assert asked == [{c.candidate_id for c in old}, {c.candidate_id for c in (*old, *new)}]
    assert iterations_done(bench.root) == {c.candidate_id: whole(ITERATIONS) for c in (*old, *new)}
    records = untimed(source.records)
    assert {name: records[name] for name in expected[0]} == expected[0]
    assert all(records[c.candidate_id]["meta_neuron"] == 2 for c in new)


def test_a_broken_trial_is_an_error_and_loses_nothing(bench: Bench, executor: Executor, expected: Any) -> None:
    """The first candidate's log cannot be written; once it can, the same search goes on."""
    victim = bench.plan.candidates[0].candidate_id
    obstacle = RunPaths(bench.root).events / victim
    obstacle.parent.mkdir(parents=True, exist_ok=True)
    obstacle.write_text("in the way")
    with pytest.raises(EnvironmentFault, match=victim):  # exit code 7, wherever the trial ran
        bench.search(executor)
    obstacle.unlink()
    source = bench.search(executor)
    assert untimed(source.records) == expected[0]
    assert bench.states() == expected[1]


@pytest.mark.parametrize("executor", ["ray"], indirect=True, scope="module")
def test_what_an_engine_did_before_it_died_is_still_counted(bench: Bench, executor: Executor) -> None:
    """The engine that takes its place goes ahead with all four candidates; the first life advanced one of them."""
    import ray

    from search.engines import Engines

    executor.connect()  # type: ignore[attr-defined]
    plan, ten = bench.plan, 10
    job = SearchJob(
        plan, bench.root, bench.cache, CandidateSource([], {}, lambda records: None), (), ten, 2,
        plan_resources(RESOURCES), bench.sink, lambda: False, lambda: True, lambda *counts: None, lambda *report: None,
    )  # fmt: skip
    engines, limit = Engines(job), time.monotonic() + 60
    try:
        (actor,) = engines.actors
        request = plan.start(plan.candidates[0], ten)
        first = ray.get(actor.advance.remote(request))
        while not bench.sink.named("ENGINE_READY"):
            assert engines.failure is None and time.monotonic() < limit
        dying = ray.get(actor.stats.remote())["life"]
        (before,) = engines.stats()
        assert (before["lane_iterations"], before["restarts"]) == (ten, 0) and before["busy_seconds"] > 0
        ray.kill(actor, no_restart=False)
        while ray.get(actor.stats.remote())["life"] == dying:
            assert time.monotonic() < limit
        again = ray.get(actor.advance.remote(request))
        assert [block.state.digest for block in again] == [block.state.digest for block in first]
        while (alone := ray.get(actor.stats.remote()))["lane_iterations"] < len(plan.candidates) * ten:
            assert time.monotonic() < limit
        (both,) = engines.stats()
    finally:
        engines.end()
    assert both["restarts"] == 1 and both["lane_iterations"] == ten + alone["lane_iterations"]
    assert both["busy_seconds"] == before["busy_seconds"] + alone["busy_seconds"] > alone["busy_seconds"]


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["ray"], indirect=True, scope="module")
def test_an_uninterrupted_ray_run_holds_135_results(tmp_path: Path, tiny_data: Path, executor: Executor) -> None:
    from tiny import WHOLE, overlaid

    settings = Settings.model_validate(overlaid(WHOLE, {"data.dir": str(tiny_data)}))
    root = tmp_path / "run"
    report = run(settings, root, executor=executor)
    grid = executor.results  # type: ignore[attr-defined]
    assert len(grid) == 135 and grid.num_errors == 0
    plan, seen = load_fit_plan(root), set()
    store = open_store(plan, root, 10**6)
    for result in grid:
        assert set(result.config) == {"meta_neuron", "l1", "l2"}
        candidate = Candidate(**result.config)
        seen.add(candidate)
        assert result.metrics["iter"] == 120
        kept = store.latest(candidate.candidate_id, sink=NullSink())
        assert kept is not None
        record = read_record(plan, candidate, kept)
        assert result.metrics["objective"] == record["objective"]
        assert result.metrics["val_fbeta"] == record["val_fbeta"]
        with result.checkpoint.as_directory() as folder:
            names = {path.name for path in Path(folder).iterdir()}
            assert "ckpt_manifest.json" in names
            manifest = orjson.loads((Path(folder) / "ckpt_manifest.json").read_bytes())
            assert manifest["sha512_payload"] == kept.manifest["sha512_payload"]
    assert seen == set(plan.candidates) and len(seen) == 135
    assert report["candidates"] == 135 and report["reduced"] is False


def test_looks_at_stop_are_what_ends_a_search_between_blocks(bench: Bench) -> None:
    """A stop inside a candidate keeps its blocks: the next session repeats none of them."""
    looks = itertools.count()
    bench.search(InlineExecutor(), should_stop=lambda: next(looks) >= 1)
    name = bench.plan.candidates[0].candidate_id
    assert iterations_done(bench.root) == {name: whole(len(iterations_done(bench.root)[name]))}
    bench.search(InlineExecutor())
    assert iterations_done(bench.root)[name] == whole(ITERATIONS)


MOMENTS = ["before it is opened again", "while it is opened", "once it is open", "after a block", "at its end"]


@pytest.mark.parametrize("blocks_before", [0, 1])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_trial_that_outlives_its_session_harms_nothing(
    bench: Bench, expected: Any, monkeypatch: pytest.MonkeyPatch, moment: str, blocks_before: int
) -> None:
    """Processes of a killed session go on for seconds. Whenever the old one writes, the new one's result stands."""
    plan, candidate = bench.plan, bench.plan.candidates[1]
    real_store = task_room.open_store
    data = open_fit_data(plan, bench.cache, NullSink())
    engine, old_engine = build_engine(plan, data), build_engine(plan, data)
    with contextlib.ExitStack() as stack:
        stack.callback(engine.close)
        stack.callback(old_engine.close)
        old = stack.enter_context(OldTrial(bench, candidate, old_engine))
        for _ in range(blocks_before):
            old.go_on()
        if moment == MOMENTS[0]:
            old.go_on()
        if moment == MOMENTS[1]:
            monkeypatch.setattr(task_room, "open_store", lambda *given: (old.go_on(), real_store(*given))[1])
        with TaskFactory(plan, bench.root, ITERATIONS, 2).open(candidate) as new:
            monkeypatch.setattr(task_room, "open_store", real_store)
            if moment == MOMENTS[2]:
                old.go_on()
            while not new.done:
                new.advance(engine)
                if moment == MOMENTS[3]:
                    old.go_on()
            if moment == MOMENTS[4]:
                old.go_on()
            record = new.record
    assert untimed({"": record})[""] == expected[0][candidate.candidate_id]
    bench.fence = 3
    assert bench.states() == {candidate.candidate_id: expected[1][candidate.candidate_id]}
    assert iterations_done(bench.root) == {candidate.candidate_id: whole(ITERATIONS)}
    store = open_store(plan, bench.root, 4)
    assert verify_log(RunPaths(bench.root).events, store.anchors()) == []


class OldTrial:
    """A trial of session 1 that no one told to stop. What the log or the store refuse it is its own affair."""

    def __init__(self, bench: Bench, candidate: Candidate, engine: Any) -> None:
        self._open = TaskFactory(bench.plan, bench.root, ITERATIONS, 1).open(candidate)
        self._engine = engine

    def __enter__(self) -> OldTrial:
        self._task = self._open.__enter__()
        return self

    def go_on(self) -> None:
        with contextlib.suppress(NX46Error):
            if not self._task.done:
                self._task.advance(OneBlock(self._engine))

    def __exit__(self, *raised: Any) -> None:
        with contextlib.suppress(NX46Error):
            self._open.__exit__(None, None, None)


@dataclass(frozen=True)
class OneBlock:
    """An engine that is never ahead."""

    engine: Any

    def advance(self, request: LaneRequest) -> list[BlockResult]:
        return self.engine.advance(request)[:1]


def test_an_actor_that_tune_starts_in_vain_takes_nothing_over(
    bench: Bench, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``reuse_actors`` Tune may start an actor for a trial that another, just freed one runs meanwhile.

    Such an actor is built with the trial's configuration and never asked to train.
    """
    prepare_environment(None)
    from trainables import tune_adapter

    plan, candidate = bench.plan, bench.plan.candidates[1]
    engine = build_engine(plan, open_fit_data(plan, bench.cache, NullSink()))
    config = {"meta_neuron": candidate.meta_neuron, "l1": candidate.l1, "l2": candidate.l2}
    factory = TaskFactory(plan, bench.root, ITERATIONS, 2)

    class Trial(tune_adapter.CandidateTrial):
        def setup(self, config: dict[str, Any]) -> None:  # type: ignore[override]
            super().setup(config, factory=factory, engines=[engine])

    monkeypatch.setattr(tune_adapter, "RemoteEngine", OneBlock)
    monkeypatch.setattr(tune_adapter.ray, "get_gpu_ids", list)
    monkeypatch.setattr(tune_adapter, "REPORT_SECONDS", 0.0)
    with contextlib.closing(engine):
        trial = Trial(config)
        assert trial.train()["iter"] == 10
        in_vain = Trial(config)
        assert trial.train()["iter"] == ITERATIONS
        in_vain.stop()
        trial.stop()
    assert iterations_done(bench.root) == {candidate.candidate_id: whole(ITERATIONS)}
    assert opened(bench.root)[candidate.candidate_id] == 1
    assert not events(bench.root, "SUPERSEDES")
    bench.fence = 2
    assert bench.states() == {candidate.candidate_id: expected[1][candidate.candidate_id]}
