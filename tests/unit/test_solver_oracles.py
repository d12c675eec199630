"""The engine against other people's solvers, and 120 iterations against the optimum.

Every objective is evaluated in float64 NumPy over the standardised design: weighted mean cross-entropy
+ l1 |theta|_1 + l2/2 |theta|^2, the intercept left out.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import skglm
import sklearn
from model_samples import FULL_GRID, Problem, make_data, make_volume_data
from skglm.datafits import Logistic
from skglm.penalties import L1_plus_L2
from skglm.solvers import ProxNewton
from skglm.utils.jit_compilation import compiled_clone
from sklearn.linear_model import LogisticRegression

from nx46vx.model.blocks import start_request
from nx46vx.model.candidates import Candidate, Grid
from nx46vx.model.engine import FitEngine
from nx46vx.model.neuron import NeuronSpec, prepare_neuron
from nx46vx.model.passes import Passes
from nx46vx.model.samples import FitData
from nx46vx.model.solver import Method
from nx46vx.model.views import draw_views, relevance_gram

MANY, OPTIMUM = 3000, 1500
RELATIVE = 1e-6

#: Weak, mixed and strong penalties: the grid's corners, its middle, and beyond its strongest.
PENALTIES = ((1e-4, 1e-4), (1e-4, 1e-2), (1e-3, 1e-3), (1e-2, 1e-4), (1e-2, 1e-2), (2e-2, 1e-1))

#: One group of samples: every bootstrap draws it once, so all weights are 1. Several: weights of 0, 1, 2, ...
PROBLEMS = {
    "plain": {"sizes": (1500,), "groups": 1},
    "plain, correlated columns": {"sizes": (1500,), "groups": 1, "correlation": 0.95},
    "plain, imbalanced": {"sizes": (3000,), "groups": 1, "intercept": -3.5},
    "weighted": {"sizes": (900, 700), "groups": 12},
    "weighted, correlated columns": {"sizes": (900, 700), "groups": 12, "correlation": 0.95},
    "weighted, imbalanced": {"sizes": (1800, 1500), "groups": 12, "intercept": -3.0},
}


def fit(
    data: FitData,
    specs: list[NeuronSpec],
    candidates: list[Candidate],
    grid: Grid,
    iterations: int,
    method: Method = "fista",
) -> dict[Candidate, np.ndarray]:
    """The engine's weights of some candidates after some iterations."""
    engine = FitEngine(Passes(data, seed=0), grid, method=method, block=iterations)
    for spec in specs:
        engine.add_neuron(spec)
    requests = [start_request(candidate, specs[candidate.meta_neuron], iterations) for candidate in candidates]
    engine.expect(requests)
    found = {}
    for request in requests:
        while request.state.iteration < request.until:
            request = replace(request, state=engine.advance(request)[-1].state)
        found[request.candidate] = request.state
    engine.close()
    assert all(state.iteration == iterations for state in found.values())
    return {candidate: state.theta for candidate, state in found.items()}


@cache
def solved(name: str) -> tuple[Problem, dict[tuple[float, float], np.ndarray]]:
    """A problem, and the engine's converged weights for every pair of penalties: all lanes of one tile."""
    how = dict(PROBLEMS[name])
    data = make_data(how.pop("sizes"), 4, validation=100, chunk=16_384, **how)
    spec = prepare_neuron(data, 0, 0, data.pool)
    grid = Grid((1e-4, 1e-3, 1e-2, 2e-2), (1e-4, 1e-3, 1e-2, 1e-1))
    candidates = [Candidate(0, l1, l2) for l1, l2 in PENALTIES]
    thetas = fit(data, [spec], candidates, grid, MANY)
    return Problem.of(spec, data), {(c.l1, c.l2): theta for c, theta in thetas.items()}


def version(text: str) -> tuple[int, ...]:
    """Major and minor."""
    return tuple(int(part) for part in text.split(".")[:2])


def by_scikit_learn(problem: Problem, l1: float, l2: float) -> np.ndarray:
    """SAGA. scikit-learn minimises C sum_i s_i loss_i + r |w|_1 + (1 - r)/2 |w|^2: ours over (l1 + l2)."""
    chosen = {"penalty": "elasticnet"} if version(sklearn.__version__) < (1, 8) else {}
    weights = None if (problem.weights == 1).all() else problem.weights
    total = problem.weights.sum()
    model = LogisticRegression(
        C=1 / (total * (l1 + l2)), l1_ratio=l1 / (l1 + l2), solver="saga", tol=1e-10, max_iter=20_000, random_state=0,
        **chosen,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # so that it says when it has not converged
        model.fit(problem.design[:, :-1], problem.y, sample_weight=weights)
    return np.append(model.coef_[0], model.intercept_)


def by_skglm(problem: Problem, l1: float, l2: float) -> np.ndarray:
    """Prox-Newton. skglm minimises mean log(1 + exp(-s z)) + a (r |w|_1 + (1 - r)/2 |w|^2) with s = -1 or 1, the
    intercept last and not penalised; it knows no weights, so rows are repeated."""
    rows = np.repeat(np.arange(problem.y.size), problem.weights.astype(int))
    datafit, penalty = Logistic(), L1_plus_L2(l1 + l2, l1 / (l1 + l2))
    if version(skglm.__version__) < (0, 5):  # from then on the solver compiles them itself
        datafit, penalty = compiled_clone(datafit), compiled_clone(penalty)
    solver = ProxNewton(tol=1e-11, max_iter=200, fit_intercept=True)
    design = np.asfortranarray(problem.design[rows, :-1])
    theta, _, violation = solver.solve(design, 2 * problem.y[rows] - 1, datafit, penalty)
    assert violation <= 1e-9
    return np.asarray(theta)


@pytest.mark.parametrize("oracle", [by_scikit_learn, by_skglm])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_converged_engine_reaches_the_objective_of_other_solvers(name: str, oracle) -> None:  # type: ignore[no-untyped-def]
    problem, thetas = solved(name)
    for (l1, l2), theta in thetas.items():
        ours, theirs = problem.objective(theta, l1, l2), problem.objective(oracle(problem, l1, l2), l1, l2)
        assert abs(ours - theirs) <= RELATIVE * theirs, (name, l1, l2, ours / theirs - 1)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_converged_engine_drops_the_columns_that_scikit_learn_drops(name: str) -> None:
    problem, thetas = solved(name)
    for l1, l2 in ((1e-2, 1e-4), (1e-2, 1e-2)):
        theirs = by_scikit_learn(problem, l1, l2)
        assert thetas[l1, l2] == pytest.approx(theirs, abs=2e-3)
        clear = (theirs == 0) | (np.abs(theirs) > 1e-3)
        assert ((thetas[l1, l2] == 0) == (theirs == 0))[clear].all()


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_penalty_that_drops_every_column_leaves_the_log_odds(name: str) -> None:
    """The optimum is known: b = log(p / (1 - p)) with p the weighted share of positives."""
    how = dict(PROBLEMS[name])
    data = make_data(how.pop("sizes"), 4, validation=100, chunk=16_384, **how)
    spec = prepare_neuron(data, 0, 0, data.pool)
    theta = fit(data, [spec], [Candidate(0, 2.0, 1.0)], Grid((2.0,), (1.0,)), 400)[Candidate(0, 2.0, 1.0)]
    problem = Problem.of(spec, data)
    p = np.average(problem.y, weights=problem.weights)
    assert not theta[:-1].any()
    assert theta[-1] == pytest.approx(np.log(p / (1 - p)), rel=1e-4)


def test_the_problems_are_what_their_names_say() -> None:
    for name in PROBLEMS:
        problem, thetas = solved(name)
        assert ("plain" in name) == bool((problem.weights == 1).all())
        assert ("weighted" in name) == (problem.weights.max() > 1)
        assert ("imbalanced" in name) == (problem.y.mean() < 0.12)
        between = np.abs(np.corrcoef(problem.design[:, :4].T) - np.eye(4)).max()
        assert ("correlated" in name) == (between > 0.9)
        assert np.count_nonzero(thetas[1e-4, 1e-4][:-1]) > 9
        assert 0 < np.count_nonzero(thetas[1e-2, 1e-4][:-1]) < 11


@cache
def smoke() -> tuple[FitData, list[NeuronSpec]]:
    """Real features of small scroll volumes, and the first meta-neurons as a run would make them."""
    data = make_volume_data(samples=1500)
    views = draw_views(relevance_gram(data), data.pool, seed=0, width=6, meta_neurons=range(2))
    return data, [prepare_neuron(data, 0, k, view) for k, view in views.items()]


@cache
def smoke_weights(iterations: int, method: Method) -> dict[Candidate, np.ndarray]:
    data, specs = smoke()
    return fit(data, specs, FULL_GRID.candidates(range(len(specs))), FULL_GRID, iterations, method)


def smoke_excess(method: Method) -> dict[Candidate, float]:
    """Relative distance of the objective after 120 iterations from the optimum, for every candidate."""
    data, specs = smoke()
    problems = [Problem.of(spec, data) for spec in specs]
    excess = {}
    for candidate, theta in smoke_weights(120, method).items():
        problem, penalties = problems[candidate.meta_neuron], (candidate.l1, candidate.l2)
        optimum = problem.objective(smoke_weights(OPTIMUM, "fista")[candidate], *penalties)
        excess[candidate] = problem.objective(theta, *penalties) / optimum - 1
    return excess


def test_120_iterations_are_within_one_percent_of_the_optimum_for_every_candidate() -> None:
    excess = smoke_excess("fista")
    worst = max(excess, key=lambda candidate: excess[candidate])
    print(f"worst of {len(excess)}: {worst.candidate_id} {100 * excess[worst]:.4f} %")
    assert len(excess) == 30
    assert excess[worst] <= 0.01
    assert min(excess.values()) >= -RELATIVE  # the optimum is one


def test_the_optimum_that_120_iterations_are_measured_by_is_that_of_scikit_learn() -> None:
    data, specs = smoke()
    for candidate in (Candidate(0, 1e-4, 1e-4), Candidate(1, 1e-3, 1e-3), Candidate(1, 1e-2, 1e-2)):
        problem, (l1, l2) = Problem.of(specs[candidate.meta_neuron], data), (candidate.l1, candidate.l2)
        ours = problem.objective(smoke_weights(OPTIMUM, "fista")[candidate], l1, l2)
        theirs = problem.objective(by_scikit_learn(problem, l1, l2), l1, l2)
        assert abs(ours - theirs) <= RELATIVE * theirs


def test_ista_is_further_from_the_optimum_than_fista_on_real_features() -> None:
    fista, ista = smoke_excess("fista"), smoke_excess("ista")
    print(f"worst: fista {max(fista.values()):.5f}, ista {max(ista.values()):.5f}")
    assert max(fista.values()) < 0.2 * max(ista.values())
