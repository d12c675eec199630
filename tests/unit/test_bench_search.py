"""Benchmarks of solvers, of the whole search, of features and of inference: they measure what they say."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from nx46vx.bench import features, grid, inference, peers, scaling
from nx46vx.bench.designs import Design
from nx46vx.bench.frame import outcome_of
from nx46vx.bench.lanes import learnable_data, neurons_of, plan_of
from nx46vx.bench.solvers import TOLERANCE, prox_newton, saga, seconds_to_reach
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
    _, thetas = peers._grid(data, plan, 1)
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


@pytest.mark.slow
def test_grid_runs_the_whole_search_through_ray(tmp_path: Path) -> None:
    sizes = grid.Sizes(samples=1500, validation=300, plain_trials=1, searched=2, repetitions=1)
    found = grid.measure(sizes, tmp_path).to_json()
    assert found["lanes"] == 135
    parts = found["ray_init_seconds"] + found["engine_busy_seconds"] + found["tune_overhead_seconds"]
    assert found["search_seconds"] == pytest.approx(parts)
    assert 0.1 < found["peak_memory_gib"] < 20
    assert found["ratio_vs_plain"] > 0 and found["ratio_vs_searched"] > 0
    assert list(tmp_path.iterdir()) == []


def test_features_are_compared_at_equal_values() -> None:
    found = features._compared(features.Sizes(compared=32, repetitions=1))
    assert found["deviation"] <= 1e-5 and 0.5 < found["clear_share"] <= 1.0
    assert set(features.BOUNDS) >= {"ratio_all_cores", "deviation"}
    assert found["ratio"] == [found["scipy_s"][0] / found["compared_s"][0]]


def test_inference_tells_seconds_of_a_whole_volume() -> None:
    found = inference.run(edge=40, repetitions=1)
    assert found["seconds"][0] > 0 and found["features"] > 6
