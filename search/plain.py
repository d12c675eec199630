"""Ray Tune as one would use it at first, as a yardstick: a trial is a process that computes its candidate by itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nx46vx.model.blocks import LaneRequest
from nx46vx.model.candidates import Candidate
from search.cluster import ray_session


def plain_search_seconds(candidates: Sequence[Candidate], run: Path, cache: Path, at_once: int) -> float:
    """Wall seconds of a search over some candidates of a frozen fit, with a Ray of its own that is up before."""
    from ray import tune

    def trial(config: dict[str, Any]) -> None:
        from nx46vx.model.factory import build_engine
        from nx46vx.model.fitplan import load_fit_plan, open_fit_data
        from nx46vx.runtime.sink import NullSink

        plan, candidate = load_fit_plan(run), Candidate.from_json(config["candidate"])
        engine = build_engine(plan, open_fit_data(plan, cache, NullSink()), threads=1)
        state, objective = plan.start(candidate, plan.max_iter).state, float("nan")
        while state.iteration < plan.max_iter:
            block = engine.advance(LaneRequest(candidate, state, plan.max_iter))[-1]
            state, objective = block.state, float(block.kpis[-1]["objective"])
        engine.close()
        tune.report({"objective": objective})

    with ray_session(None, ()):
        started = time.perf_counter()
        results = tune.Tuner(
            tune.with_resources(trial, {"cpu": 1}),
            param_space={"candidate": tune.grid_search([candidate.to_json() for candidate in candidates])},
            tune_config=tune.TuneConfig(metric="objective", mode="min", max_concurrent_trials=at_once),
            run_config=tune.RunConfig(name="plain", storage_path=str(run / "plain"), verbose=0),
        ).fit()
        seconds = time.perf_counter() - started
    if results.errors or len(results) != len(candidates):
        raise RuntimeError(f"the plain search failed: {results.errors[:1]}")
    return seconds
