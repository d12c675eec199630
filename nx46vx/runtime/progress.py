"""Global progress: a weighted sum over phases that counts committed work only and never goes back.

    global_progress_reel = sum_i W_i P_i        over discovery, load, train_data, train_fit, segment, package
    P_train_fit = (sum over epochs of the share of iterations committed) / effective epoch target

In the first epoch a share is reserved for growth: meta-neurons that are added fill it, and a decision not to grow
completes it, so that growth never makes the value fall.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

PHASES = ("discovery", "load", "train_data", "train_fit", "segment", "package")

#: Measured on the shipped small run; replaced by an earlier run's own costs where there are any.
DEFAULT_WEIGHTS = {
    "discovery": 0.03, "load": 0.01, "train_data": 0.12, "train_fit": 0.72, "segment": 0.10, "package": 0.02,
}  # fmt: skip

#: Share of the first epoch that is kept for growth, where growth is possible.
GROWTH_SHARE = 0.2

#: Epochs that an open-ended run expects at its start.
OPEN_ENDED_TARGET = 2


@dataclass(frozen=True)
class TrainCounts:
    """Committed work of the fit. ``iterations`` is the sum over candidates, each counted up to its epochs' ends.

    ``grid``: candidates of the grid; ``grown``: candidates added by growth so far; ``growable``: most that growth could
    add (0: none); ``growth_over``: the decision not to grow (further) was taken; ``target``: effective epoch target.
    """

    max_iter: int
    grid: int
    grid_iterations: tuple[int, ...]  # committed in each epoch by the grid's candidates
    grown: int
    grown_iterations: tuple[int, ...]  # likewise by grown candidates
    growable: int
    growth_over: bool
    target: int

    @property
    def share(self) -> float:
        """P_train_fit, 0 to 1."""
        done = 0.0
        for epoch, iterations in enumerate(self.grid_iterations):
            grown = self.grown_iterations[epoch]
            if epoch == 0 and self.growable:
                first = iterations / (self.max_iter * self.grid)
                growth = 1.0 if self.growth_over else grown / (self.max_iter * self.growable)
                done += (1 - GROWTH_SHARE) * first + GROWTH_SHARE * growth
            else:
                done += (iterations + grown) / (self.max_iter * (self.grid + self.grown))
        return min(done / max(self.target, 1), 1.0)


def weights_from(costs: Mapping[str, float] | None) -> dict[str, float]:
    """Weights that add up to 1, from seconds per phase; the shipped ones if any phase was never measured."""
    if costs is None or any(costs.get(phase, 0.0) <= 0.0 for phase in PHASES):
        return dict(DEFAULT_WEIGHTS)
    total = sum(costs[phase] for phase in PHASES)
    return {phase: costs[phase] / total for phase in PHASES}


@dataclass
class Progress:
    """The shown value. Thread-safe; ``floor`` is what an earlier session showed last."""

    weights: Mapping[str, float]
    floor: float = 0.0
    shares: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def set(self, phase: str, share: float) -> None:
        """Raise a phase's share; a smaller value than before is ignored."""
        with self._lock:
            self.shares[phase] = max(self.shares[phase], min(max(share, 0.0), 1.0))

    @property
    def value(self) -> float:
        """Percent, 0 to 100; never less than it was. 100 only when every phase is complete."""
        with self._lock:
            raw = 100.0 * sum(self.weights[phase] * self.shares[phase] for phase in PHASES)
            whole = all(self.shares[phase] == 1.0 for phase in PHASES)
            self.floor = max(self.floor, 100.0 if whole else min(raw, 99.9))
            return self.floor


class StallWatch:
    """Notices when a value has not moved for some time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._value: object = None
        self._since: float | None = None
        self._said = False

    def stalled(self, value: object, now: float) -> float | None:
        """Seconds without a change, once per stall; None while things move."""
        if value != self._value or self._since is None:
            self._value, self._since, self._said = value, now, False
            return None
        quiet = now - self._since
        if quiet < self._seconds or self._said:
            return None
        self._said = True
        return quiet
