"""Metrics against scikit-learn, and the ranking objective against its formula."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, fbeta_score, jaccard_score, log_loss

from nx46vx.model.metrics import (
    THRESHOLDS,
    Counts,
    average_precision,
    count_at_thresholds,
    cross_entropy,
    validation_figures,
)


def scored(n: int = 3000, seed: int = 0, rare: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, some of them exactly on a threshold, and labels that go with them somewhat."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < rare).astype(np.uint8)
    p = 1 / (1 + np.exp(-(rng.standard_normal(n) + 2.0 * y - 1.0)))
    on = rng.random(n) < 0.2
    p[on] = rng.choice(THRESHOLDS, on.sum())
    return p, y


def test_the_thresholds_are_the_scan_of_the_objective() -> None:
    assert THRESHOLDS[0] == 0.05
    assert THRESHOLDS[-1] == 0.95
    assert len(THRESHOLDS) == 19
    assert {0.35, 0.4, 0.45, 0.5, 0.55, 0.6} <= set(THRESHOLDS)
    assert np.allclose(np.diff(THRESHOLDS), 0.05)


@pytest.mark.parametrize("seed", range(3))
def test_f_scores_and_iou_are_those_of_scikit_learn_at_every_threshold(seed: int) -> None:
    p, y = scored(seed=seed)
    counts = count_at_thresholds(p, y)
    for at, threshold in enumerate(THRESHOLDS):
        mask = (p >= threshold).astype(np.uint8)
        for beta in (0.5, 1.0, 2.0):
            assert counts.f_beta(beta)[at] == pytest.approx(fbeta_score(y, mask, beta=beta, zero_division=0))
        assert counts.iou()[at] == pytest.approx(jaccard_score(y, mask, zero_division=0))
    assert counts.positives == int(y.sum())
    assert counts.negatives == int((1 - y).sum())


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 10**6))
def test_counts_of_two_parts_add_up_to_the_counts_of_the_whole(n: int, m: int, seed: int) -> None:
    p, y = scored(n + m, seed, rare=0.4)
    whole = count_at_thresholds(p, y)
    added = count_at_thresholds(p[:n], y[:n]) + count_at_thresholds(p[n:], y[n:])
    assert np.array_equal(whole.true_positives, added.true_positives)
    assert np.array_equal(whole.false_positives, added.false_positives)
    assert (whole.positives, whole.negatives) == (added.positives, added.negatives)


def test_a_score_without_anything_found_or_to_find_is_zero() -> None:
    nothing_found = count_at_thresholds(np.zeros(5), np.array([0, 1, 1, 0, 1]))
    nothing_there = count_at_thresholds(np.array([0.9, 0.1]), np.array([0, 0]))
    empty = count_at_thresholds(np.empty(0), np.empty(0, np.uint8))
    for counts in (nothing_found, nothing_there, empty):
        assert not counts.f_beta(0.5).any()
        assert not counts.iou().any()
        assert counts.best() == 0


def test_the_best_threshold_has_the_best_f_half_and_is_the_lowest_among_equals() -> None:
    p, y = scored(seed=4)
    counts = count_at_thresholds(p, y)
    scores = [fbeta_score(y, p >= threshold, beta=0.5, zero_division=0) for threshold in THRESHOLDS]
    assert counts.best() == int(np.argmax(scores))
    perfect = count_at_thresholds(np.array([0.01, 0.52, 0.99]), np.array([0, 1, 1]))
    assert THRESHOLDS[perfect.best()] == 0.05
    split = count_at_thresholds(np.array([0.32, 0.52, 0.99]), np.array([0, 1, 1]))
    assert THRESHOLDS[split.best()] == 0.35


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 80), st.integers(0, 10**6), st.integers(1, 12))
def test_average_precision_is_that_of_scikit_learn_with_ties_too(n: int, seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    y, score = rng.integers(0, 2, n), rng.integers(0, levels, n) / levels - 0.5
    if y.any():
        assert average_precision(score, y) == pytest.approx(average_precision_score(y, score))


def test_average_precision_does_not_see_the_order_and_is_nan_without_positives() -> None:
    p, y = scored()
    order = np.random.default_rng(1).permutation(p.size)
    assert average_precision(p[order], y[order]) == average_precision(p, y)
    assert np.isnan(average_precision(p, np.zeros_like(y)))


def test_cross_entropy_is_that_of_scikit_learn() -> None:
    p, y = scored()
    logits = np.log(p) - np.log1p(-p)
    assert cross_entropy(logits, y).mean() == pytest.approx(log_loss(y, p), rel=1e-12)


def test_cross_entropy_of_extreme_logits_is_finite_and_exact() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = cross_entropy(np.array([800.0, -800.0, 800.0, -800.0, 1e-9], np.float32), np.array([1, 0, 0, 1, 1]))
    assert found == pytest.approx([0.0, 0.0, 800.0, 800.0, np.log(2)])


def test_the_objective_is_the_documented_formula() -> None:
    """Numbers worked out by hand, from the formula in the documentation of the model."""
    true = np.array([8, 8, 6, *[0] * 16])
    false = np.array([24, 2, 1, *[0] * 16])
    w, alpha, beta = [0.5, 0.0, 0.0, 2e-9], [0.0, 0.0, -1.0, 3e-9], [0.0, 0.0, 0.0, -4e-9]
    theta = np.array([*w, *alpha, *beta, 7.0])
    found = validation_figures(0.3, Counts(true, false, 10, 90), theta, 4, -0.5)
    # F0.5 = 1.25 TP / (1.25 TP + 0.25 FN + FP): 0.29, 0.8, 7.5 / 9.5 = 0.789..., so the second threshold
    f_half, f1, iou = 10 / 12.5, 16 / 20, 8 / 12
    sparsity = 0.5  # features 1 and 3: 9e-9 is below 1e-8
    lambda_dyn = 0.10 * 0.90 / 0.5
    assert found.best_threshold == 0.10
    assert found.val_fbeta == pytest.approx(f_half)
    assert found.val_f1 == pytest.approx(f1)
    assert found.val_iou == pytest.approx(iou)
    assert found.sparsity == sparsity
    assert found.lambda_dyn == pytest.approx(lambda_dyn)
    assert found.val_ce == 0.3
    assert found.objective == pytest.approx(
        0.3 + 0.02 * 0.5 - 0.2 * f1 - 0.15 * f_half - 0.1 * iou + 0.005 * lambda_dyn
    )


def test_a_dead_model_still_has_a_finite_objective() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = validation_figures(0.7, Counts(np.zeros(19, int), np.zeros(19, int), 0, 0), np.zeros(4), 1, 0.0)
    assert np.isfinite(found.objective)
    assert found.objective == pytest.approx(0.7)
