"""One neuron, the ensemble of nine, the grown ensemble, and boosted trees on the same samples of generated scrolls."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from nx46vx.bench.judges import average_precision, boosted_trees, fit_members
from nx46vx.bench.scroll_data import scroll_case
from nx46vx.features.pool import feature_names
from nx46vx.features.spread import usable_cpus
from nx46vx.model.candidates import Grid
from nx46vx.model.ensemble import Member, combine
from nx46vx.model.growth import decide_growth
from nx46vx.model.samples import FitData, Samples
from nx46vx.model.views import draw_views, relevance_gram
from nx46vx.pipeline.best import evaluate
from nx46vx.pipeline.growing import growth_figures
from nx46vx.settings import GridSettings, GrowthSettings


@dataclass(frozen=True)
class Split:
    """Scrolls of one seed by what they are for, samples of each, and the edge of their volumes."""

    fitted: int = 6
    validated: int = 3
    held_out: int = 3
    samples: int = 40_000
    edge: int = 96

    def cases(self, seed: int) -> tuple[FitData, list[Samples]]:
        """The seed's own scrolls: data to fit and choose on, and held-out samples."""
        total = self.fitted + self.validated + self.held_out

        def make(number: int) -> Samples:
            return scroll_case(100 * (seed + 1) + number, self.samples, number < self.fitted, self.edge)

        with ThreadPoolExecutor(usable_cpus()) as threads:
            made = list(threads.map(make, range(total)))
        chosen_on = made[self.fitted : self.fitted + self.validated]
        return FitData(feature_names(), made[: self.fitted], chosen_on), made[self.fitted + self.validated :]


@dataclass(frozen=True)
class Compared:
    """Average precision on held-out scrolls. ``single`` is the grid's best candidate by validation, ``hindsight`` the
    meta-neuron whose best candidate does best on the held-out scrolls; ``active`` members have a weight."""

    seed: int
    single: float
    hindsight: float
    nine: float
    grown: float
    trees: float
    neurons: int
    active: int
    grown_active: int
    reason: str

    @property
    def gain(self) -> float:
        """What the ensemble of nine has more than the single neuron, relative to that."""
        return self.nine / self.single - 1

    @property
    def gain_over_hindsight(self) -> float:
        return self.nine / self.hindsight - 1

    @property
    def ratio(self) -> float:
        """The grown ensemble over the boosted trees."""
        return self.grown / self.trees

    def to_json(self) -> dict[str, Any]:
        return {
            **vars(self), "gain": self.gain, "gain_over_hindsight": self.gain_over_hindsight, "ratio": self.ratio,
        }  # fmt: skip


def compared(seed: int, split: Split) -> Compared:
    """The whole grid, its growth by the product's rule, and the trees, on the scrolls of one seed."""
    data, held_out = split.cases(seed)
    settings, growth, gram = GridSettings(), GrowthSettings(), relevance_gram(data)

    def fitted(neurons: range) -> list[tuple[Member, float]]:
        views = draw_views(
            gram, data.pool, seed=seed, width=settings.features_per_neuron, meta_neurons=range(neurons.stop)
        )
        wanted = {k: views[k] for k in neurons}
        return fit_members(data, wanted, seed=seed, grid=Grid.from_settings(settings), iterations=settings.max_iter)

    first = fitted(range(settings.meta_neurons))
    members = [member for member, _ in first]
    while (decision := decide_growth(growth, len(members), growth_figures(members, data), True)).grow:
        members += [member for member, _ in fitted(range(len(members), len(members) + 1))]
    truth = evaluate(members, data.pool, held_out)
    scores = [average_precision(truth.y, logits) for logits in truth.logits]
    best = min(range(len(first)), key=lambda k: first[k][1])
    nine, nine_active = _ensemble(members[: len(first)], data, held_out)
    grown, grown_active = _ensemble(members, data, held_out)
    trees = boosted_trees(data, data.pool)
    y, seen = (np.concatenate(parts, axis=-1) for parts in zip(*((c.y, c.features) for c in held_out), strict=True))
    return Compared(
        seed, scores[best], max(scores[: len(first)]), nine, grown, average_precision(y, trees(seen)), len(members),
        nine_active, grown_active, decision.reason,
    )  # fmt: skip


def _ensemble(members: Sequence[Member], data: FitData, held_out: Sequence[Samples]) -> tuple[float, int]:
    """Average precision of members combined on validation samples, and how many have a weight."""
    chosen_on, truth = evaluate(members, data.pool, data.validation), evaluate(members, data.pool, held_out)
    combination = combine(chosen_on.logits, chosen_on.y)
    active = int(np.count_nonzero(combination.weights))
    return average_precision(truth.y, combination.logits(truth.logits)), active
