"""A meta-neuron: its columns, its logits in both forms, its bootstrap and its prior."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_samples import ArraySamples, Problem, make_data, make_samples, make_specs, names
from sklearn.linear_model import LogisticRegression

from nx46vx.errors import DataError
from nx46vx.model.neuron import (
    NeuronSpec,
    bootstrap,
    case_weights,
    fold,
    neuron_logits,
    prepare_neuron,
    unfold_gradient,
    view_generator,
)
from nx46vx.model.samples import CASE_BOOTSTRAP_MIN, FitData, cut

WIDTH = 4


@pytest.fixture(scope="module")
def data() -> FitData:
    return make_data((900, 650), 6, correlation=0.5, intercept=-0.7)


@pytest.fixture(scope="module")
def spec(data: FitData) -> NeuronSpec:
    return prepare_neuron(data, 11, 2, ("f04", "f00", "f03", "f01"))


def folded_columns(spec: NeuronSpec, data: FitData) -> np.ndarray:
    """(x, x^2, g, 1) with x standardised and the rest raw, (n, 3F + 1)."""
    raw = np.concatenate([case.features[data.rows(spec.view)] for case in data.train], axis=1).astype(np.float64)
    f = len(spec.view)
    x = (raw[:f] - np.array(spec.shift[:f])[:, None]) / np.array(spec.scale[:f])[:, None]
    return np.concatenate([x, x * x, raw[f:], np.ones((1, raw.shape[1]))]).T


def test_rows_of_a_view_are_its_features_in_order_and_then_their_gradients(data: FitData) -> None:
    assert data.rows(("f04", "f00")).tolist() == [4, 0, 10, 6]


def test_the_columns_are_centred_and_scaled_under_the_bootstrap(data: FitData, spec: NeuronSpec) -> None:
    problem = Problem.of(spec, data, seed=11)
    mean = np.average(problem.design, axis=0, weights=problem.weights)
    variance = np.average((problem.design - mean) ** 2, axis=0, weights=problem.weights)
    assert mean[:-1] == pytest.approx(np.zeros(3 * WIDTH), abs=1e-9)
    assert variance[:-1] == pytest.approx(np.ones(3 * WIDTH), rel=1e-9)
    assert (problem.design[:, -1] == 1.0).all()


def test_the_standardisation_is_that_of_the_rows_repeated_as_often_as_drawn(data: FitData, spec: NeuronSpec) -> None:
    rows = data.rows(spec.view)
    raw = np.concatenate([case.features[rows] for case in data.train], axis=1).astype(np.float64)
    counts = np.concatenate(case_weights(data, bootstrap(data, 11, 2))).astype(int)
    repeated = np.repeat(raw, counts, axis=1)
    x = (repeated[:WIDTH] - repeated[:WIDTH].mean(axis=1, keepdims=True)) / repeated[:WIDTH].std(axis=1, keepdims=True)
    columns = np.concatenate([repeated[:WIDTH], x * x, repeated[WIDTH:]])
    assert np.array(spec.shift) == pytest.approx(columns.mean(axis=1), rel=1e-9)
    assert np.array(spec.scale) == pytest.approx(columns.std(axis=1), rel=1e-9)


def test_the_curvature_bounds_the_hessian_everywhere(data: FitData, spec: NeuronSpec) -> None:
    problem, rng = Problem.of(spec, data, seed=11), np.random.default_rng(0)
    gram = (problem.design * problem.weights[:, None]).T @ problem.design / problem.weights.sum()
    assert spec.curvature == pytest.approx(0.25 * np.linalg.eigvalsh(gram)[-1], rel=1e-9)
    for _ in range(20):
        p = 1 / (1 + np.exp(-(problem.design @ rng.normal(0, 0.5, spec.columns))))
        weight = problem.weights * p * (1 - p)
        hessian = (problem.design * weight[:, None]).T @ problem.design / problem.weights.sum()
        assert np.linalg.eigvalsh(hessian)[-1] <= spec.curvature * (1 + 1e-12)


@pytest.mark.parametrize("tile", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_folded_weights_give_the_logits_of_the_standardised_design(
    data: FitData, spec: NeuronSpec, seed: int, tile: bool
) -> None:
    theta = np.random.default_rng(seed).standard_normal((spec.columns, 16) if tile else spec.columns)
    direct = Problem.of(spec, data, 11).design @ theta
    assert folded_columns(spec, data) @ fold(spec, theta) == pytest.approx(direct, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_the_unfolded_gradient_is_that_over_the_standardised_design(data: FitData, spec: NeuronSpec, seed: int) -> None:
    error = np.random.default_rng(seed).standard_normal((data.train_samples, 16))
    direct = Problem.of(spec, data, 11).design.T @ error
    folded = folded_columns(spec, data).T @ error
    assert unfold_gradient(spec, folded) == pytest.approx(direct, rel=1e-7, abs=1e-6)
    assert unfold_gradient(spec, folded[:, 3]) == pytest.approx(direct[:, 3], rel=1e-7, abs=1e-6)


def test_fold_and_unfold_leave_their_argument_alone(spec: NeuronSpec) -> None:
    theta = np.arange(spec.columns, dtype=float)
    fold(spec, theta), unfold_gradient(spec, theta)
    assert np.array_equal(theta, np.arange(spec.columns))


def test_neuron_logits_are_the_design_times_theta_at_the_natural_prevalence(data: FitData, spec: NeuronSpec) -> None:
    theta = np.random.default_rng(5).standard_normal(spec.columns)
    raw = np.concatenate([case.features[data.rows(spec.view)] for case in data.train], axis=1)
    direct = Problem.of(spec, data, 11).design @ theta + spec.prior_shift
    found = neuron_logits(spec, theta, raw[:WIDTH], raw[WIDTH:])
    assert found.dtype == np.float64
    assert found == pytest.approx(direct, rel=1e-7, abs=1e-7)


def test_the_logit_is_the_documented_sum(spec: NeuronSpec) -> None:
    """z = b + sum_f (w x + alpha q + beta h), with each column standardised, one voxel at a time."""
    rng = np.random.default_rng(6)
    theta, x, g = rng.standard_normal(spec.columns), rng.standard_normal((WIDTH, 3)), rng.random((WIDTH, 3))
    for voxel in range(3):
        z = theta[-1] + np.log(spec.natural_prior / (1 - spec.natural_prior)) - np.log(spec.prior / (1 - spec.prior))
        for f in range(WIDTH):
            s = (x[f, voxel] - spec.shift[f]) / spec.scale[f]
            q = (s * s - spec.shift[WIDTH + f]) / spec.scale[WIDTH + f]
            h = (g[f, voxel] - spec.shift[2 * WIDTH + f]) / spec.scale[2 * WIDTH + f]
            z += theta[f] * s + theta[WIDTH + f] * q + theta[2 * WIDTH + f] * h
        assert neuron_logits(spec, theta, x, g)[voxel] == pytest.approx(z)


def test_each_neuron_draws_a_bootstrap_of_its_own_and_draws_it_again_alike(data: FitData) -> None:
    drawn = [bootstrap(data, 0, k) for k in range(9)]
    assert len({one.tobytes() for one in drawn}) == 9
    for k, one in enumerate(drawn):
        assert one.sum() == one.size == data.train_groups[1]
        assert (one >= 0).all()
        assert np.array_equal(bootstrap(data, 0, k), one)
        assert not np.array_equal(bootstrap(data, 1, k), one)


def test_a_bootstrap_leaves_about_a_third_of_the_groups_out() -> None:
    data = make_data((4000,), 1, groups=800)
    missing = [(bootstrap(data, 3, k) == 0).mean() for k in range(10)]
    assert np.mean(missing) == pytest.approx(np.exp(-1), abs=0.03)


def test_the_draw_of_the_view_and_the_bootstrap_do_not_share_random_numbers(data: FitData) -> None:
    before = bootstrap(data, 0, 4)
    view_generator(0, 4).random(1000)
    assert np.array_equal(bootstrap(data, 0, 4), before)
    streams = [view_generator(0, k).random(8).tobytes() for k in range(9)]
    assert len(set(streams)) == 9
    assert (
        view_generator(0, 4).multinomial(before.size, np.full(before.size, 1 / before.size)).tolist() != before.tolist()
    )


def test_from_twenty_cases_on_the_bootstrap_draws_whole_cases() -> None:
    assert CASE_BOOTSTRAP_MIN == 20
    data = make_data([30] * 20, 2, groups=5)
    _, groups = data.train_groups
    assert groups == 20
    weights = case_weights(data, bootstrap(data, 0, 0))
    assert all(np.unique(one).size == 1 for one in weights)
    assert sum(float(one[0]) for one in weights) == 20


def test_below_twenty_cases_the_bootstrap_draws_spatial_blocks_of_cases() -> None:
    data = make_data([60] * 19, 2, groups=5)
    blocks = {(number, int(block)) for number, case in enumerate(data.train) for block in case.group}
    assert data.train_groups[1] == len(blocks)
    weights = case_weights(data, bootstrap(data, 0, 0))
    assert any(np.unique(one).size > 1 for one in weights)
    seen: dict[tuple[int, int], set[float]] = {}
    for number, (case, one) in enumerate(zip(data.train, weights, strict=True)):
        for block, weight in zip(case.group, one, strict=True):
            seen.setdefault((number, int(block)), set()).add(float(weight))
    assert all(len(values) == 1 for values in seen.values())
    assert sum(next(iter(values)) for values in seen.values()) == len(blocks)


def test_the_priors_are_the_weighted_share_of_positives_and_the_share_in_the_volumes(
    data: FitData, spec: NeuronSpec
) -> None:
    problem = Problem.of(spec, data, seed=11)
    assert spec.prior == pytest.approx(np.average(problem.y, weights=problem.weights))
    totals = np.sum([case.counts for case in data.train], axis=0)
    assert spec.natural_prior == pytest.approx(totals[1] / totals.sum())


def test_the_prior_shift_gives_a_balanced_fit_the_mean_probability_of_the_volumes() -> None:
    """Fitted on as many positives as negatives by scikit-learn, applied where positives are rare."""
    volume = make_samples(60_000, 3, 1, intercept=-3.5, strength=0.7)
    ones, zeros = np.flatnonzero(volume.y == 1), np.flatnonzero(volume.y == 0)
    chosen = np.sort(np.concatenate([ones, np.random.default_rng(0).choice(zeros, ones.size, replace=False)]))
    balanced = ArraySamples(
        "balanced", volume.features[:, chosen], volume.y[chosen], np.zeros(chosen.size, np.int32), volume.counts
    )
    data = FitData(names(3), [balanced], [volume])
    spec = prepare_neuron(data, 0, 0, names(3))
    problem = Problem.of(spec, data)
    fit = LogisticRegression(C=1e4, tol=1e-8, max_iter=1000).fit(problem.design[:, :-1], problem.y)
    theta = np.append(fit.coef_[0], fit.intercept_[0])
    shifted = neuron_logits(spec, theta, volume.features[:3], volume.features[3:])
    natural = volume.y.mean()
    assert natural < 0.12
    assert spec.prior_shift < -1.5
    assert (1 / (1 + np.exp(-shifted))).mean() == pytest.approx(natural, rel=0.05)
    assert (1 / (1 + np.exp(-(shifted - spec.prior_shift)))).mean() > 2 * natural


def test_log_variance_is_that_of_the_validation_features(data: FitData, spec: NeuronSpec) -> None:
    raw = data.validation[0].features[data.rows(spec.view)[:WIDTH]].astype(np.float64)
    x = (raw - np.array(spec.shift[:WIDTH])[:, None]) / np.array(spec.scale[:WIDTH])[:, None]
    assert spec.log_variance == pytest.approx(np.log(1 + x.var(axis=1)).mean(), rel=1e-9)


def test_json_gives_the_very_same_spec_back(spec: NeuronSpec) -> None:
    again = NeuronSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert again.digest == spec.digest == spec.to_json()["digest"]


def test_the_digest_sees_every_field(spec: NeuronSpec) -> None:
    nudged = (float(np.nextafter(spec.shift[0], np.inf)), *spec.shift[1:])
    others = [
        replace(spec, meta_neuron=3), replace(spec, view=spec.view[::-1]), replace(spec, shift=nudged),
        replace(spec, curvature=spec.curvature * 2), replace(spec, weights_digest="0"),
    ]  # fmt: skip
    assert len({one.digest for one in [spec, *others]}) == 6


def test_the_spec_does_not_depend_on_the_cutting_into_chunks(data: FitData, spec: NeuronSpec) -> None:
    whole = prepare_neuron(FitData(data.pool, data.train, data.validation), 11, 2, spec.view)
    assert np.array(whole.shift) == pytest.approx(spec.shift, rel=1e-12)
    assert np.array(whole.scale) == pytest.approx(spec.scale, rel=1e-12)
    assert whole.curvature == pytest.approx(spec.curvature, rel=1e-12)
    assert prepare_neuron(data, 11, 2, spec.view) == spec


@settings(deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=6), st.integers(1, 700))
def test_chunks_cover_every_sample_once_and_none_is_too_long(sizes: list[int], size: int) -> None:
    cases = [ArraySamples(str(n), np.empty((2, n)), np.empty(n), np.empty(n), (0, 0)) for n in sizes]
    covered = [np.zeros(n, int) for n in sizes]
    for chunk in cut(cases, size):
        assert 0 < chunk.stop - chunk.start <= size
        covered[chunk.case][chunk.start : chunk.stop] += 1
    assert all((one == 1).all() for one in covered)


def test_a_bootstrap_with_a_single_class_is_refused_by_name() -> None:
    data = make_data((50,), 2)
    data.train[0].y[:] = 1
    with pytest.raises(DataError, match="meta-neuron 5"):
        prepare_neuron(data, 0, 5, names(2))


def test_a_feature_that_does_not_vary_is_refused_by_name() -> None:
    data = make_data((200, 200), 3)
    for case in data.train:
        case.features[1] = 0.1
    with pytest.raises(DataError, match="f01"):
        prepare_neuron(data, 0, 0, names(3))
    assert prepare_neuron(data, 0, 0, ("f00", "f02")).view == ("f00", "f02")


def test_the_helper_makes_neurons_that_differ(data: FitData) -> None:
    specs = make_specs(data, neurons=9)
    assert len({one.view for one in specs}) > 1
    assert len({one.weights_digest for one in specs}) == 9
