"""What one would use instead of the search: seconds for the whole grid, scaled from what is really run of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nx46vx.bench.designs import Design
from nx46vx.bench.fits import fitted
from nx46vx.bench.lanes import spread_out
from nx46vx.bench.serial import serial_ns
from nx46vx.bench.solvers import TOLERANCE, need_peers, saga, search_seconds, seconds_to_reach
from nx46vx.bench.stage import Stage
from nx46vx.model.candidates import Candidate
from nx46vx.model.samples import FitData
from search.resources import usable_cpus

#: Samples, and iterations over them, that the serial pattern's rate is taken on.
SERIAL_SAMPLES, SERIAL_ITERATIONS = 400_000, 10


def plain_seconds(stage: Stage, trials: int) -> float:
    """Plain Ray Tune, one process for each candidate, from ``trials`` of them."""
    from search.plain import plain_search_seconds

    chosen = spread_out(stage.plan.candidates, trials)
    seconds = plain_search_seconds(chosen, stage.root, stage.cache, at_once=2)
    return seconds * len(stage.plan.candidates) / len(chosen)


def serial_nanoseconds(stage: Stage) -> float:
    """The serial pattern's cost per sample and iteration of one candidate, on the first samples of the stage; the
    better of one and of all BLAS threads."""
    whole, cases, taken = stage.data(), 0, 0
    while taken < SERIAL_SAMPLES and cases < len(whole.train):
        taken += whole.train[cases].y.size
        cases += 1
    data = FitData(whole.pool, whole.train[:cases], whole.validation)
    return min(serial_ns(data, stage.plan, SERIAL_ITERATIONS, threads) for threads in (1, usable_cpus()))


class GridSearch:
    """scikit-learn's ``GridSearchCV(n_jobs=2)`` over SAGA, on some of one meta-neuron's candidates.

    ``passes``: how often SAGA has to pass over the samples until a candidate's objective is at most ours + 0.1 %.

    Raises:
        UsageError: scikit-learn or skglm is not installed.
    """

    def __init__(self, stage: Stage, candidates: int, by_default: int) -> None:
        need_peers()
        data, plan = stage.data(), stage.plan
        self._lanes = len(plan.candidates)
        self._design = Design.of(plan.spec(0), data, plan.seed)
        own = [candidate for candidate in plan.candidates if candidate.meta_neuron == 0]
        self._chosen, self._by_default = spread_out(own, candidates), spread_out(own, by_default)
        *_, thetas = fitted(data, plan, usable_cpus(), self._chosen) if self._chosen else (0.0, 0.0, {})
        self.passes = [self._needed(one, theta) for one, theta in thetas.items()]

    def seconds(self) -> float:
        """Each candidate with the passes that it needs, and no more."""
        return self._scaled(self._chosen, self.passes)

    def default_seconds(self) -> float:
        """With scikit-learn's own settings of when SAGA ends."""
        return self._scaled(self._by_default, None)

    def _needed(self, one: Candidate, theta: np.ndarray) -> int:
        goal = (1 + TOLERANCE) * self._design.objective(theta, one.l1, one.l2)
        return seconds_to_reach(saga, self._design, one.l1, one.l2, goal)[1]

    def _scaled(self, chosen: Sequence[Candidate], passes: Sequence[int] | None) -> float:
        seconds = search_seconds(self._design, [(one.l1, one.l2) for one in chosen], passes)
        return seconds * self._lanes / len(chosen)
