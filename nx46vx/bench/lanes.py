"""The real grid to measure on: its penalties, random samples with labels that can be learned, nine different views."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from nx46vx.model.blocks import KPI_EVERY
from nx46vx.model.calibration import random_samples
from nx46vx.model.candidates import TILE, Candidate, Grid
from nx46vx.model.fitplan import FitPlan
from nx46vx.model.neuron import NeuronSpec, prepare_neuron
from nx46vx.model.passes import Passes
from nx46vx.model.samples import FitData
from nx46vx.model.solver import TileSolver, step_together
from nx46vx.runtime.digest import digest_json
from nx46vx.settings import GridSettings

if TYPE_CHECKING:
    from nx46vx.model.passes_gpu import GpuPasses

#: Features in the pool and in a view, and meta-neurons, as in the shipped configurations.
POOL, VIEW, NEURONS = 24, 6, 9


def grid_of_the_product() -> tuple[Grid, GridSettings]:
    """The grid that no configuration may cut: 9 meta-neurons x 5 l1 x 3 l2, 120 iterations."""
    settings = GridSettings()
    return Grid.from_settings(settings), settings


def learnable_data(samples: int, validation: int, *, pool: int = POOL, seed: int = 0) -> FitData:
    """Training and validation samples whose labels follow from features, gradients, a square, and noise."""
    names = tuple(f"random{index:02d}" for index in range(pool))
    weights = np.random.default_rng(46).standard_normal(2 * pool).astype(np.float32)
    cases = []
    for number, size in enumerate((samples, validation), start=2 * seed):
        case = random_samples(size, pool, number)
        noise = np.random.default_rng([number, 46]).standard_normal(size, dtype=np.float32)
        score = weights @ case.features + 0.5 * (case.features[0] ** 2 - 1) + 2 * noise
        y = (score > 0).astype(np.uint8)
        positives = int(y.sum())
        cases.append(replace(case, y=y, counts=(size - positives, positives)))
    return FitData(names, cases[:1], cases[1:])


def different_views(neurons: int, *, pool: int = POOL, width: int = VIEW) -> list[tuple[int, ...]]:
    """Views of as many meta-neurons, no two alike, drawn at random."""
    rng = np.random.default_rng(46)
    every = list(combinations(range(pool), width))
    return [every[index] for index in rng.choice(len(every), neurons, replace=False)]


def neurons_of(data: FitData, neurons: int, *, width: int = VIEW) -> list[NeuronSpec]:
    """Meta-neurons with different views and bootstraps, prepared as a run prepares them."""
    views = different_views(neurons, pool=len(data.pool), width=width)
    return [prepare_neuron(data, 0, k, [data.pool[feature] for feature in view]) for k, view in enumerate(views)]


def plan_of(data: FitData, specs: list[NeuronSpec], run_id: str) -> FitPlan:
    """The plan of a fit on such samples, over the product's grid."""
    grid, settings = grid_of_the_product()
    identity = {name: digest_json(name) for name in ("config", "data", "grid", "features")}
    keys = tuple(digest_json(number) for number in range(10))
    return FitPlan(
        run_id, 0, data.pool, keys[:8], keys[8:], grid.l1, grid.l2, settings.max_iter, "fista", KPI_EVERY, identity,
        tuple(specs),
    )  # fmt: skip


def spread_out(candidates: list[Candidate], count: int) -> list[Candidate]:
    """So many candidates from all over the grid, drawn at random, always the same ones: equal distances would meet
    the same l2 each time."""
    chosen = np.random.default_rng(46).permutation(len(candidates))[:count]
    return [candidates[index] for index in sorted(chosen)]


def iterations_ns(
    passes: Passes | GpuPasses, plan: FitPlan, candidates: list[Candidate], iterations: int
) -> float:  # fmt: skip
    """The engine's iterations for some lanes, from the start: a pass over the samples, and a solver's step.

    Nanoseconds per sample, lane and iteration. ``passes`` knows the plan's neurons.
    """
    grid, neurons = plan.grid, sorted({candidate.meta_neuron for candidate in candidates})
    active = {k: np.zeros(TILE, bool) for k in neurons}
    l1, l2 = (np.ones((len(plan.neurons), TILE)) for _ in range(2))
    for candidate in candidates:
        slot = grid.lane(candidate)
        active[candidate.meta_neuron][slot] = True
        l1[candidate.meta_neuron, slot], l2[candidate.meta_neuron, slot] = candidate.l1, candidate.l2
    solvers = {k: TileSolver(plan.spec(k).columns, l1[k], l2[k], plan.spec(k).curvature, plan.method) for k in neurons}
    started = time.perf_counter()
    for _ in range(iterations):
        gradients = passes.gradients({k: solver.point for k, solver in solvers.items()}, active)
        step_together(solvers, gradients, active)
    seconds = time.perf_counter() - started
    return 1e9 * seconds / (passes.data.train_samples * len(candidates) * iterations)
