"""How much of the fit is committed, counted from the store alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nx46vx.model.fitplan import FitPlan
from nx46vx.pipeline.decisions import Decisions
from nx46vx.pipeline.planshape import fit_of, load_plan
from nx46vx.pipeline.session import Session
from nx46vx.runtime.progress import PHASES, TrainCounts, global_value, open_ended_targets
from nx46vx.runtime.sink import NullSink


@dataclass(frozen=True)
class Committed:
    """What the newest valid checkpoint of each candidate vouches for: iterations, and the best objective of all."""

    iterations: dict[str, int]
    best: dict[str, Any] | None = None  # candidate_id, objective

    @property
    def total(self) -> int:
        return sum(self.iterations.values())


def read_committed(session: Session, plan: FitPlan | None) -> Committed:
    """Read the store; nothing is committed before the fit is frozen."""
    if plan is None:
        return Committed({})
    store = session.store(plan)
    done, best = {}, None
    for candidate in plan.candidates:
        name = candidate.candidate_id
        checkpoint = store.latest(name, sink=NullSink())
        done[name] = 0 if checkpoint is None else int(checkpoint.manifest["model_state"]["iterations"])
        objective = None if checkpoint is None else checkpoint.manifest["best_metrics"].get("objective")
        if isinstance(objective, float) and math.isfinite(objective):
            best = min(best or (objective, name), (objective, name))
    return Committed(done, {"candidate_id": best[1], "objective": best[0]} if best else None)


def read_planned(session: Session) -> tuple[FitPlan | None, dict[str, float] | None]:
    """What ``plan.json`` holds: the fit, once it is frozen, and the estimate, if ``nx46vx plan`` made one."""
    value = load_plan(session.paths.plan)
    return fit_of(value, session.paths.plan), value.get("estimate")


def train_counts(session: Session, plan: FitPlan, done: Mapping[str, int]) -> TrainCounts:
    """The figures behind P_train_fit, from iterations per candidate."""
    settings = session.settings
    decisions = Decisions(session.paths.decisions)
    grid = settings.grid.meta_neurons
    per_neuron = len(plan.l1) * len(plan.l2)
    epochs = max(max(done.values(), default=0) - 1, 0) // plan.max_iter + 1
    grid_iterations, grown_iterations = [0] * epochs, [0] * epochs
    for candidate in plan.candidates:
        iterations = done.get(candidate.candidate_id, 0)
        into = grid_iterations if candidate.meta_neuron < grid else grown_iterations
        for epoch in range(epochs):
            into[epoch] += min(max(iterations - epoch * plan.max_iter, 0), plan.max_iter)
    last = decisions.get("growth", len(plan.neurons))
    targets, decided = [settings.epochs.supervised_epochs], True
    if not settings.epochs.supervised_epochs:
        recorded = (decisions.get("epoch_best", epoch) for epoch in itertools.count())
        best = [float(value) for value in itertools.takewhile(lambda value: value is not None, recorded)]
        targets, decided = open_ended_targets(
            best, settings.epochs.convergence_min_delta, settings.epochs.convergence_patience
        )
    return TrainCounts(
        max_iter=plan.max_iter,
        grid=grid * per_neuron,
        grid_iterations=tuple(grid_iterations),
        grown=(len(plan.neurons) - grid) * per_neuron,
        grown_iterations=tuple(grown_iterations),
        growable=max(settings.growth.max_meta_neurons - grid, 0) * per_neuron if settings.growth.enabled else 0,
        growth_over=last is not None and not last["grow"],
        target=targets[-1],
        past_targets=tuple(targets[:-1]),
        undecided=not decided,
    )


def recomputed_value(session: Session, shares: Mapping[str, float], train_share: float) -> float:
    """``global_progress_reel`` anew: the recorded weights, P_train_fit from the store, other phases as given."""
    weights = Decisions(session.paths.decisions).get("progress", "weights")
    return global_value(weights, {phase: shares.get(phase, 0.0) for phase in PHASES} | {"train_fit": train_share})


def candidates_done(plan: FitPlan, done: Mapping[str, int]) -> int:
    """Candidates at the end of the epoch that the search is in."""
    end = max(-(-max(done.values(), default=0) // plan.max_iter), 1) * plan.max_iter
    return sum(done.get(candidate.candidate_id, 0) >= end for candidate in plan.candidates)


def first_unfinished(plan: FitPlan, done: Mapping[str, int]) -> tuple[int, int, int]:
    """The cursor that is shown: (epoch, candidate index, iteration) of the first candidate that lags behind."""
    iterations = [done.get(candidate.candidate_id, 0) for candidate in plan.candidates]
    epoch = min(iterations, default=0) // plan.max_iter
    for index, count in enumerate(iterations):
        if count < (epoch + 1) * plan.max_iter:
            return epoch, index, max(count - epoch * plan.max_iter, 0)
    return epoch, 0, 0
