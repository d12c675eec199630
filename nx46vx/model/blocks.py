"""What passes between a trial and the engine: a request for iterations, and the block that answers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nx46vx.model.candidates import Candidate
from nx46vx.model.neuron import NeuronSpec
from nx46vx.model.state import LaneState

#: Iterations between two KPI evaluations at the iterate.
KPI_EVERY = 10


@dataclass(frozen=True)
class LaneRequest:
    """Advance a candidate from ``state``; ``until`` is the iteration up to which it will want to go."""

    candidate: Candidate
    state: LaneState
    until: int


@dataclass(frozen=True)
class BlockResult:
    """Some iterations of one candidate.

    ``iterations`` (n, len(ITERATION_FIELDS)) float64; ``kpis`` one mapping per evaluation, at every tenth iteration
    and at ``until``; ``seconds`` is the candidate's share of the engine's time.
    """

    candidate: Candidate
    before: str
    state: LaneState
    iterations: np.ndarray
    kpis: tuple[Mapping[str, Any], ...]
    seconds: float


class EngineClient(Protocol):
    """How a trial reaches its engine, in the same process or in another."""

    def advance(self, request: LaneRequest) -> list[BlockResult]:
        """At least one block that starts at the request's state, and those after it that are already there."""
        ...


def start_request(candidate: Candidate, spec: NeuronSpec, until: int) -> LaneRequest:
    """The request of a candidate that has not begun."""
    return LaneRequest(candidate, LaneState.start(spec.columns), until)
