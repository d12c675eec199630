"""What a session says of itself every few seconds, and that what it shows is held against the checkpoint store."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from tiny import CANDIDATES, ITERATIONS, Interrupted, events, run, tiny_settings

from nx46vx.errors import StoppedError
from nx46vx.logs import Screen
from nx46vx.model.fitplan import FitPlan, load_fit_plan
from nx46vx.pipeline import auditing
from nx46vx.pipeline.counts import train_counts
from nx46vx.pipeline.decisions import Decisions
from nx46vx.pipeline.session import Session, open_session
from nx46vx.pipeline.watching import STALL_SECONDS, Monitor, TrainWatch
from nx46vx.runtime.budget import Governor, Work
from nx46vx.runtime.memory import Family, Memory
from nx46vx.runtime.progress import DEFAULT_WEIGHTS, PHASES, Progress
from nx46vx.runtime.sink import MemorySink, NullSink
from nx46vx.runtime.stop import StopFlag
from nx46vx.settings import Settings
from trainables.task import open_store

TICK = 10.0


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


class Kept(Screen):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.views: list[dict[str, Any]] = []

    def show(self, view: Any) -> None:
        self.views.append(view)


@dataclass
class Watched:
    """A session whose stages, trials and clock are played by the test; the store is a real one."""

    session: Session
    plan: FitPlan
    clock: Clock
    sink: MemorySink
    watch: TrainWatch = field(default_factory=TrainWatch)
    screen: Kept = field(default_factory=Kept)
    share: float = 0.1

    def __post_init__(self) -> None:
        self.monitor = Monitor(self.session, self.watch, self.screen, memory=self.memory)

    def memory(self) -> Memory:
        return Memory(1000, round(1000 * self.share), "machine", Family(1, 10, "pss"))

    @property
    def names(self) -> list[str]:
        return [candidate.candidate_id for candidate in self.plan.candidates]

    def prepared(self) -> Watched:
        """Everything before the fit is done, and the fit begins where the store stands."""
        for phase in ("discovery", "load", "train_data"):
            self.session.progress.set(phase, 1.0)
        self.watch.begin(lambda: self.plan, {}, [], ITERATIONS)
        return self

    def commit(self, name: str, iterations: int, objective: float = 0.5) -> None:
        index = self.names.index(name)
        self.session.store(self.plan).commit(
            name, cursor={"epoch": 0, "candidate_index": index, "candidate_total": len(self.names),
                          "iter": iterations, "max_iter": self.plan.max_iter},
            model_state={"iterations": iterations}, arrays={"theta": np.zeros(3)}, metrics={"objective": objective},
            data_cursor={}, sink=NullSink(),
        )  # fmt: skip

    def trial(self, name: str, iterations: int, objective: float = 0.5) -> None:
        """A trial commits and reports."""
        self.commit(name, iterations, objective)
        self.watch.report(name, iterations)

    def tick(self, seconds: float = TICK) -> dict[str, Any]:
        self.clock.time += seconds
        return self.monitor.tick()

    def named(self, event: str) -> list[dict[str, Any]]:
        return self.sink.named(event)

    @property
    def alerts(self) -> list[dict[str, Any]]:
        return self.named("PROGRESS_INTEGRITY_ALERT")


def open_watched(root: Path, settings: Settings, budget: float = 3600.0) -> Iterator[Watched]:
    clock, sink, stop = Clock(), MemorySink(), StopFlag()
    with open_session(root, settings, stop, fresh=False) as session:
        governor = Governor(
            budget=budget, started=clock.time, work=Work(0, 1), costs=session.costs, clock=clock, sink=sink, stop=stop
        )
        progress = replace(session.progress, clock=clock)
        played = replace(session, log=sink, governor=governor, progress=progress, stop=stop)  # type: ignore[arg-type]
        yield Watched(played, load_fit_plan(root), clock, sink)


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A run whose fit is frozen and that has committed nothing; weighed by the shipped weights."""
    root = tmp_path / "run"
    root.mkdir()
    for name in ("config.yaml", "run.json", "plan.json"):
        shutil.copyfile(finished / name, root / name)
    Decisions(root / "decisions.json").put("progress", "weights", DEFAULT_WEIGHTS)
    return root


@pytest.fixture
def watched(root: Path, tiny_data: Path) -> Iterator[Watched]:
    yield from open_watched(root, tiny_settings(tiny_data))


def test_one_event_shows_progress_cursor_and_estimate_together(watched: Watched) -> None:
    watched.prepared().trial(watched.names[0], 20, 0.25)
    watched.trial(watched.names[1], 10, 0.75)
    watched.tick()
    (event,) = watched.named("GLOBAL_PROGRESS_REALTIME")
    done = 100 * (0.03 + 0.01 + 0.12 + 0.72 * 30 / (CANDIDATES * ITERATIONS))
    assert event["global_progress_reel"] == pytest.approx(done)
    assert event["train_progress_reel"] == pytest.approx(100 * 30 / 80)
    assert event["cursor"] == [0, 1, 10]
    assert event["remaining_estimate_s"] is None
    assert (event["candidates_done"], event["candidates_total"], event["in_flight"]) == (1, CANDIDATES, 1)
    assert event["best"] == {"candidate_id": watched.names[0], "objective": 0.25}
    (view,) = watched.screen.views
    assert {key: view[key] for key in event} == event
    assert watched.named("TRAIN_CURSOR")[0]["iter"] == 10 and watched.alerts == []


def test_a_candidate_that_growth_added_is_unfinished_before_it_reports(watched: Watched) -> None:
    watched.prepared()
    for name in watched.names[:-1]:
        watched.trial(name, ITERATIONS)
    assert watched.tick()["cursor"] == [0, CANDIDATES - 1, 0]


def test_more_shown_than_stored_raises_the_alert_and_names_both(watched: Watched) -> None:
    name = watched.names[2]
    watched.prepared().commit(name, 10)
    watched.watch.report(name, 20)
    view = watched.tick()
    (alert,) = watched.alerts
    assert alert["direction"] == "ahead" and alert["shown_and_stored"] == {name: [20, 10]}
    assert alert["shown_global_progress_reel"] == view["global_progress_reel"]
    assert alert["recomputed_global_progress_reel"] == pytest.approx(100 * (0.16 + 0.72 * 10 / 80))
    assert alert["difference"] == pytest.approx(72 * 10 / 80)


def test_less_shown_than_stored_at_the_tick_before_raises_the_alert_and_is_mended(watched: Watched) -> None:
    name = watched.names[1]
    watched.prepared().commit(name, 10)
    watched.tick()
    assert watched.alerts == []  # the report may be on its way
    watched.tick()
    (alert,) = watched.alerts
    assert alert["direction"] == "behind" and alert["shown_and_stored"] == {name: [0, 10]}
    assert alert["recomputed_global_progress_reel"] > alert["shown_global_progress_reel"] == pytest.approx(16.0)
    assert watched.tick()["global_progress_reel"] == pytest.approx(100 * (0.16 + 0.72 * 10 / 80))
    assert len(watched.alerts) == 1


def test_a_report_that_is_a_second_late_raises_nothing(watched: Watched) -> None:
    watched.prepared()
    for iterations in (10, 20):
        watched.commit(watched.names[0], iterations)
        watched.tick()
        watched.watch.report(watched.names[0], iterations)
    watched.commit(watched.names[1], 10)
    watched.tick()
    watched.tick(1.0)  # the tick at the end of some work comes at any time
    assert watched.alerts == []


def test_a_value_that_store_and_decisions_do_not_bear_out_raises_the_alert(watched: Watched) -> None:
    watched.prepared().trial(watched.names[0], 20)
    watched.session.progress.floor = 90.0
    watched.tick()
    (alert,) = watched.alerts
    assert (alert["direction"], alert["shown_global_progress_reel"], alert["shown_and_stored"]) == ("ahead", 90.0, {})
    assert alert["recomputed_global_progress_reel"] == pytest.approx(34.0)


def test_a_shown_value_that_does_not_follow_the_reports_raises_the_alert(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.prepared()
    monkeypatch.setattr(Progress, "set", lambda self, phase, share: None)
    watched.trial(watched.names[0], 20)
    watched.tick()
    watched.tick()
    (alert,) = watched.alerts
    assert (alert["direction"], alert["shown_and_stored"]) == ("behind", {})
    assert (alert["shown_global_progress_reel"], alert["recomputed_global_progress_reel"]) == (
        pytest.approx(16.0), pytest.approx(34.0),
    )  # fmt: skip


def test_weights_that_are_not_the_recorded_ones_raise_the_alert(watched: Watched) -> None:
    object.__setattr__(watched.session.progress, "weights", {**DEFAULT_WEIGHTS, "train_fit": 0.5, "segment": 0.32})
    watched.prepared().trial(watched.names[0], 20)
    watched.tick()
    watched.tick()
    (alert,) = watched.alerts
    assert alert["direction"] == "behind" and alert["recomputed_global_progress_reel"] == pytest.approx(34.0)


def test_an_alert_is_said_once_on_the_console(watched: Watched, capsys: pytest.CaptureFixture[str]) -> None:
    watched.prepared()
    watched.session.progress.floor = 90.0
    watched.tick()
    watched.tick()
    assert len(watched.alerts) == 2
    assert capsys.readouterr().err.count("PROGRESS_INTEGRITY_ALERT") == 1


def test_a_resumed_session_shows_what_is_committed_before_its_trials_begin(root: Path, tiny_data: Path) -> None:
    settings = tiny_settings(tiny_data)
    for watched in open_watched(root, settings):
        watched.prepared().trial(watched.names[0], 20)
        watched.tick()
        watched.commit(watched.names[1], 20)  # and the process is killed before the next tick
    for watched in open_watched(root, settings):
        shown = [watched.tick()["global_progress_reel"] for _ in range(3)]
        assert shown == [pytest.approx(36.0)] * 3  # 34 was shown; the fit alone is at half of its 72
        watched.prepared()
        watched.watch.correct({name: 20 for name in watched.names[:2]})
        assert watched.tick()["global_progress_reel"] == pytest.approx(100 * (0.16 + 0.36))
        assert watched.alerts == []


def test_masks_that_are_made_again_raise_no_alert(root: Path, tiny_data: Path) -> None:
    """A session that ended while segmenting had shown more than the next one can say at its beginning."""
    settings = tiny_settings(tiny_data)
    for watched in open_watched(root, settings):
        watched.prepared()
        for name in watched.names:
            watched.trial(name, ITERATIONS)
        watched.session.progress.set("segment", 0.5)
        assert watched.tick()["global_progress_reel"] == pytest.approx(93.0)
    for watched in open_watched(root, settings):
        assert [watched.tick()["global_progress_reel"] for _ in range(2)] == [pytest.approx(93.0)] * 2
        watched.prepared()
        watched.watch.correct({name: ITERATIONS for name in watched.names})
        watched.tick()
        assert watched.alerts == []


def test_a_checkpoint_that_was_lost_between_sessions_raises_the_alert(root: Path, tiny_data: Path) -> None:
    settings = tiny_settings(tiny_data)
    for watched in open_watched(root, settings):
        watched.prepared().trial(watched.names[0], 20)
        watched.tick()
        shutil.rmtree(root / "checkpoints" / watched.names[0])
    for watched in open_watched(root, settings):
        watched.tick()
        assert [alert["direction"] for alert in watched.alerts] == ["ahead"]
        assert watched.alerts[0]["recomputed_global_progress_reel"] == pytest.approx(16.0)


def test_when_the_search_is_wound_up_the_store_is_shown(watched: Watched) -> None:
    """The last reports of trials that were stopped may never come."""
    watched.prepared().commit(watched.names[0], 10)
    watched.tick()
    watched.session.stop.set("SIGTERM")
    view = watched.tick()
    assert view["train_progress_reel"] == pytest.approx(100 * 10 / 80) and view["governor_state"] == "STOP"
    assert watched.alerts == []


def test_before_anything_moved_nothing_is_known_of_the_time_left(watched: Watched) -> None:
    watched.tick()
    (tick,) = watched.named("TIME_BUDGET_STATE")
    assert tick["eta_per_phase_s"] == {**dict.fromkeys(PHASES), "total": None}


def test_every_phase_has_an_estimate_once_the_fit_moves_and_zero_when_it_is_done(watched: Watched) -> None:
    watched.session.governor.work = Work(4, 2)
    watched.clock.time += 16.0
    watched.prepared()
    for iterations in (0, 5, 10, 15):
        watched.trial(watched.names[0], iterations)
        watched.tick()
    etas = watched.named("TIME_BUDGET_STATE")[-1]["eta_per_phase_s"]
    assert [etas[phase] for phase in ("discovery", "load", "train_data")] == [0.0, 0.0, 0.0]
    assert etas["train_fit"] == pytest.approx(10.0)  # 5 of 20 iterations are left, 2 s each
    # what took 16 s weighs 0.16, the fit's 40 s and the 10 s to come weigh 0.72
    assert etas["segment"] == pytest.approx((16.0 + 50.0) / 0.88 * 0.10)
    assert etas["package"] == pytest.approx((16.0 + 50.0) / 0.88 * 0.02)
    assert etas["total"] == pytest.approx(sum(etas[phase] for phase in PHASES))
    assert watched.screen.views[-1]["remaining_estimate_s"] == etas["total"]
    watched.session.costs.add("segment_case", 3.0)
    watched.session.costs.add("package", 2.0)
    watched.session.costs.add("ensemble", 1.0)
    measured = watched.tick(0.0)["eta_per_phase_s"]
    assert (measured["segment"], measured["package"]) == (3.0 * 6 + 1.0, 2.0)
    for phase in PHASES:
        watched.session.progress.set(phase, 1.0)
    assert watched.tick()["eta_per_phase_s"] == dict.fromkeys((*PHASES, "total"), 0.0)


def test_what_a_session_measured_tells_the_next_one_from_its_begin(root: Path, tiny_data: Path) -> None:
    settings = tiny_settings(tiny_data)
    for watched in open_watched(root, settings):
        watched.clock.time += 8.0
        watched.prepared()
        with watched.monitor.running(60.0):
            for iterations in (0, 5, 10, 15):
                watched.trial(watched.names[0], iterations)
                watched.tick()
        watched.session.costs.save()
    for watched in open_watched(root, settings):
        view = watched.tick()
        assert view["eta_per_phase_s"]["train_fit"] == pytest.approx(2.0 * 20)  # three candidates have not begun
        assert view["remaining_estimate_s"] == view["eta_per_phase_s"]["total"] > 40.0


def test_a_fit_that_is_nearly_done_still_tells_how_long_the_rest_takes(root: Path, tiny_data: Path) -> None:
    settings = tiny_settings(tiny_data)
    for watched in open_watched(root, settings):
        watched.prepared()
        for name in watched.names[:3]:
            watched.trial(name, ITERATIONS)
        watched.tick()
    for watched in open_watched(root, settings):
        watched.prepared()
        watched.watch.correct({name: ITERATIONS for name in watched.names[:3]})
        for iterations in (0, 5, 10, 15, 19):
            watched.trial(watched.names[3], iterations)
            watched.tick()
        etas = watched.screen.views[-1]["eta_per_phase_s"]
        # this session's 50 s and the 2 s to come are a quarter of the fit's weight
        assert etas["segment"] == pytest.approx(0.10 * (50.0 + etas["train_fit"]) / (0.72 / 4))
        assert etas["train_fit"] == pytest.approx(1.0 / (14.0 / 30.0)) and etas["total"] is not None


def test_trials_that_end_between_two_reports_are_in_flight_all_the_same(watched: Watched) -> None:
    watched.prepared().watch.told_in_flight = 3
    assert watched.tick()["in_flight"] == 3
    watched.watch.begin(lambda: watched.plan, {}, [], ITERATIONS)
    assert watched.tick()["in_flight"] == 0


def test_what_was_planned_tells_before_anything_was_measured(watched: Watched) -> None:
    path = watched.session.paths.plan
    estimate = {"features_seconds": 5.0, "train_seconds": 70.0, "segment_seconds": 9.0, "total_seconds": 84.0}
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), "estimate": estimate}))
    watched.session.progress.set("discovery", 1.0)
    etas = watched.tick()["eta_per_phase_s"]
    assert [etas[phase] for phase in ("train_data", "train_fit", "segment")] == [5.0, 70.0, 9.0]


def test_a_guess_turns_no_acceleration_on_and_a_measure_does(watched: Watched) -> None:
    watched.clock.time += 3000.0
    watched.prepared().trial(watched.names[0], 1)
    watched.tick()
    assert watched.named("RUNTIME_ACCELERATION_MODE_ON") == []
    watched.trial(watched.names[0], 2)
    watched.tick()
    watched.trial(watched.names[0], 3)
    watched.tick(200.0)
    assert len(watched.named("RUNTIME_ACCELERATION_MODE_ON")) == 1


def test_a_stall_is_an_alert_once_and_commits_end_it(watched: Watched, capsys: pytest.CaptureFixture[str]) -> None:
    watched.prepared().trial(watched.names[0], 10)
    for _ in range(13):
        watched.tick()
    (alert,) = watched.named("STALL_ALERT")
    assert alert["seconds_without_progress"] >= STALL_SECONDS
    assert alert["cursor"] == [0, 0, 10] and "global_progress_reel" in alert
    assert "nothing has moved" in capsys.readouterr().err
    watched.trial(watched.names[0], 20)
    for _ in range(12):
        watched.tick()
    assert len(watched.named("STALL_ALERT")) == 1
    watched.tick()
    assert len(watched.named("STALL_ALERT")) == 2


def test_commits_are_no_stall_where_the_shown_value_waits(watched: Watched) -> None:
    """Below the value of an earlier session, or of an earlier target, work goes on without moving what is shown."""
    watched.prepared()
    watched.session.progress.floor = 95.0
    for iterations in range(1, 17):
        watched.trial(watched.names[0], iterations)
        watched.tick()
    assert watched.named("STALL_ALERT") == []


def test_memory_is_in_an_event_at_every_tick_and_a_rise_is_said_once(
    watched: Watched, capsys: pytest.CaptureFixture[str]
) -> None:
    for share in (0.5, 0.9, 0.9, 0.97, 0.5):
        watched.share = share
        watched.tick()
    assert [event["level"] for event in watched.named("MEMORY_HEALTH")] == [
        "ok", "warning", "warning", "critical", "ok",
    ]  # fmt: skip
    said = [line for line in capsys.readouterr().err.splitlines() if " memory warning" in line or "critical" in line]
    assert len(said) == 2 and "90 % of this machine's memory" in said[0] and "97 %" in said[1]


def test_a_run_ticks_at_its_begin_regularly_and_at_its_end(watched: Watched) -> None:
    watched.clock.__class__ = type("Real", (Clock,), {"__call__": lambda self: time.monotonic()})
    monitor = Monitor(watched.session, watched.watch, watched.screen, clock=time.monotonic, memory=watched.memory)
    with monitor.running(0.2):
        time.sleep(0.75)
    seen = len(watched.screen.views)
    assert 4 <= seen <= 6  # at 0, 0.2, 0.4, 0.6 and the end
    time.sleep(0.3)
    assert len(watched.screen.views) == seen
    assert not any(thread.name == "monitor" for thread in threading.enumerate())


def test_watching_that_fails_does_not_end_the_work(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Memory:
        raise OSError("no memory to be read")

    monitor = Monitor(watched.session, watched.watch, watched.screen, memory=broken)
    with monitor.running(60.0):
        pass
    assert {event["error"] for event in watched.named("MONITOR_FAILED")} == {"OSError: no memory to be read"}


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Monitors tick twenty times a second, and a report may be late by a fifth of a second only."""
    real = Monitor.running
    monkeypatch.setattr(Monitor, "running", lambda self, seconds: real(self, 0.05))
    monkeypatch.setattr(auditing, "LAG_SECONDS", 0.2)


def shown(root: Path) -> list[float]:
    return [event["global_progress_reel"] for event in events(root, "GLOBAL_PROGRESS_REALTIME", all_lines=True)]


def whole_only_at_the_end(root: Path) -> bool:
    """100 is shown, and only after the last stage's and the budget's final word."""
    told = [event for event in events(root, all_lines=True) if event["writer"] == "driver"]
    last = max(number for number, event in enumerate(told) if event["event"] == "RUNTIME_BUDGET_FINAL")
    whole = [number for number, event in enumerate(told) if event.get("global_progress_reel") == 100.0]
    return bool(whole) and min(whole) > last


def nothing_wrong(root: Path) -> bool:
    wrong = ("PROGRESS_INTEGRITY_ALERT", "MONITOR_FAILED", "STALL_ALERT")
    return [event for name in wrong for event in events(root, name, all_lines=True)] == []


RUNS = {
    "plain": {},
    "blocks that end between checkpoints": {"solver.block_iterations": 7},
    "grown": {
        "growth.enabled": True, "growth.max_meta_neurons": 4, "growth.min_gain_se": 0.0, "growth.max_gap_se": 1e3,
        "seed": 0,
    },
    "two epochs": {"epochs.supervised_epochs": 2},
    "open-ended": {"epochs.supervised_epochs": 0, "epochs.convergence_min_delta": 0.001},
}  # fmt: skip


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_never_goes_back_and_reaches_100_only_at_its_end(
    tmp_path: Path, tiny_data: Path, often: None, kind: str
) -> None:
    run(tiny_settings(tiny_data, RUNS[kind]), tmp_path / "run")
    values = shown(tmp_path / "run")
    assert values == sorted(values) and len(set(values)) > 2  # a run of half a second
    assert whole_only_at_the_end(tmp_path / "run")
    assert nothing_wrong(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_neither_does_a_run_of_several_sessions(tmp_path: Path, tiny_data: Path, often: None, kind: str) -> None:
    settings, root = tiny_settings(tiny_data, RUNS[kind]), tmp_path / "run"
    for looks in (2, 3):
        with pytest.raises(StoppedError):
            run(settings, root, executor=Interrupted(looks))
    before = shown(root)
    run(settings, root)
    values = shown(root)
    assert values == sorted(values) and values[: len(before)] == before
    assert before[-1] < 100.0 and whole_only_at_the_end(root)
    assert nothing_wrong(root)


@pytest.mark.parametrize("executor", ["inline", "ray"])
def test_trials_report_what_the_store_has_and_nothing_else(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, executor: str
) -> None:
    """Blocks of 7 iterations, checkpoints at every tenth: what was computed since then is not reported."""
    root, reports, real = tmp_path / "run", [], TrainWatch.report

    def report(self: TrainWatch, name: str, iterations: int) -> None:
        checkpoint = open_store(load_fit_plan(root), root, 0).latest(name)
        stored = 0 if checkpoint is None else checkpoint.manifest["model_state"]["iterations"]
        reports.append((iterations, stored))
        real(self, name, iterations)

    monkeypatch.setattr(TrainWatch, "report", report)
    run(tiny_settings(tiny_data, {"solver.block_iterations": 7, "resources.executor": executor}), root)
    assert all(reported <= stored for reported, stored in reports)
    assert [reported for reported, _ in reports].count(ITERATIONS) >= CANDIDATES
    assert nothing_wrong(root)


def test_growth_fills_a_share_that_was_kept_for_it(tmp_path: Path, tiny_data: Path, often: None) -> None:
    """With room for two more neurons of which one is added, the grid alone makes 80 % of the fit."""
    root = tmp_path / "run"
    run(tiny_settings(tiny_data, RUNS["grown"]), root)
    for session in open_session_of(root, tiny_settings(tiny_data, RUNS["grown"])):
        plan = load_fit_plan(root)
        assert len(plan.neurons) > 2
        grid = {c.candidate_id: ITERATIONS for c in plan.candidates if c.meta_neuron < 2}
        assert train_counts(session, replace(plan, neurons=plan.neurons[:3]), grid).share == pytest.approx(0.8)
        assert train_counts(session, plan, {c.candidate_id: ITERATIONS for c in plan.candidates}).share == 1.0


def open_session_of(root: Path, settings: Settings) -> Iterator[Session]:
    with open_session(root, settings, StopFlag(), fresh=False) as session:
        yield session


def test_the_target_of_an_open_ended_run_is_two_until_an_epoch_ends(root: Path, tiny_data: Path) -> None:
    plan = load_fit_plan(root)
    settings = tiny_settings(tiny_data, {"epochs.supervised_epochs": 0, "epochs.convergence_patience": 3})
    (root / "config.yaml").write_text(settings.as_yaml())
    for session in open_session_of(root, settings):
        decisions: Callable[[], Decisions] = lambda: Decisions(session.paths.decisions)  # noqa: B023, E731
        half = {candidate.candidate_id: ITERATIONS // 2 for candidate in plan.candidates}
        whole = {candidate.candidate_id: ITERATIONS for candidate in plan.candidates}
        more = {candidate.candidate_id: ITERATIONS + ITERATIONS // 2 for candidate in plan.candidates}
        assert (train_counts(session, plan, half).target, train_counts(session, plan, half).share) == (2, 0.25)
        assert (train_counts(session, plan, whole).target, train_counts(session, plan, whole).share) == (2, 0.5)
        assert train_counts(session, plan, more).target == 2  # an epoch's end is when its best objective is recorded
        decisions().put("epoch_best", 0, -0.5)
        assert (train_counts(session, plan, more).target, train_counts(session, plan, more).share) == (4, 0.5)
        decisions().put("epoch_best", 1, -0.5)
        assert train_counts(session, plan, more).target == 4
