"""Fusion is fitted on validation cases and kept only where its gain holds in one case after the other."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from nx46vx.student.fusion import CLIP, Fusion, FusionCase, fit_fusion, judge_averaging, judge_fusion

N = 4000


def case(name: str, seed: int, *, neurons: float = 1.0, student: float = 1.0, noise: float = 1.0) -> FusionCase:
    """Both sides see the label through noise of their own."""
    rng = np.random.default_rng(seed)
    y = (rng.random(N) < 0.1).astype(np.uint8)
    sides = [gain * (2.0 * y - 2.4) + noise * rng.standard_normal(N) * (gain > 0) for gain in (neurons, student)]
    return FusionCase(name, sides[0], sides[1], y)


def test_two_sides_that_know_different_things_are_fused() -> None:
    cases = [case(str(k), k) for k in range(4)]
    verdict = judge_fusion(cases, 0.002)
    assert verdict.kept and min(verdict.gains) > 0 and len(verdict.gains) == 4
    told = verdict.to_json()
    assert told["mean_gain"] == pytest.approx(np.mean(verdict.gains)) and told["reason"] == "a stable gain"


def test_the_weights_are_those_of_a_logistic_regression() -> None:
    cases = [case(str(k), k) for k in range(3)]
    found = fit_fusion(cases)
    x = np.concatenate([np.stack([one.neurons, one.student], axis=1) for one in cases])
    oracle = LogisticRegression(C=np.inf, tol=1e-8).fit(x, np.concatenate([one.y for one in cases]))
    assert [found.neurons, found.student] == pytest.approx(oracle.coef_[0], rel=1e-3)
    assert found.intercept == pytest.approx(oracle.intercept_[0], rel=1e-3)


def test_a_student_that_knows_nothing_is_not_fused() -> None:
    rng = np.random.default_rng(0)
    cases = [
        FusionCase(one.case_id, one.neurons, rng.standard_normal(N), one.y)
        for one in (case(str(k), k) for k in range(4))
    ]
    verdict = judge_fusion(cases, 0.002)
    assert not verdict.kept and "mean gain" in verdict.reason


def test_a_gain_in_some_cases_and_a_loss_in_others_is_not_stable() -> None:
    good = [case(str(k), k, noise=0.7) for k in range(2)]
    bad = [
        FusionCase(one.case_id, one.neurons, -one.student - 4.8, one.y)
        for one in (case(str(k), k, noise=0.7) for k in range(2, 4))
    ]
    verdict = judge_fusion([*good, *bad], 0.002)
    assert not verdict.kept


def test_one_case_cannot_tell_what_is_stable() -> None:
    verdict = judge_fusion([case("only", 0)], 0.0)
    assert not verdict.kept and "nothing to judge stability on" in verdict.reason and verdict.gains == []


def test_what_is_judged_on_a_case_was_not_fitted_on_it() -> None:
    """A case in which the student is a perfect liar ruins every fold it helps to fit, and only those."""
    honest = [case(str(k), k) for k in range(2)]
    liar = FusionCase("liar", honest[0].neurons, 30.0 - 60.0 * honest[0].y, honest[0].y)
    verdict = judge_fusion([*honest, liar], 0.0)
    assert verdict.gains[2] < -0.1  # judged by weights that trust the student
    alone = judge_fusion(honest, 0.0)
    assert alone.kept


def test_averaging_is_judged_by_the_same_rule() -> None:
    plain = [case(str(k), k, noise=1.2) for k in range(3)]
    steadier = [FusionCase(c.case_id, c.neurons, 0.5 * (c.student + 2.0 * c.y - 2.4), c.y) for c in plain]
    assert judge_averaging(plain, steadier, 0.002).kept
    assert not judge_averaging(plain, plain, 0.0).kept
    assert not judge_averaging(steadier, plain, 0.0).kept


def test_fused_probabilities_are_the_sigmoid_of_the_weighted_logits() -> None:
    rng = np.random.default_rng(0)
    z, student = rng.uniform(-6, 6, (3, 4, 5)), rng.uniform(-20, 20, (3, 4, 5)).astype(np.float32)
    fused = Fusion(0.7, 0.4, -0.2).probability((1 / (1 + np.exp(-z))).astype(np.float32), student)
    wanted = 1 / (1 + np.exp(-(0.7 * z + 0.4 * np.clip(student, -CLIP, CLIP) - 0.2)))
    assert fused.dtype == np.float32
    np.testing.assert_allclose(fused, wanted, rtol=1e-4, atol=1e-6)
    same = Fusion(1.0, 0.0, 0.0).probability(np.array([[[0.0, 1.0]]], np.float32), np.zeros((1, 1, 2), np.float32))
    assert np.isfinite(same).all() and same[0, 0, 0] < 1e-5 and same[0, 0, 1] > 1 - 1e-5


def test_weights_survive_the_way_through_json() -> None:
    fusion = Fusion(0.1, 1 / 3, -2.5e-7)
    assert Fusion.from_json(fusion.to_json()) == fusion
