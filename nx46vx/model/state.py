"""The state of one lane: all that the solver needs to go on, as arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LaneState:
    """One candidate between two iterations.

    ``theta`` and ``point`` are float64 of length 3F + 1: w, alpha, beta over the standardised columns, then the
    intercept. ``point`` is where the next gradient is taken (equal to ``theta`` without momentum); ``momentum`` is
    the t of FISTA; ``iteration`` counts what was done, over all epochs; ``restarts`` counts momentum resets.
    """

    theta: np.ndarray
    point: np.ndarray
    momentum: float = 1.0
    iteration: int = 0
    restarts: int = 0

    @classmethod
    def start(cls, columns: int) -> LaneState:
        """The state before the first iteration: all zero."""
        return cls(np.zeros(columns), np.zeros(columns))

    def arrays(self) -> dict[str, np.ndarray]:
        """As arrays for a checkpoint's payload; ``from_arrays`` gives the same bits back."""
        return {
            "theta": np.ascontiguousarray(self.theta, np.float64),
            "point": np.ascontiguousarray(self.point, np.float64),
            "momentum": np.array([self.momentum], np.float64),
            "counters": np.array([self.iteration, self.restarts], np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> LaneState:
        iteration, restarts = (int(value) for value in arrays["counters"])
        return cls(arrays["theta"].copy(), arrays["point"].copy(), float(arrays["momentum"][0]), iteration, restarts)

    @property
    def digest(self) -> str:
        """SHA-512 (hex) over the exact bits."""
        digest = hashlib.sha512()
        for name, array in sorted(self.arrays().items()):
            digest.update(name.encode() + array.tobytes())
        return digest.hexdigest()
