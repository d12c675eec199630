"""Growth of the ensemble: figures, decision, record, and the new meta-neuron."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nx46vx.logs import say
from nx46vx.model.candidates import Candidate
from nx46vx.model.ensemble import Member, combine
from nx46vx.model.fitplan import FitPlan
from nx46vx.model.growth import GrowthDecision, GrowthFigures, decide_growth, grouped_error
from nx46vx.model.metrics import cross_entropy
from nx46vx.model.neuron import NeuronSpec, prepare_neuron
from nx46vx.model.samples import FitData
from nx46vx.model.views import draw_views, relevance_gram
from nx46vx.pipeline.best import Records, best_members, evaluate
from nx46vx.pipeline.dataset import Cases
from nx46vx.pipeline.decisions import Decisions
from nx46vx.pipeline.planfile import write_plan
from nx46vx.pipeline.session import Session


@dataclass
class Grower:
    """Asked after each complete round of the search. ``plan`` is the fit with all neurons there are by now."""

    session: Session
    cases: Cases
    data: FitData
    plan: FitPlan
    decisions: Decisions
    undecided: bool = False

    def __call__(self, records: Mapping[str, Mapping[str, Any]]) -> tuple[NeuronSpec, list[Candidate]] | None:
        """One more meta-neuron and its candidates, or None.

        A session that is being stopped decides nothing: ``undecided`` is set, and the next session decides.
        """
        neurons = len(self.plan.neurons)
        recorded = self.decisions.get("growth", neurons)
        if recorded is None:
            decision = self._decide(records, neurons)
            if self.session.governor.stopping:
                self.undecided = True
                return None
            self.decisions.put("growth", neurons, decision.to_json())
        else:
            decision = GrowthDecision.from_json(recorded)
        self.session.log.emit("AUTO_TUNE_POLICY_DECISION", policy="growth", replayed=recorded is not None,
                              **decision.to_json())  # fmt: skip
        if not decision.grow:
            return None
        spec = self._prepare(neurons)
        self.plan = self.plan.grown(spec)
        write_plan(self.session, self.cases, self.plan)
        self.session.log.emit("AUTO_TUNE_PARAM_UPDATE", param="meta_neurons", old=neurons, new=neurons + 1)
        say(f"search: grows to {neurons + 1} meta-neurons ({decision.reason})")
        return spec, self.plan.grid.candidates([neurons])

    def _decide(self, records: Records, neurons: int) -> GrowthDecision:
        settings = self.session.settings.growth
        figures = GrowthFigures(0.0, 0.0, 0.0, 0.0)
        if settings.enabled and neurons < settings.max_meta_neurons:
            figures = self._figures(records)
        return decide_growth(settings, neurons, figures, time_allows=self._time_allows())

    def _time_allows(self) -> bool:
        governor, candidates = self.session.governor, len(self.plan.l1) * len(self.plan.l2)
        needed = (self.session.costs.p95("candidate") or 0.0) * candidates
        return "no_further_growth" not in governor.actions and not governor.draining and needed < governor.until_stop

    def _figures(self, records: Records) -> GrowthFigures:
        store = self.session.store(self.plan)
        return growth_figures(best_members(self.plan, records, store, self.session.log), self.data)

    def _prepare(self, neuron: int) -> NeuronSpec:
        settings = self.session.settings
        views = draw_views(
            relevance_gram(self.data), self.data.pool, seed=settings.seed, width=settings.grid.features_per_neuron,
            meta_neurons=range(neuron + 1),
        )  # fmt: skip
        return prepare_neuron(self.data, settings.seed, neuron, views[neuron])


def growth_figures(members: Sequence[Member], data: FitData) -> GrowthFigures:
    """What the last of some members gains the ensemble, and how far training is better than validation."""
    validation, training = (evaluate(members, data.pool, cases) for cases in (data.validation, data.train))
    full, without = combine(validation.logits, validation.y), combine(validation.logits[:-1], validation.y)
    loss = cross_entropy(full.logits(validation.logits), validation.y)
    loss_without = cross_entropy(without.logits(validation.logits[:-1]), validation.y)
    gain, gain_se = grouped_error(loss_without - loss, validation.groups)
    validation_loss, gap_se = grouped_error(loss, validation.groups)
    share, natural = float(training.y.mean()), data.natural_prior
    weights = np.where(training.y == 1, natural / share, (1 - natural) / (1 - share))
    training_loss, _ = grouped_error(cross_entropy(full.logits(training.logits), training.y), training.groups, weights)
    return GrowthFigures(gain, gain_se, validation_loss - training_loss, gap_se)
