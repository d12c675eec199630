"""What judges a set of features: one wide quadratic neuron of our own, and scikit-learn's boosted trees.

Also the grid's best candidate of each meta-neuron, fitted in this process by the product's engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from nx46vx.bench.dependencies import need
from nx46vx.features.spread import usable_cpus
from nx46vx.model.blocks import KPI_EVERY, LaneRequest, start_request
from nx46vx.model.candidates import Grid
from nx46vx.model.engine import FitEngine
from nx46vx.model.ensemble import Member
from nx46vx.model.neuron import prepare_neuron
from nx46vx.model.passes import Passes
from nx46vx.model.samples import FitData
from nx46vx.pipeline.best import best_records

#: The wide neuron has many columns that resemble one another: a weak penalty, and iterations until it has converged.
WIDE_GRID, WIDE_ITERATIONS = Grid((1e-4,), (1e-4,)), 600

#: Takes features and gradients (2 C, n) in the columns of the data that it was fitted on; scores (n,).
Scores = Callable[[np.ndarray], np.ndarray]


def need_sklearn() -> None:
    """scikit-learn is there.

    Raises:
        UsageError: it is not installed.
    """
    need("scikit-learn", "sklearn")


def average_precision(y: np.ndarray, scores: np.ndarray) -> float:
    """scikit-learn's average precision."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(y, scores))


def boosted_trees(data: FitData, view: Sequence[str]) -> Scores:
    """``HistGradientBoostingClassifier`` as it comes, on the features and gradients of a view; on one thread, since
    its threads wait for each other, and a busy machine makes that many times slower."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    rows = data.rows(view)
    x = np.concatenate([case.features[rows] for case in data.train], axis=1).T
    y = np.concatenate([case.y for case in data.train])
    with threadpool_limits(1, user_api="openmp"):
        trees = HistGradientBoostingClassifier(random_state=0).fit(x, y)

    def scores(features: np.ndarray) -> np.ndarray:
        with threadpool_limits(1, user_api="openmp"):
            return np.asarray(trees.decision_function(features[rows].T))

    return scores


def wide_neuron(data: FitData, view: Sequence[str]) -> Scores:
    """One quadratic neuron that sees a whole view, through our solver."""
    (member, _), *_ = fit_members(data, {0: tuple(view)}, seed=0, grid=WIDE_GRID, iterations=WIDE_ITERATIONS)
    rows, width = data.rows(view), len(view)
    return lambda features: member.logits(features[rows[:width]], features[rows[width:]])


def fit_members(
    data: FitData, views: Mapping[int, tuple[str, ...]], *, seed: int, grid: Grid, iterations: int
) -> list[tuple[Member, float]]:
    """Every candidate of some meta-neurons; the best of each, weight 0, and its objective on the validation samples."""
    specs = {k: prepare_neuron(data, seed, k, view) for k, view in views.items()}
    engine = FitEngine(Passes(data, seed=seed, threads=usable_cpus()), grid, block=KPI_EVERY)
    records, thetas = {}, {}
    try:
        for spec in specs.values():
            engine.add_neuron(spec)
        requests = [
            start_request(candidate, specs[candidate.meta_neuron], iterations)
            for candidate in grid.candidates(sorted(specs))
        ]
        engine.expect(requests)
        for request in requests:
            state = request.state
            while state.iteration < iterations:
                block = engine.advance(LaneRequest(request.candidate, state, iterations))[-1]
                state = block.state
            name = request.candidate.candidate_id
            records[name] = {**request.candidate.to_json(), "objective": block.kpis[-1]["objective"]}
            thetas[name] = tuple(state.theta.tolist())
    finally:
        engine.close()
    return [
        (Member(name := str(best["candidate_id"]), specs[neuron], thetas[name], 0.0), float(best["objective"]))
        for neuron, best in best_records(records).items()
    ]
