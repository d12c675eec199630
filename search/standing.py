"""Where the store says that candidates stand, as requests to an engine."""

from __future__ import annotations

from pathlib import Path

from nx46vx.model.blocks import LaneRequest
from nx46vx.model.fitplan import FitPlan
from nx46vx.runtime.sink import NullSink
from trainables.task import open_store, state_of


def standing_requests(plan: FitPlan, run: Path, until: int, owned: tuple[int, int]) -> list[LaneRequest]:
    """The candidates of every so-manieth meta-neuron (``owned``: number of n) that are not at ``until``."""
    number, engines = owned
    store, requests = open_store(plan, run, 0), []
    for candidate in plan.candidates:
        if candidate.meta_neuron % engines != number:
            continue
        checkpoint = store.latest(candidate.candidate_id, sink=NullSink())
        request = (
            plan.start(candidate, until) if checkpoint is None else LaneRequest(candidate, state_of(checkpoint), until)
        )
        if request.state.iteration < until:
            requests.append(request)
    return requests
