"""The ensemble: non-negative weights that are the optimum, and none for a member that does not help."""

from __future__ import annotations

import warnings
from itertools import combinations

import numpy as np
import orjson
import pytest
from model_samples import make_data, make_specs, names
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, log_loss

from nx46vx.model.ensemble import MIN_RELATIVE_GAIN, Combination, Ensemble, Member, combine
from nx46vx.model.neuron import neuron_logits


def views_of_a_signal(members: int, noise: float, seed: int, n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Logits of members that each see the truth through noise of their own, and labels; positives are rare."""
    rng = np.random.default_rng(seed)
    truth = 1.5 * rng.standard_normal(n) - 2.0
    y = (rng.random(n) < 1 / (1 + np.exp(-truth))).astype(np.uint8)
    return truth + noise * rng.standard_normal((members, n)) * rng.uniform(0.7, 1.5, (members, 1)), y


def brute_force(logits: np.ndarray, y: np.ndarray) -> float:
    """The lowest cross-entropy of non-negative weights: over all subsets of members, the best free fit by scikit-learn
    that happens to have no negative weight (the optimum's support is one of them)."""
    best = np.inf
    for size in range(1, len(logits) + 1):
        for rows in combinations(range(len(logits)), size):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fit = LogisticRegression(C=1e9, tol=1e-10, max_iter=2000).fit(logits[list(rows)].T, y)
            if (fit.coef_ >= 0).all():
                best = min(best, log_loss(y, fit.predict_proba(logits[list(rows)].T)[:, 1]))
    return best


def ce(found: Combination, logits: np.ndarray, y: np.ndarray) -> float:
    return log_loss(y, 1 / (1 + np.exp(-found.logits(logits))))


@pytest.mark.parametrize("seed", range(4))
def test_the_combination_is_the_non_negative_optimum(seed: int) -> None:
    logits, y = views_of_a_signal(4, 1.0, seed)
    if seed % 2:
        logits[1] = 0.3 * np.random.default_rng(seed).standard_normal(y.size) - logits[0]  # tells the opposite
    found, optimum = combine(logits, y), brute_force(logits, y)
    assert (found.weights >= 0).all()
    assert found.loss == pytest.approx(ce(found, logits, y), rel=1e-9)
    assert found.loss >= optimum * (1 - 1e-7)
    outside = int((found.weights == 0).sum())
    assert found.loss <= optimum * (1 + (outside + 0.01) * MIN_RELATIVE_GAIN)


def test_the_weights_are_those_of_scikit_learn_when_all_members_help() -> None:
    logits, y = views_of_a_signal(3, 1.2, 11)
    fit = LogisticRegression(C=1e9, tol=1e-10, max_iter=2000).fit(logits.T, y)
    assert (fit.coef_ > 0.02).all()
    found = combine(logits, y)
    assert found.weights == pytest.approx(fit.coef_[0], abs=2e-3)
    assert found.intercept == pytest.approx(fit.intercept_[0], abs=5e-3)


def test_of_a_duplicated_member_one_gets_exactly_zero() -> None:
    logits, y = views_of_a_signal(2, 1.0, 1)
    found = combine(np.stack([logits[0], logits[1], logits[0], logits[1], logits[0]]), y)
    assert np.count_nonzero(found.weights) == 2
    assert found.loss == pytest.approx(combine(logits, y).loss, rel=1e-6)
    assert np.flatnonzero(found.weights).tolist() == [0, 1]  # the first of equals


def test_noise_and_a_member_that_tells_the_opposite_get_exactly_zero() -> None:
    logits, y = views_of_a_signal(2, 0.8, 2)
    noise = np.random.default_rng(7).standard_normal(y.size)
    found = combine(np.stack([noise, logits[0], -logits[1], logits[1]]), y)
    assert found.weights[0] == found.weights[2] == 0.0
    assert (found.weights[[1, 3]] > 0).all()


def test_members_with_unlike_noise_beat_the_best_single_one() -> None:
    logits, y = views_of_a_signal(5, 1.5, 3)
    found = combine(logits, y)
    single = [combine(row[None], y).loss for row in logits]
    assert np.count_nonzero(found.weights) >= 4
    assert found.loss < 0.95 * min(single)
    ap = [average_precision_score(y, row) for row in logits]
    assert average_precision_score(y, found.logits(logits)) > max(ap) + 0.02


def test_the_order_of_the_members_does_not_matter() -> None:
    logits, y = views_of_a_signal(4, 1.0, 4)
    order = np.array([2, 0, 3, 1])
    found, other = combine(logits, y), combine(logits[order], y)
    assert other.weights == pytest.approx(found.weights[order], abs=1e-4)
    assert other.loss == pytest.approx(found.loss, rel=1e-8)


def test_a_single_member_is_recalibrated() -> None:
    logits, y = views_of_a_signal(1, 0.3, 5)
    found = combine(3 * logits + 4, y)
    fit = LogisticRegression(C=1e9, tol=1e-10, max_iter=2000).fit(3 * logits.T + 4, y)
    assert found.weights[0] == pytest.approx(fit.coef_[0, 0], rel=1e-3)
    assert found.intercept == pytest.approx(fit.intercept_[0], rel=1e-2)
    assert (1 / (1 + np.exp(-found.logits(3 * logits + 4)))).mean() == pytest.approx(y.mean(), rel=1e-3)


def test_members_that_all_tell_the_opposite_leave_the_prevalence() -> None:
    logits, y = views_of_a_signal(3, 0.5, 6)
    found = combine(-logits, y)
    assert not found.weights.any()
    assert 1 / (1 + np.exp(-found.intercept)) == pytest.approx(y.mean(), rel=1e-3)


@pytest.mark.parametrize("scale", [3.0, 30.0])
def test_the_scale_of_a_members_logits_does_not_matter(scale: float) -> None:
    logits, y = views_of_a_signal(3, 1.0, 8)
    factors = np.array([scale, 1.0, 1 / scale])
    plain, scaled = combine(logits, y), combine(logits * factors[:, None], y)
    assert scaled.loss == pytest.approx(plain.loss, rel=1e-9)
    assert scaled.weights * factors == pytest.approx(plain.weights, abs=1e-3)


def test_huge_logits_overflow_nowhere() -> None:
    logits, y = views_of_a_signal(2, 1.0, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = combine(1000 * logits, y)
    assert np.isfinite([*found.weights, found.intercept, found.loss]).all()
    assert found.loss < log_loss(y, np.full(y.size, y.mean()))


def test_the_same_input_gives_the_same_bits() -> None:
    logits, y = views_of_a_signal(4, 1.0, 9)
    first, again = combine(logits, y), combine(logits.copy(), y.copy())
    assert first.weights.tobytes() == again.weights.tobytes()
    assert (first.intercept, first.loss) == (again.intercept, again.loss)


def test_no_members_make_no_ensemble() -> None:
    with pytest.raises(ValueError, match="at least one member"):
        combine(np.empty((0, 5)), np.array([0, 1, 0, 1, 1]))


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    specs = make_specs(make_data((400, 300), 6, intercept=-0.5), neurons=3, width=2)
    rng = np.random.default_rng(0)
    weights = (1 / 3, 0.0, 2.0000000000000004)
    members = [
        Member(f"k{k:03d}-l1_0.1-l2_0.1", spec, tuple(rng.standard_normal(spec.columns).tolist()), weight)
        for k, (spec, weight) in enumerate(zip(specs, weights, strict=True))
    ]
    return Ensemble(tuple(members), -0.1)


def test_the_ensemble_is_the_weighted_sum_of_its_active_members(ensemble: Ensemble) -> None:
    rng = np.random.default_rng(1)
    x, g = rng.standard_normal((6, 50)), rng.random((6, 50))
    expected = np.full(50, -0.1)
    for member in ensemble.members:
        rows = [names(6).index(name) for name in member.spec.view]
        expected += member.weight * neuron_logits(member.spec, np.array(member.theta), x[rows], g[rows])
    assert ensemble.logits(names(6), x, g) == pytest.approx(expected, rel=1e-12)
    order = rng.permutation(6)
    shuffled = ensemble.logits([names(6)[row] for row in order], x[order], g[order])
    assert shuffled.tobytes() == ensemble.logits(names(6), x, g).tobytes()


def test_only_the_features_of_active_members_are_needed(ensemble: Ensemble) -> None:
    assert [member.spec.meta_neuron for member in ensemble.active] == [0, 2]
    assert ensemble.features == ("f00", "f01", "f02", "f03")
    x, g = np.ones((4, 3)), np.ones((4, 3))
    assert ensemble.logits(ensemble.features, x, g).shape == (3,)


def test_json_gives_the_very_same_ensemble_back(ensemble: Ensemble) -> None:
    again = Ensemble.from_json(orjson.loads(orjson.dumps(ensemble.to_json())))
    assert again == ensemble
    x, g = np.random.default_rng(2).standard_normal((2, 6, 40))
    assert again.logits(names(6), x, g).tobytes() == ensemble.logits(names(6), x, g).tobytes()
