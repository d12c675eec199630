"""Builds an engine from a fit plan."""

from __future__ import annotations

from nx46vx.model.engine import FitEngine
from nx46vx.model.fitplan import FitPlan
from nx46vx.model.options import EngineOptions
from nx46vx.model.passes import Passes
from nx46vx.model.samples import FitData


def build_engine(
    plan: FitPlan, data: FitData, *, device: str = "cpu", threads: int = 1, background: bool = False,
    options: EngineOptions | None = None,
) -> FitEngine:  # fmt: skip
    """An engine that knows all neurons of the plan and has no lanes yet."""
    passes = Passes(data, seed=plan.seed, device=device, threads=threads, options=options)
    engine = FitEngine(passes, plan.grid, method=plan.method, block=plan.block, background=background)
    for spec in plan.neurons:
        engine.add_neuron(spec)
    return engine
