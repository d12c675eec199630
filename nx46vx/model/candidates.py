"""Candidates: the (meta-neuron, l1, l2) triples of the grid, their names and their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nx46vx.settings import GridSettings

#: Lanes of one tile: the 15 candidates of a meta-neuron and padding. Below 15 columns a BLAS product may give a
#: column other bits, so a tile is always this wide.
TILE = 16


@dataclass(frozen=True, order=True)
class Candidate:
    """One point of the grid. Sorts by meta-neuron, then l1, then l2."""

    meta_neuron: int
    l1: float
    l2: float

    @property
    def candidate_id(self) -> str:
        """Readable, stable, usable as a file name: ``k003-l1_0.001-l2_0.01``."""
        return f"k{self.meta_neuron:03d}-l1_{self.l1!r}-l2_{self.l2!r}"

    def to_json(self) -> dict[str, Any]:
        return {"candidate_id": self.candidate_id, "meta_neuron": self.meta_neuron, "l1": self.l1, "l2": self.l2}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Candidate:
        return cls(int(value["meta_neuron"]), float(value["l1"]), float(value["l2"]))


@dataclass(frozen=True)
class Grid:
    """The penalties of the grid; every meta-neuron has one candidate, and one lane, for each pair of them."""

    l1: tuple[float, ...]
    l2: tuple[float, ...]

    @classmethod
    def from_settings(cls, settings: GridSettings) -> Grid:
        return cls(tuple(sorted(settings.l1)), tuple(sorted(settings.l2)))

    def candidates(self, meta_neurons: Iterable[int]) -> list[Candidate]:
        """All candidates of some meta-neurons, in the grid's order."""
        return [Candidate(k, l1, l2) for k in meta_neurons for l1 in self.l1 for l2 in self.l2]

    def lane(self, candidate: Candidate) -> int:
        """The candidate's column in its meta-neuron's tile: always the same one."""
        return self.l1.index(candidate.l1) * len(self.l2) + self.l2.index(candidate.l2)

    def index(self, candidate: Candidate) -> int:
        """The candidate's place in the grid, counted from 0."""
        return candidate.meta_neuron * len(self.l1) * len(self.l2) + self.lane(candidate)
