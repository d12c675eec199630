"""The rule of growth: its standard errors against a bootstrap, its decision against a table."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nx46vx.model.growth import GrowthDecision, GrowthFigures, decide_growth, grouped_error
from nx46vx.settings import GrowthSettings

GAINS = GrowthFigures(gain=0.02, gain_se=0.01, gap=0.005, gap_se=0.01)


def clustered(groups: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values that share a part within a group, group numbers, and weights."""
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(groups), rng.integers(20, 60, groups))
    return rng.normal(1.0, 0.5, groups)[ids] + rng.normal(0, 1, ids.size), ids, rng.uniform(0.2, 2.0, ids.size)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(2, 80), st.booleans())
def test_mean_and_error_are_those_of_the_ratio_estimator_written_out(
    seed: int, groups: int, n: int, weighted: bool
) -> None:
    rng = np.random.default_rng(seed)
    values, ids = rng.standard_normal(n), rng.integers(0, groups, n)
    weights = rng.uniform(0.1, 3, n) if weighted else np.ones(n)
    mean, error = grouped_error(values, ids, weights if weighted else None)
    expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert mean == pytest.approx(expected, abs=1e-12)
    present = sorted(set(ids.tolist()))
    squares = 0.0
    for group in present:
        inside = [(w, v) for w, v, one in zip(weights, values, ids, strict=True) if one == group]
        squares += sum(w * (v - expected) for w, v in inside) ** 2
    if len(present) < 2:
        assert error == float("inf")
    else:
        correction = len(present) / (len(present) - 1)
        assert error == pytest.approx(np.sqrt(squares * correction) / sum(weights), abs=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_error_is_that_of_a_bootstrap_over_groups(weighted: bool) -> None:
    values, ids, weights = clustered(80)
    if not weighted:
        weights = np.ones_like(weights)
    _, error = grouped_error(values, ids, weights)
    mass, sums = np.bincount(ids, weights), np.bincount(ids, weights * values)
    draws = np.random.default_rng(1).integers(0, mass.size, (4000, mass.size))
    resampled = sums[draws].sum(axis=1) / mass[draws].sum(axis=1)
    assert error == pytest.approx(resampled.std(), rel=0.08)


def test_equal_groups_give_the_error_of_the_mean_of_their_means() -> None:
    values, ids = np.random.default_rng(2).standard_normal(600), np.repeat(np.arange(12), 50)
    means = values.reshape(12, 50).mean(axis=1)
    mean, error = grouped_error(values, ids)
    assert mean == pytest.approx(means.mean())
    assert error == pytest.approx(means.std(ddof=1) / np.sqrt(12))


def test_what_voxels_of_a_group_share_makes_the_error_larger_than_that_of_single_voxels() -> None:
    values, ids, _ = clustered()
    assert grouped_error(values, ids)[1] > 2 * grouped_error(values, np.arange(values.size))[1]


def test_numbers_of_groups_that_do_not_occur_change_nothing() -> None:
    values, ids, weights = clustered(10)
    assert grouped_error(values, 3 * ids + 5, weights) == pytest.approx(grouped_error(values, ids, weights))


def test_groups_without_weight_are_not_counted() -> None:
    values, ids, weights = clustered(10)
    weights[ids >= 6] = 0.0
    kept = ids < 6
    assert grouped_error(values, ids, weights) == pytest.approx(grouped_error(values[kept], ids[kept], weights[kept]))


def test_one_group_says_nothing_about_the_error() -> None:
    mean, error = grouped_error(np.array([1.0, 3.0]), np.array([4, 4]))
    assert (mean, error) == (2.0, float("inf"))


@pytest.mark.parametrize(
    ("enabled", "room", "gained", "short", "time"), list(product([True, False], repeat=5))
)  # fmt: skip
def test_it_grows_when_every_condition_holds_and_else_never(
    enabled: bool, room: bool, gained: bool, short: bool, time: bool
) -> None:
    settings = GrowthSettings(enabled=enabled, max_meta_neurons=12)
    figures = GrowthFigures(0.02 if gained else 0.005, 0.01, 0.005 if short else 0.02, 0.01)
    decision = decide_growth(settings, 11 if room else 12, figures, time)
    assert decision.grow == (enabled and room and gained and short and time)
    assert decision.neurons == (11 if room else 12)
    assert decision.reason


def test_each_refusal_has_a_reason_of_its_own() -> None:
    on = GrowthSettings(enabled=True, max_meta_neurons=12)
    decisions = [
        decide_growth(GrowthSettings(enabled=False), 9, GAINS, True),
        decide_growth(on, 12, GAINS, True),
        decide_growth(on, 9, GrowthFigures(0.0, 0.01, 0.0, 0.01), True),
        decide_growth(on, 9, GrowthFigures(0.02, 0.01, 0.02, 0.01), True),
        decide_growth(on, 9, GAINS, False),
        decide_growth(on, 9, GAINS, True),
    ]
    assert [decision.grow for decision in decisions] == [False] * 5 + [True]
    assert len({decision.reason for decision in decisions}) == 6
    assert "12" in decisions[1].reason


@pytest.mark.parametrize(
    ("figures", "grows"),
    [
        (GrowthFigures(0.01, 0.01, 0.0, 0.01), False),  # a gain of exactly one error is not more than one
        (GrowthFigures(0.0101, 0.01, 0.0, 0.01), True),
        (GrowthFigures(0.02, 0.01, 0.01, 0.01), False),  # a gap of exactly one error is not less than one
        (GrowthFigures(0.02, 0.01, 0.0099, 0.01), True),
        (GrowthFigures(0.02, 0.01, -0.5, 0.01), True),  # validation better than training is no gap
        (GrowthFigures(-0.02, 0.01, 0.0, 0.01), False),
        (GrowthFigures(0.02, float("inf"), 0.0, float("inf")), False),  # one group: nothing is known
        (GrowthFigures(float("nan"), 0.01, 0.0, 0.01), False),
        (GrowthFigures(0.02, 0.01, float("nan"), 0.01), False),
    ],
)
def test_the_limits_are_one_standard_error(figures: GrowthFigures, grows: bool) -> None:
    assert decide_growth(GrowthSettings(), 9, figures, True).grow == grows


def test_the_limits_can_be_set() -> None:
    assert not decide_growth(GrowthSettings(min_gain_se=2.5), 9, GAINS, True).grow
    assert not decide_growth(GrowthSettings(max_gap_se=0.4), 9, GAINS, True).grow


def test_a_decision_depends_on_nothing_but_its_arguments_and_survives_json() -> None:
    for figures, time in ((GAINS, True), (GAINS, False), (GrowthFigures(1 / 3, 0.1, 0.2, 1e-17), True)):
        decision = decide_growth(GrowthSettings(), 9, figures, time)
        assert decide_growth(GrowthSettings(), 9, figures, time) == decision
        assert GrowthDecision.from_json(json.loads(json.dumps(decision.to_json()))) == decision
    off = decide_growth(GrowthSettings(enabled=False), 9, GAINS, True)
    assert GrowthDecision.from_json(json.loads(json.dumps(off.to_json()))) == off
