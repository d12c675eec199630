"""How long the fit still takes: two speeds, no guess before something moved, no warm-up in the measure."""

from __future__ import annotations

import pytest

from nx46vx.runtime.pace import FitPace, Speed

NAMES = [f"c{number}" for number in range(10)]


def standing(*done: int) -> dict[str, int]:
    return dict(zip(NAMES, [*done, *[0] * len(NAMES)][: len(NAMES)], strict=True))


def test_nothing_is_known_before_something_moved_twice() -> None:
    pace = FitPace()
    told = []
    for now, done in ((0, 0), (10, 0), (20, 10), (30, 20)):
        pace.see(standing(done), 120, now)
        told.append(pace.seconds_left(standing(done), 120))
    assert told[:3] == [None, None, None] and told[3] is not None
    assert pace.measured


def test_the_warm_up_is_not_measured() -> None:
    pace = FitPace()
    for now, done in ((0, 0), (100, 10), (110, 20), (120, 30)):  # 100 s until the engine ran, then 1 s an iteration
        pace.see(standing(done), 120, now)
    assert pace.seconds_left(standing(30), 120) == pytest.approx(90.0)


def test_all_lanes_advance_together_so_the_furthest_candidate_tells() -> None:
    """One trial of ten is in flight; the engine is as far with all of them. A share of iterations would say 390 s."""
    pace = FitPace()
    for now, done in ((0, 0), (10, 10), (20, 20), (30, 30)):
        pace.see(standing(done), 120, now)
    assert pace.seconds_left(standing(30), 120) == pytest.approx(90.0)


def test_once_the_engine_is_through_the_commits_tell() -> None:
    pace = FitPace()
    pace.see(standing(), 120, 0.0)
    for number in range(1, 6):  # a candidate is taken over every 5 s
        pace.see(standing(*[120] * number), 120, 5.0 * number)
    assert pace.seconds_left(standing(*[120] * 5), 120) == pytest.approx(25.0)


def test_a_finished_round_takes_no_more_time() -> None:
    assert FitPace().seconds_left(standing(*[120] * 10), 120) == 0.0


def test_an_earlier_sessions_measure_holds_until_this_one_has_its_own() -> None:
    pace = FitPace(depth_seconds=2.0, commit_seconds=0.01)
    assert pace.seconds_left(standing(60), 120) == pytest.approx(2.0 * 120 + 0.01 * (9 * 120 + 60))
    assert not pace.measured
    for now, done in ((0, 0), (10, 10), (20, 20)):
        pace.see(standing(done), 120, now)
    assert pace.measured and pace.depth_seconds == pytest.approx(1.0)


def test_a_round_is_as_long_as_its_engine_and_its_commits() -> None:
    assert FitPace().round_seconds(10, 120) is None
    assert FitPace(0.5, 0.01).round_seconds(10, 120) == pytest.approx(0.5 * 120 + 0.01 * 1200)


def test_more_candidates_begin_a_new_measure() -> None:
    pace = FitPace()
    for now, done in ((0, 0), (10, 60), (20, 120)):
        pace.see(standing(done), 120, now)
    grown = {**standing(*[120] * 10), "g": 0}
    pace.see(grown, 120, 30)
    pace.see({**grown, "g": 10}, 120, 40)
    pace.see({**grown, "g": 20}, 120, 42)
    assert pace.depth_seconds == pytest.approx(0.2)


def test_a_speed_falls_while_nothing_moves() -> None:
    speed = Speed(warm_up=False)
    speed.see(0, 0.0)
    speed.see(10, 10.0)
    assert speed.per_second(10.0) == 1.0
    assert speed.per_second(20.0) == 0.5
