"""The joint fit: the optimum that scikit-learn finds, mixed in only where it helps, a part of one quadratic form."""

from __future__ import annotations

import warnings

import numpy as np
import orjson
import pytest
from model_samples import make_data, make_specs, names
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from nx46vx.inference.predict import quadratic_terms
from nx46vx.model import joint as module
from nx46vx.model.ensemble import Ensemble, Member, combine, mixed
from nx46vx.model.joint import RIDGES, Joint, JointNeuron, fit_joint
from nx46vx.model.neuron import design_columns
from nx46vx.model.samples import FitData

POOL = 8


@pytest.fixture(scope="module")
def data() -> FitData:
    return make_data(pool=POOL)


@pytest.fixture(scope="module")
def joints(data: FitData) -> list[JointNeuron]:
    return fit_joint(data, names(POOL), seed=0, meta_neuron=3)


def raw(data: FitData, train: bool = True) -> tuple[np.ndarray, np.ndarray]:
    cases = data.train if train else data.validation
    features = np.concatenate([case.features for case in cases], axis=1).astype(np.float64)
    return features, np.concatenate([case.y for case in cases])


@pytest.mark.parametrize("number", range(len(RIDGES)))
def test_it_is_the_optimum_that_scikit_learn_finds(data: FitData, joints: list[JointNeuron], number: int) -> None:
    found, (features, y) = joints[number], raw(data)
    columns = design_columns(features, np.array(found.spec.shift), np.array(found.spec.scale))[:-1]
    assert columns.mean(axis=1) == pytest.approx(0, abs=1e-6), "every sample counts once"
    fit = LogisticRegression(C=1 / (y.size * found.ridge), solver="newton-cholesky", tol=1e-12).fit(columns.T, y)
    expected = np.append(fit.coef_[0], fit.intercept_)

    def objective(theta: np.ndarray) -> float:
        p = 1 / (1 + np.exp(-(theta[:-1] @ columns + theta[-1])))
        return log_loss(y, p) + found.ridge / 2 * float(theta[:-1] @ theta[:-1])

    assert objective(found.theta) == pytest.approx(objective(expected), rel=1e-7)
    assert found.theta == pytest.approx(expected, abs=2e-3)


def test_many_samples_are_thinned_case_by_case(data: FitData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third sample of each case, and what is fitted on them is what is fitted on those alone."""
    from model_samples import ArraySamples

    monkeypatch.setattr(module, "MAX_SAMPLES", -(-data.train_samples // 3))
    thinned = fit_joint(data, names(POOL), seed=0, meta_neuron=3)
    monkeypatch.undo()
    third = [
        ArraySamples(c.case_id, c.features[:, ::3], c.y[::3], c.group[::3], c.counts, c.index[::3]) for c in data.train
    ]
    alone = fit_joint(FitData(data.pool, third, data.validation, data.chunk), names(POOL), seed=0, meta_neuron=3)
    for one, other in zip(thinned, alone, strict=True):
        assert one.spec == other.spec
        assert np.array_equal(one.theta, other.theta)


def test_two_fits_have_the_same_bits(data: FitData, joints: list[JointNeuron]) -> None:
    for one, other in zip(joints, fit_joint(data, names(POOL), seed=0, meta_neuron=3), strict=True):
        assert one.theta.tobytes() == other.theta.tobytes()


def _truth(seed: int, n: int = 6000) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    truth = 1.5 * rng.standard_normal(n) - 2.0
    return truth, (rng.random(n) < 1 / (1 + np.exp(-truth))).astype(np.uint8), rng


def test_it_takes_part_by_the_shares_that_scikit_learn_gives(joints: list[JointNeuron]) -> None:
    truth, y, rng = _truth(0)
    members, own = (truth + noise * rng.standard_normal(y.size) for noise in (1.5, 1.0))
    worse = truth + 3.0 * rng.standard_normal(y.size)
    found = mixed(members, [(joints[0], worse), (joints[2], own)], y)
    assert found is not None
    assert found.ridge == RIDGES[2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = LogisticRegression(C=1e9, tol=1e-10, max_iter=2000).fit(np.stack([members, own], axis=1), y)
    shares = (found.members_share, found.share, found.intercept)
    assert shares == pytest.approx((*fit.coef_[0], fit.intercept_[0]), rel=1e-3)


def test_what_says_nothing_takes_no_part(joints: list[JointNeuron]) -> None:
    truth, y, rng = _truth(1, 60_000)
    assert mixed(truth, [(joint, rng.standard_normal(y.size)) for joint in joints], y) is None
    assert mixed(truth, [(joint, -truth) for joint in joints], y) is None


def ensemble_of(data: FitData, joints: list[JointNeuron], members_share: float) -> Ensemble:
    rng = np.random.default_rng(5)
    members = tuple(
        Member(f"k{k}", spec, tuple(rng.standard_normal(spec.columns).tolist()), weight)
        for (k, spec), weight in zip(enumerate(make_specs(data, neurons=3)), (0.4, 0.0, 0.8), strict=False)
    )
    one = joints[1]
    joint = Joint(one.spec, tuple(one.theta.tolist()), one.ridge, members_share, 0.7, -0.3)
    return Ensemble(members, 0.2, joint)


@pytest.mark.parametrize("members_share", [0.5, 0.0])
def test_members_and_joint_fit_are_one_quadratic_form(
    data: FitData, joints: list[JointNeuron], members_share: float
) -> None:
    """The ensemble's logits are the mixture of its parts' logits, and those of the form that inference evaluates."""
    ensemble, (features, _) = ensemble_of(data, joints, members_share), raw(data, train=False)
    x, g = features[:POOL], features[POOL:]
    rows = {m.candidate_id: [data.pool.index(name) for name in m.spec.view] for m in ensemble.members}
    summed = 0.2 + sum(m.weight * m.logits(x[rows[m.candidate_id]], g[rows[m.candidate_id]]) for m in ensemble.members)
    assert ensemble.joint is not None
    expected = -0.3 + members_share * summed + 0.7 * ensemble.joint.logits(x, g)
    assert ensemble.logits(data.pool, x, g) == pytest.approx(expected, abs=1e-9)
    used = ensemble.features
    terms, constant = quadratic_terms(ensemble.forms, ensemble.constant, used)
    at = [data.pool.index(name) for name in used]
    s = x[at] - terms[:, :1]
    form = constant + ((terms[:, 1:2] * s + terms[:, 2:3]) * s + terms[:, 3:] * g[at]).sum(axis=0)
    assert form == pytest.approx(expected, abs=1e-4 * np.abs(expected).max())


def test_an_ensemble_with_a_joint_fit_survives_json(data: FitData, joints: list[JointNeuron]) -> None:
    ensemble = ensemble_of(data, joints, 0.5)
    assert Ensemble.from_json(orjson.loads(orjson.dumps(ensemble.to_json()))) == ensemble
    without = ensemble.to_json()
    del without["joint"]  # as earlier versions wrote it
    assert Ensemble.from_json(without).joint is None


def test_it_beats_the_members_where_features_correct_one_another() -> None:
    """Two features that share a disturbance: apart they say little, their difference says all."""
    from model_samples import ArraySamples

    rng = np.random.default_rng(3)

    def case(name: str, n: int = 6000) -> ArraySamples:
        y = (rng.random(n) < 0.5).astype(np.uint8)
        shared = 3 * rng.standard_normal(n)
        features = np.stack([shared + y, shared - y, *(np.abs(rng.standard_normal((2, n))) + 0.1)]).astype(np.float32)
        group, index = np.repeat(np.arange(12), n // 12), np.arange(n)
        return ArraySamples(name, features, y, group, (n, n), index)

    data = FitData(("a", "b"), [case("t0"), case("t1")], [case("v")])
    both = fit_joint(data, ("a", "b"), seed=0, meta_neuron=2)[-1]
    alone = [fit_joint(data, (name,), seed=0, meta_neuron=k)[-1] for k, name in enumerate("ab")]
    features, y = raw(data, train=False)

    def logits(one: JointNeuron, rows: list[int]) -> np.ndarray:
        part = Joint(one.spec, tuple(one.theta.tolist()), one.ridge, 0.0, 1.0, 0.0)
        return part.logits(features[rows], features[[2 + row for row in rows]])

    singles = np.stack([logits(one, [k]) for k, one in enumerate(alone)])
    members = combine(singles, y)
    found = mixed(members.logits(singles), [(both, logits(both, [0, 1]))], y)
    assert found is not None
    combined = found.intercept + found.members_share * members.logits(singles) + found.share * logits(both, [0, 1])
    loss = [log_loss(y, 1 / (1 + np.exp(-z))) for z in (combined, members.logits(singles))]
    assert loss[0] < 0.1 * loss[1]
