"""Which cases an epoch visits, in which order: drawn from generators whose states go into every checkpoint."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nx46vx.student.patches import Visit


@dataclass
class EpochOrder:
    """The visits of the epoch that is under way, and what is left of the present pass over the cases."""

    cases: int
    rng: random.Random
    seeds: np.random.Generator
    visits: list[int] = field(default_factory=list)
    rest: list[int] = field(default_factory=list)
    seed: int = 0

    def begin(self, visits: int) -> None:
        """Draw the visits of a new epoch: every case once before any comes again."""
        self.seed = int(self.seeds.integers(2**62))
        self.visits = []
        while len(self.visits) < visits:
            if not self.rest:
                self.rest = list(range(self.cases))
                self.rng.shuffle(self.rest)
            self.visits.append(self.rest.pop(0))

    def groups(self, size: int, first: int = 0) -> Iterator[list[Visit]]:
        """The visits in groups of ``size``, from group number ``first`` on."""
        for start in range(first * size, len(self.visits), size):
            yield [Visit(case, self.seed, start + k) for k, case in enumerate(self.visits[start : start + size])]

    def to_json(self) -> dict[str, Any]:
        return {"visits": self.visits, "rest": self.rest, "seed": self.seed}

    def load(self, value: Mapping[str, Any]) -> None:
        self.visits, self.rest = [int(v) for v in value["visits"]], [int(v) for v in value["rest"]]
        self.seed = int(value["seed"])
