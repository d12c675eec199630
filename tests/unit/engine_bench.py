"""A small fit, engines on it, and asking them like a trial does: what the tests of the engine share."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from model_samples import make_data, make_specs

from nx46vx.model.blocks import BlockResult, LaneRequest, start_request
from nx46vx.model.candidates import Candidate, Grid
from nx46vx.model.engine import FitEngine
from nx46vx.model.neuron import NeuronSpec
from nx46vx.model.passes import Passes
from nx46vx.model.samples import FitData

GRID = Grid((1e-3, 3e-2), (1e-3, 1e-2))
FIRST, OTHER = Candidate(0, 1e-3, 1e-2), Candidate(1, 3e-2, 1e-3)

#: Longest that a test waits for another thread, in seconds.
WAIT = 30.0

both = pytest.mark.parametrize("background", [False, True], ids=["inline", "background"])


@cache
def fit_data() -> FitData:
    return make_data((500, 700), 5, intercept=-0.7)


@cache
def fit_specs() -> list[NeuronSpec]:
    return make_specs(fit_data(), neurons=2)


class Engines:
    """Makes engines, and closes them at the end."""

    def __init__(self) -> None:
        self._made: list[FitEngine] = []

    def __call__(self, *, known: int = 2, passes: type[Passes] = Passes, **how: Any) -> FitEngine:
        engine = FitEngine(passes(fit_data(), seed=0), GRID, **how)
        self._made.append(engine)
        for spec in fit_specs()[:known]:
            engine.add_neuron(spec)
        return engine

    def close(self) -> None:
        for engine in self._made:
            engine.close()


def begin(candidate: Candidate, until: int) -> LaneRequest:
    return start_request(candidate, fit_specs()[candidate.meta_neuron], until)


def follow(engine: FitEngine, request: LaneRequest) -> list[BlockResult]:
    """All blocks of a candidate from a request on, asked for like a trial does."""
    blocks: list[BlockResult] = []
    while request.state.iteration < request.until:
        blocks += engine.advance(request)
        request = replace(request, state=blocks[-1].state)
    return blocks


def kpis(blocks: list[BlockResult]) -> list[dict]:
    return [dict(one) for block in blocks for one in block.kpis]


def rows(blocks: list[BlockResult]) -> np.ndarray:
    return np.concatenate([block.iterations for block in blocks])
