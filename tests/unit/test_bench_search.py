"""Benchmarks of solvers, of the whole search, of features and of inference: they measure what they say."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from nx46vx.bench import features, grid, inference, peers, rivals, scaling
from nx46vx.bench.designs import Design
from nx46vx.bench.fits import fitted
from nx46vx.bench.frame import outcome_of
from nx46vx.bench.lanes import learnable_data, neurons_of, plan_of, spread_out
from nx46vx.bench.rivals import GridSearch, serial_nanoseconds
from nx46vx.bench.solvers import TOLERANCE, prox_newton, saga, search_seconds, seconds_to_reach
from nx46vx.bench.stage import Stage
from nx46vx.model.factory import build_engine


def test_what_was_measured_becomes_figures_and_what_was_chosen_sizes() -> None:
    found = {"edge": 48, "seconds": [2.0, 1.0, 3.0], "ratio": 4.0, "made_of": "noise"}
    told = outcome_of("x", found, {"ratio": ("at_least", 5.0), "seconds": ("at_most", 2.0)})
    assert told.sizes == {"edge": 48, "made_of": "noise"}
    assert {figure.name: (figure.median, figure.met, figure.unit) for figure in told.figures} == {
        "seconds": (2.0, True, "s"), "ratio": (4.0, False, ""),
    }  # fmt: skip


def test_peers_solve_the_engines_problem() -> None:
    """Both reach the objective that the engine reaches, on the design that it has; so do its own weights."""
    data = learnable_data(4000, 500)
    plan = plan_of(data, neurons_of(data, 1), "bench")
    candidate = plan.candidates[7]
    iterations, figures, thetas = fitted(data, plan, 1)
    assert iterations > figures > 0
    design = Design.of(plan.spec(0), data, plan.seed)
    ours = design.objective(thetas[candidate], candidate.l1, candidate.l2)
    for solver in (saga, prox_newton):
        theirs = design.objective(solver(design, candidate.l1, candidate.l2, 200), candidate.l1, candidate.l2)
        assert theirs == pytest.approx(ours, rel=TOLERANCE)
        goal = (1 + TOLERANCE) * ours
        seconds, steps = seconds_to_reach(solver, design, candidate.l1, candidate.l2, goal)
        assert 0 < seconds < float("inf") and steps < 256
    assert seconds_to_reach(saga, design, 1e-3, 1e-3, 0.0)[0] == float("inf")


def test_peers_gives_its_ratios() -> None:
    found = peers.measure(peers.Sizes(samples=3000, validation=400, candidates=1, repetitions=1)).to_json()
    for name in ("seconds_per_candidate", "saga_seconds", "prox_newton_seconds"):
        assert 0 < found[name] < 60
    assert found["ratio_vs_saga"] == pytest.approx(found["saga_seconds"] / found["seconds_per_candidate"])
    assert (found["lanes"], found["iterations"]) == (135, 120)


def test_growth_is_the_slope_of_time_over_size() -> None:
    assert scaling.exponent((10, 100, 1000), [3.0, 30.0, 300.0]) == pytest.approx(1.0)
    assert scaling.exponent((10, 1000), [1.0, 100.0**2]) == pytest.approx(2.0)


def test_scaling_gives_growth_and_a_pass_over_what_is_on_disk_only(tmp_path: Path) -> None:
    sizes = scaling.Sizes((5_000, 50_000), (1, 2), (5, 20), 50_000, repetitions=1)
    found = scaling.measure(sizes, tmp_path).to_json()
    for name in ("samples", "lanes", "iterations"):
        assert math.isfinite(found[f"{name}_exponent"]) and found[f"{name}_largest_s"] > 0
    assert found["cold_pass_over_reading"] > 0 and found["disk_mb_per_s"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_stage_is_a_cache_and_a_frozen_fit_that_an_engine_runs_on(tmp_path: Path) -> None:
    stage = Stage.make(tmp_path, 50_000, 1000, 2)
    assert (len(stage.plan.train_keys), len(stage.plan.validation_keys)) == (2, 1)
    data = stage.data()
    assert (data.train_samples, data.validation_samples) == (50_000, 1000)
    assert not np.array_equal(data.train[0].features[:, :99], data.train[1].features[:, :99])
    engine = build_engine(stage.plan, data)
    blocks = engine.advance(stage.plan.start(stage.plan.candidates[0], 10))
    engine.close()
    assert blocks[-1].state.iteration == 10


def test_grid_search_gets_the_passes_that_its_candidates_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With these each is as good as ours + 0.1 %, with fewer it is not; and so many it is given in the timed search."""
    stage = Stage.make(tmp_path, 3000, 300, 1)
    peer = GridSearch(stage, 2, 1)
    chosen, first = (spread_out(stage.plan.candidates[:15], count) for count in (2, 1))
    design = Design.of(stage.plan.spec(0), stage.data(), stage.plan.seed)
    *_, thetas = fitted(stage.data(), stage.plan, 1, chosen)
    for one, passes in zip(chosen, peer.passes, strict=True):
        goal = (1 + TOLERANCE) * design.objective(thetas[one], one.l1, one.l2)
        assert design.objective(saga(design, one.l1, one.l2, passes), one.l1, one.l2) <= goal
        assert passes > 1 and design.objective(saga(design, one.l1, one.l2, 1), one.l1, one.l2) > goal
    asked = []
    monkeypatch.setattr(rivals, "search_seconds", lambda *told: asked.append(told[1:]) or 3.0)
    assert (peer.seconds(), peer.default_seconds()) == (3.0 * 15 / 2, 3.0 * 15)
    penalties, by_default = ([(one.l1, one.l2) for one in some] for some in (chosen, first))
    assert asked == [(penalties, peer.passes), (by_default, None)]


def test_the_search_of_scikit_learn_ends_at_the_passes_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from joblib import parallel_config
    from sklearn.linear_model import LogisticRegression

    ended: list[tuple[int, float, int]] = []
    real = LogisticRegression.fit

    def fit(self: LogisticRegression, columns: np.ndarray, y: np.ndarray) -> LogisticRegression:
        done = real(self, columns, y)
        ended.append((y.size, self.tol, int(self.n_iter_[0])))
        return done

    monkeypatch.setattr(LogisticRegression, "fit", fit)
    data = learnable_data(2000, 100)
    design = Design.of(plan_of(data, neurons_of(data, 1), "bench").spec(0), data, 0)
    with parallel_config(backend="sequential"):  # in this process, where it is seen
        assert search_seconds(design, [(1e-3, 1e-3), (1e-2, 1e-3)], [2, 5]) > 0
        given = list(ended)
        ended.clear()
        assert search_seconds(design, [(1e-3, 1e-3)]) > 0
    whole = design.y.size - -(-design.y.size // 10)
    assert [one for one in given if one[0] == whole] == [(whole, 1e-12, 2), (whole, 1e-12, 5)]
    assert [(size, tol) for size, tol, _ in ended if size == whole] == [(whole, LogisticRegression().tol)]


def test_the_serial_rate_is_taken_on_some_of_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage.make(tmp_path, 100_000, 300, 1)
    sizes = []
    real = rivals.serial_ns
    monkeypatch.setattr(rivals, "SERIAL_SAMPLES", 50_000)
    monkeypatch.setattr(rivals, "serial_ns", lambda data, *how: sizes.append(data.train_samples) or real(data, *how))
    assert serial_nanoseconds(stage) > 0
    assert set(sizes) == {80_000}


@pytest.mark.slow
def test_grid_runs_the_whole_search_through_ray(tmp_path: Path) -> None:
    sizes = grid.Sizes(samples=1500, validation=300, plain_trials=1, searched=2, searched_by_default=1, repetitions=1)
    found = grid.measure(sizes, tmp_path).to_json()
    assert found["lanes"] == 135
    parts = found["ray_init_seconds"] + found["engine_busy_seconds"] + found["tune_overhead_seconds"]
    assert found["search_seconds"] == pytest.approx(parts)
    assert 0.1 < found["peak_memory_gib"] < 20
    for name in ("plain", "searched", "searched_by_default"):
        ratio = found[f"{name}_seconds"] / found["search_seconds"]
        assert found[f"ratio_vs_{name}"] == pytest.approx(ratio) and ratio > 0
    assert len(found["grid_search_passes"]) == 2
    cells = 1500 * 135 * 120
    assert 3600 * found["serial_hours"] == pytest.approx(1e-9 * found["serial_twin_ns_per_sample_iter"] * cells)
    assert found["ratio_vs_serial"] == pytest.approx(3600 * found["serial_hours"] / found["search_seconds"])
    assert list(tmp_path.iterdir()) == []


def test_features_are_compared_at_equal_values() -> None:
    found = features._compared(features.Sizes(compared=32, repetitions=1))
    assert found["deviation"] <= 1e-5 and 0.5 < found["clear_share"] <= 1.0
    assert set(features.BOUNDS) >= {"ratio_all_cores", "deviation"}
    assert found["ratio"] == [found["scipy_s"][0] / found["compared_s"][0]]


def test_inference_tells_seconds_of_a_whole_volume() -> None:
    found = inference.run(edge=40, repetitions=1)
    assert found["seconds"][0] > 0 and found["features"] > 6
