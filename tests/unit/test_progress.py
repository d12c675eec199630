"""The shown progress counts committed work, never goes back, and reaches 100 only at the end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nx46vx.runtime.progress import (
    DEFAULT_WEIGHTS,
    GROWTH_SHARE,
    PHASES,
    Progress,
    StallWatch,
    TrainCounts,
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


def test_100_is_shown_only_when_every_phase_is_complete() -> None:
    progress = Progress(DEFAULT_WEIGHTS)
    for phase in PHASES[:-1]:
        progress.set(phase, 1.0)
    progress.set("package", 0.9999)
    assert progress.value < 100
    progress.set("package", 1.0)
    assert progress.value == 100


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
