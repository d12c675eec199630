"""The engine's own fit of some candidates: how long it is busy, and where each candidate ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nx46vx.model.candidates import Candidate
from nx46vx.model.factory import build_engine
from nx46vx.model.fitplan import FitPlan
from nx46vx.model.samples import FitData


def fitted(
    data: FitData, plan: FitPlan, threads: int, candidates: Sequence[Candidate] | None = None
) -> tuple[float, float, dict[Candidate, np.ndarray]]:
    """Seconds that the engine takes for all iterations of the candidates (the whole grid unless given), seconds for
    their figures at every tenth one besides, and the weights (3F + 1,) of each."""
    engine = build_engine(plan, data, threads=threads)
    requests = [
        plan.start(candidate, plan.max_iter) for candidate in (plan.candidates if candidates is None else candidates)
    ]
    engine.expect(requests)
    thetas = {}
    for request in requests:
        state = request.state
        while state.iteration < request.until:
            state = engine.advance(type(request)(request.candidate, state, request.until))[-1].state
        thetas[request.candidate] = state.theta
    stats = engine.stats()
    engine.close()
    return stats["busy_seconds"] - stats["figures_seconds"], stats["figures_seconds"], thetas
