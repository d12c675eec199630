"""How much of the fit is committed, counted from the store alone."""

from __future__ import annotations

from nx46vx.model.fitplan import FitPlan
from nx46vx.pipeline.decisions import Decisions
from nx46vx.pipeline.session import Session
from nx46vx.runtime.progress import OPEN_ENDED_TARGET, TrainCounts
from nx46vx.runtime.sink import NullSink


def committed_iterations(session: Session, plan: FitPlan) -> dict[str, int]:
    """Iterations that the newest valid checkpoint of each candidate vouches for."""
    store = session.store(plan)
    done = {}
    for candidate in plan.candidates:
        checkpoint = store.latest(candidate.candidate_id, sink=NullSink())
        done[candidate.candidate_id] = (
            0 if checkpoint is None else int(checkpoint.manifest["model_state"]["iterations"])
        )
    return done


def train_counts(session: Session, plan: FitPlan, done: dict[str, int]) -> TrainCounts:
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
    return TrainCounts(
        max_iter=plan.max_iter,
        grid=grid * per_neuron,
        grid_iterations=tuple(grid_iterations),
        grown=(len(plan.neurons) - grid) * per_neuron,
        grown_iterations=tuple(grown_iterations),
        growable=max(settings.growth.max_meta_neurons - grid, 0) * per_neuron if settings.growth.enabled else 0,
        growth_over=last is not None and not last["grow"],
        target=settings.epochs.supervised_epochs or int(decisions.get("epoch_target", "now") or OPEN_ENDED_TARGET),
    )


def first_unfinished(plan: FitPlan, done: dict[str, int]) -> tuple[int, int, int]:
    """The cursor that is shown: (epoch, candidate index, iteration) of the first candidate that lags behind."""
    least = min(done.values(), default=0)
    epoch = least // plan.max_iter
    for index, candidate in enumerate(plan.candidates):
        iterations = done.get(candidate.candidate_id, 0)
        if iterations < (epoch + 1) * plan.max_iter:
            return epoch, index, max(iterations - epoch * plan.max_iter, 0)
    return epoch, 0, 0
