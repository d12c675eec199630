"""The governor hands in on time: states, reserve, margin, refusals, and 200 simulated sessions."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from nx46vx.errors import StoppedError, UsageError
from nx46vx.pipeline.governing import _accelerations
from nx46vx.runtime.budget import (
    ACCELERATIONS,
    Governor,
    State,
    Work,
    margin_of,
    parse_duration,
    require_budget,
    smallest_budget,
)
from nx46vx.runtime.clock import now, session_start
from nx46vx.runtime.costs import CostBook, percentile_95
from nx46vx.runtime.sink import MemorySink
from nx46vx.runtime.stop import StopFlag
from nx46vx.settings import Settings

HOUR = 3600.0


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def governor(
    budget: float = 9 * HOUR, costs: CostBook | None = None, cases: int = 4
) -> tuple[Governor, Clock, MemorySink]:
    clock, sink = Clock(), MemorySink()
    made = Governor(
        budget=budget, started=clock.time, work=Work(cases, 2), costs=costs or CostBook(), clock=clock, sink=sink,
        stop=StopFlag(),
    )  # fmt: skip
    return made, clock, sink


def measured(**seconds: float) -> CostBook:
    costs = CostBook()
    for kind, value in seconds.items():
        costs.add(kind, value)
    return costs


def test_percentile_is_the_nearest_rank() -> None:
    assert percentile_95([float(v) for v in range(1, 101)]) == 95.0
    assert percentile_95([3.0]) == 3.0


def test_an_unmeasured_run_reserves_35_percent_and_stops_before_it() -> None:
    gov, clock, _ = governor()
    assert gov.reserve == pytest.approx(0.35 * 9 * HOUR)
    assert gov.margin == 600.0
    clock.time += 0.65 * 9 * HOUR - 601
    assert gov.state == State.RUN
    clock.time += 2
    assert gov.state == State.STOP


def test_a_measured_run_reserves_one_and_a_half_times_the_cost() -> None:
    gov, _, _ = governor(costs=measured(segment_case=30.0, package=10.0))
    assert gov.reserve == pytest.approx(1.5 * (30.0 * 6 + 10.0))


def test_the_margin_is_five_percent_of_a_short_budget_and_never_less_than_a_flush() -> None:
    assert margin_of(1000.0, CostBook()) == 50.0
    assert margin_of(1000.0, measured(flush=80.0)) == 80.0


def test_states_only_move_on_and_each_is_an_event() -> None:
    gov, clock, sink = governor(costs=measured(segment_case=10.0, package=1.0, candidate=100.0))
    clock.time += gov.until_stop - 50
    assert gov.state == State.DRAIN
    assert not gov.allows("candidate")
    clock.time += 51
    assert gov.state == State.STOP
    gov.enter(State.PACKAGE)
    gov.enter(State.FLUSH)
    assert gov.state == State.PACKAGE
    entered = [event["entered"] for event in sink.named("TIME_BUDGET_STATE")]
    assert entered == ["DRAIN", "STOP", "PACKAGE"]


def test_in_drain_only_what_fits_is_begun() -> None:
    gov, clock, _ = governor(costs=measured(segment_case=10.0, package=1.0, candidate=100.0, block=5.0))
    clock.time += gov.until_stop - 50
    assert gov.state == State.DRAIN
    assert gov.allows("block")
    assert not gov.allows("candidate")


def test_a_signal_means_that_the_deadline_is_now() -> None:
    clock, stop = Clock(), StopFlag()
    gov = Governor(
        budget=HOUR, started=clock.time, work=Work(1, 1), costs=measured(segment_case=1.0, package=1.0), clock=clock,
        sink=MemorySink(), stop=stop,
    )  # fmt: skip
    gov.check()
    stop.set("SIGTERM")
    assert gov.state == State.STOP
    assert gov.may_package()
    assert gov.reason == "SIGTERM"
    with pytest.raises(StoppedError, match="SIGTERM"):
        gov.check()


def test_after_a_signal_a_long_packaging_is_not_begun() -> None:
    gov, _, _ = governor(costs=measured(segment_case=100.0, package=1.0))
    gov._stop.set("SIGTERM")
    assert not gov.may_package()


def test_acceleration_comes_once_and_never_touches_the_search_space() -> None:
    gov, clock, sink = governor()
    clock.time += HOUR
    assert not gov.accelerate(7 * HOUR)
    assert gov.accelerate(7.5 * HOUR)
    assert not gov.accelerate(8 * HOUR)
    assert [event["actions"] for event in sink.named("RUNTIME_ACCELERATION_MODE_ON")] == [ACCELERATIONS]
    assert not any(word in action for action in ACCELERATIONS for word in ("grid", "iter", "log"))


def test_the_smallest_budget_is_named_and_works() -> None:
    costs = measured(segment_case=10.0, package=5.0, flush=1.0)
    with pytest.raises(UsageError, match="at least") as caught:
        require_budget(30.0, 10.0, 65.0, costs)
    named = float(str(caught.value).split("at least ")[1].split(" s")[0])
    require_budget(named, 10.0, 65.0, costs)
    smallest = smallest_budget(65.0, costs)
    assert smallest - margin_of(smallest, costs) >= 1.5 * 65.0


@pytest.mark.parametrize(("text", "seconds"), [("9h", 32400), ("45m", 2700), ("1h30m", 5400), ("90s", 90), ("12", 12)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-5m", "0", "5x"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a duration"):
        parse_duration(text)


def test_the_session_starts_with_this_process_or_with_the_notebooks_container() -> None:
    assert 0 <= now() - session_start({}) < 3600
    assert session_start({"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}) <= session_start({})


def test_costs_survive_and_a_damaged_book_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    book = CostBook(path)
    book.add("package", 3.0)
    book.save()
    assert CostBook(path).p95("package") == 3.0
    for damage in (b"", b"[1]", b'{"package": "x"}', b"\xff"):
        path.write_bytes(damage)
        assert CostBook(path).p95("package") is None


def session(seed: int) -> tuple[Governor, Clock, bool, list[str]]:
    """One simulated session: candidates, then flush, segment and package, with stalls shorter than the margin."""
    rng = random.Random(seed)
    budget = rng.choice([0.75, 2, 9, 12]) * HOUR
    costs, cases = CostBook(), rng.randint(1, 30)
    per_case = budget * 0.25 / (cases + 2) * rng.random()
    if rng.random() < 0.7:
        costs.add("segment_case", per_case)
        costs.add("package", 5.0)
    gov, clock, sink = governor(budget, costs, cases)

    def spend(seconds: float) -> None:
        clock.time += seconds * rng.uniform(0.7, 1.1)

    stalls = [rng.random() * budget for _ in range(3)]
    stall_left = gov.margin * 0.8

    def maybe_stall() -> None:
        nonlocal stall_left
        while stalls and gov.elapsed > min(stalls):
            stalls.remove(min(stalls))
            length = rng.random() * stall_left
            stall_left -= length
            clock.time += length

    done = 0
    while gov.allows("candidate") and done < 5000:
        spend(rng.uniform(5, 60))
        gov.costs.add("candidate", 60.0)
        done += 1
        maybe_stall()
    gov.enter(State.FLUSH)
    gov.costs.add("flush", 1.0)
    clock.time += 1.0
    gov.enter(State.PACKAGE)
    packaged = 0
    for _ in range(cases + 2):
        if not gov.may_package():
            break
        spend(per_case)
        maybe_stall()
        packaged += 1
    clock.time += 5.0
    return gov, clock, packaged == cases + 2, [name for name, _ in sink.events]


def test_200_sessions_all_hand_in_before_the_budget_is_over() -> None:
    for seed in range(200):
        gov, _, submitted, events = session(seed)
        assert submitted, seed
        assert gov.remaining > 0, seed
        assert events.count("TIME_BUDGET_STATE") >= 2


def test_only_what_a_run_has_a_use_for_is_called_an_action_taken() -> None:
    flat = {"resources": {"executor": "inline"}, "growth": {"enabled": False}, "mask": {"search": {"trials": 0}}}
    plain = _accelerations(Settings.model_validate(flat))
    assert plain == ["prefetch"]
    whole = ["more_trials_in_flight", "no_further_growth", "optional_phases_off", "prefetch"]
    assert sorted(_accelerations(Settings())) == whole
    clock, sink = Clock(), MemorySink()
    made = Governor(
        budget=HOUR, started=clock.time, work=Work(1, 1), costs=CostBook(), clock=clock, sink=sink, stop=StopFlag(),
        accelerations=plain,
    )  # fmt: skip
    assert made.accelerate(2 * HOUR) and made.actions == ("prefetch",)
    with pytest.raises(ValueError, match="smaller_grid"):
        Governor(
            budget=HOUR, started=0.0, work=Work(1, 1), costs=CostBook(), clock=clock, sink=sink, stop=StopFlag(),
            accelerations=["smaller_grid"],
        )  # fmt: skip


def test_choosing_the_ensemble_is_part_of_the_reserve() -> None:
    costs = measured(segment_case=10.0, package=5.0, ensemble=100.0)
    assert Work(2, 1).seconds(costs) == 100.0 + 3 * 10.0 + 5.0


def test_sessions_shorter_than_one_candidate_still_get_on() -> None:
    """A candidate of two hours in sessions of 45 minutes: each begins it, and stops it at a checkpoint."""
    costs = measured(candidate=2 * HOUR, segment_case=10.0, package=5.0)
    gov, clock, _ = governor(0.75 * HOUR, costs, 2)
    assert gov.allows("candidate") and gov.state == State.RUN
    clock.time += 0.6 * HOUR
    assert gov.allows("candidate")
    clock.time += 0.1 * HOUR
    assert gov.state == State.STOP and not gov.allows("candidate")


def test_the_final_word_comes_once() -> None:
    gov, _, sink = governor()
    gov.finish(complete=True)
    gov.finish(complete=False)
    assert [event["complete"] for event in sink.named("RUNTIME_BUDGET_FINAL")] == [True]
