"""The shown progress counts committed work, never goes back, and reaches 100 only at the end."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nx46vx.runtime.progress import (
    DEFAULT_WEIGHTS,
    GROWTH_SHARE,
    OPEN_ENDED_TARGET,
    PHASES,
    Progress,
    StallWatch,
    TrainCounts,
    global_value,
    open_ended_targets,
    quiet_epochs,
    weights_from,
)


def counts(done: tuple[int, ...], **changes: object) -> TrainCounts:
    fields: dict[str, object] = {
        "max_iter": 120, "grid": 135, "grid_iterations": done, "grown": 0, "grown_iterations": (0,) * len(done),
        "growable": 0, "growth_over": False, "target": 1,
    }  # fmt: skip
    return TrainCounts(**{**fields, **changes})  # type: ignore[arg-type]


def test_weights_add_up_to_one_and_follow_measured_seconds() -> None:
    assert sum(DEFAULT_WEIGHTS.values()) == pytest.approx(1.0)
    assert set(DEFAULT_WEIGHTS) == set(PHASES)
    seconds = dict(zip(PHASES, (1.0, 1.0, 2.0, 10.0, 5.0, 1.0), strict=True))
    assert weights_from(seconds)["train_fit"] == 0.5
    assert weights_from(None) == DEFAULT_WEIGHTS
    assert weights_from({**seconds, "load": 0.0}) == DEFAULT_WEIGHTS


def test_the_fit_counts_iterations_over_epochs() -> None:
    assert counts((135 * 60,)).share == 0.5
    assert counts((135 * 120,), target=2).share == 0.5
    assert counts((135 * 120, 135 * 60), target=2).share == 0.75


def test_growth_fills_its_reserved_share_and_never_lowers_the_value() -> None:
    whole = 135 * 120
    seen = [
        counts((whole,), growable=105).share,
        counts((whole,), growable=105, grown=15, grown_iterations=(0,)).share,
        counts((whole,), growable=105, grown=15, grown_iterations=(15 * 60,)).share,
        counts((whole,), growable=105, grown=15, grown_iterations=(15 * 120,)).share,
        counts((whole,), growable=105, grown=15, grown_iterations=(15 * 120,), growth_over=True).share,
    ]
    assert seen == sorted(seen)
    assert seen[0] == pytest.approx(1 - GROWTH_SHARE)
    assert seen[-1] == 1.0


@given(st.integers(1, 5), st.integers(1, 200), st.data())
def test_the_share_of_the_fit_is_epochs_done_and_begun_over_the_target(
    target: int, grid: int, data: st.DataObject
) -> None:
    complete = data.draw(st.integers(0, target - 1))
    begun = data.draw(st.integers(0, 120 * grid))
    iterations = (120 * grid,) * complete + (begun,)
    share = counts(iterations, grid=grid, target=target).share
    assert share == pytest.approx((complete + begun / (120 * grid)) / target)
    assert (share == 1.0) == (complete + 1 == target and begun == 120 * grid)


def test_an_open_ended_run_starts_with_a_target_of_two() -> None:
    assert open_ended_targets([], 0.01, 2) == ([OPEN_ENDED_TARGET], False) == ([2], False)


def test_the_target_is_set_anew_at_an_epochs_end_to_the_earliest_end_there_can_be() -> None:
    best = [0.5, 0.4, 0.4, 0.3, 0.3, 0.3]  # quiet epochs after each: 0, 0, 1, 0, 1, 2
    told = [open_ended_targets(best[:epochs], 0.01, 2) for epochs in range(len(best) + 1)]
    assert [targets[-1] for targets, _ in told] == [2, 3, 4, 4, 6, 6, 6]
    assert [over for _, over in told] == [False] * 6 + [True]
    for (before, _), (after, _) in itertools.pairwise(told):
        assert after[: len(before)] == before  # what was set stays


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12), st.integers(1, 4))
def test_an_open_ended_run_ends_at_its_target_and_not_before(best: list[float], patience: int) -> None:
    for epochs in range(len(best) + 1):
        targets, over = open_ended_targets(best[:epochs], 0.05, patience)
        if over:
            assert epochs == targets[-1] and quiet_epochs(best[:epochs], 0.05) >= patience
            break
        assert targets[-1] > epochs


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8), st.integers(1, 3))
def test_an_open_ended_fit_never_goes_back_and_is_whole_only_once_its_end_is_decided(
    best: list[float], patience: int
) -> None:
    shares = []
    for epochs in range(len(best) + 1):
        targets, over = open_ended_targets(best[:epochs], 0.05, patience)
        past, target = tuple(targets[:-1]), targets[-1]
        if over:
            shares.append(counts((135 * 120,) * epochs, target=target, past_targets=past).share)
            assert shares[-1] == 1.0
            break
        for done in (0, 60, 120):
            iterations = (135 * 120,) * epochs + (135 * done,)
            given_so = counts(iterations, target=target, past_targets=past, undecided=True)
            shares.append(given_so.share)
            assert shares[-1] < 1.0
    assert shares == sorted(shares)


def test_where_the_target_was_set_anew_the_share_waits_for_the_formula() -> None:
    whole = 135 * 120
    fields = {"target": 3, "past_targets": (2,), "undecided": True}
    assert counts((whole, 0), **fields).share == 0.5  # 1 of 2 epochs was shown; 1 of 3 is less
    assert counts((whole, whole // 2), **fields).share == 0.5
    assert counts((whole, whole * 3 // 4), **fields).share == pytest.approx(1.75 / 3)


def test_optional_work_before_the_segmentation_is_no_phases_own() -> None:
    now = iter([0.0, 1.0, 3.0, 103.0, 104.0])
    progress = Progress(DEFAULT_WEIGHTS, clock=lambda: next(now))
    progress.set("train_data", 1.0)
    progress.set("train_fit", 1.0)
    progress.left_out += 95.0
    progress.set("segment", 1.0)
    progress.set("package", 1.0)
    assert progress.phase_seconds() == {"train_data": 1.0, "train_fit": 2.0, "segment": 5.0, "package": 1.0}


def test_100_is_shown_only_when_every_phase_is_complete() -> None:
    progress = Progress(DEFAULT_WEIGHTS)
    for phase in PHASES[:-1]:
        progress.set(phase, 1.0)
    progress.set("package", 0.9999)
    assert progress.value < 100
    progress.set("package", 1.0)
    assert progress.value == 100


def test_the_value_is_the_weighted_sum_of_the_shares() -> None:
    shares = dict(zip(PHASES, (1.0, 1.0, 1.0, 0.5, 0.0, 0.0), strict=True))
    by_hand = 100 * (0.03 + 0.01 + 0.12 + 0.72 * 0.5)
    assert global_value(DEFAULT_WEIGHTS, shares) == pytest.approx(by_hand)
    assert global_value(DEFAULT_WEIGHTS, dict.fromkeys(PHASES, 1.0)) == 100.0
    assert global_value(DEFAULT_WEIGHTS, dict.fromkeys(PHASES, 0.99999999)) < 100.0


def test_the_end_of_a_phase_is_noted_once() -> None:
    clock = iter((0.0, 5.0, 7.0))
    progress = Progress(DEFAULT_WEIGHTS, clock=lambda: next(clock))
    progress.set("load", 0.5)
    progress.set("load", 1.0)
    progress.set("load", 1.0)
    assert progress.began == 0.0 and progress.ended == {"load": 5.0}


def test_a_resumed_session_never_shows_less_than_before() -> None:
    assert Progress(DEFAULT_WEIGHTS, floor=42.0).value == 42.0


@given(st.lists(st.tuples(st.sampled_from(PHASES), st.floats(-1, 2)), max_size=60))
def test_the_value_never_goes_back(steps: list[tuple[str, float]]) -> None:
    progress, last = Progress(DEFAULT_WEIGHTS), 0.0
    for phase, share in steps:
        progress.set(phase, share)
        assert last <= progress.value <= 100
        last = progress.value


def test_a_stall_is_said_once_and_again_after_movement() -> None:
    watch = StallWatch(60)
    assert [watch.stalled(1, t) for t in (0, 30, 59)] == [None] * 3
    assert watch.stalled(1, 61) == 61
    assert watch.stalled(1, 90) is None
    assert watch.stalled(2, 91) is None
    assert watch.stalled(2, 160) == 69


def test_the_seconds_of_a_phase_run_from_the_end_of_the_one_before() -> None:
    times = iter([10.0, 11.0, 11.5, 20.0, 50.0, 58.0, 60.0])
    progress = Progress(dict(DEFAULT_WEIGHTS), clock=lambda: next(times))
    for phase in PHASES:
        progress.set(phase, 1.0)
    assert progress.phase_seconds() == {
        "discovery": 1.0, "load": 0.5, "train_data": 8.5, "train_fit": 30.0, "segment": 8.0, "package": 2.0,
    }  # fmt: skip
