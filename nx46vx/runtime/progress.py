"""Global progress: a weighted sum over phases that counts committed work only and never goes back.

    global_progress_reel = sum_i W_i P_i        over discovery, load, train_data, train_fit, segment, package
    P_train_fit = (epochs completed + iterations committed / (max_iter * candidates)) / effective epoch target

In the first epoch a share is reserved for growth: meta-neurons that are added fill it, and a decision not to grow
completes it, so that growth never makes the value fall. The target of an open-ended run may be set anew at an epoch's
end; P then stays where it was until the formula passes it, and reaches 1 only once the end is decided.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
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
    add (0: none); ``growth_over``: the decision not to grow (further) was taken; ``target``: effective epoch target;
    ``past_targets``: the targets under which the first, second, ... epoch was completed, where there were others;
    ``undecided``: whether further epochs may follow the target's.
    """

    max_iter: int
    grid: int
    grid_iterations: tuple[int, ...]  # committed in each epoch by the grid's candidates
    grown: int
    grown_iterations: tuple[int, ...]  # likewise by grown candidates
    growable: int
    growth_over: bool
    target: int
    past_targets: tuple[int, ...] = ()
    undecided: bool = False

    @property
    def share(self) -> float:
        """P_train_fit, 0 to 1."""
        target = max(self.target, 1)
        reached = [self._epochs / target, *(epochs / past for epochs, past in enumerate(self.past_targets, start=1))]
        last_iteration = 1.0 / (self.max_iter * (self.grid + self.grown) * target)
        return min(max(reached), 1.0 - last_iteration if self.undecided else 1.0)

    @property
    def _epochs(self) -> float:
        """Epochs completed, and the share of the one that is not."""
        done = 0.0
        for epoch, iterations in enumerate(self.grid_iterations):
            grown = self.grown_iterations[epoch]
            if epoch == 0 and self.growable:
                first = iterations / (self.max_iter * self.grid)
                growth = 1.0 if self.growth_over else grown / (self.max_iter * self.growable)
                done += (1 - GROWTH_SHARE) * first + GROWTH_SHARE * growth
            else:
                done += (iterations + grown) / (self.max_iter * (self.grid + self.grown))
        return done


def weights_from(costs: Mapping[str, float] | None) -> dict[str, float]:
    """Weights that add up to 1, from seconds per phase; the shipped ones if any phase was never measured."""
    if costs is None or any(costs.get(phase, 0.0) <= 0.0 for phase in PHASES):
        return dict(DEFAULT_WEIGHTS)
    total = sum(costs[phase] for phase in PHASES)
    return {phase: costs[phase] / total for phase in PHASES}


def quiet_epochs(best: Sequence[float], min_delta: float) -> int:
    """How many of the last epochs, in a row, improved the best objective by less than ``min_delta``."""
    quiet = 0
    for epoch in range(1, len(best)):
        quiet = quiet + 1 if min(best[:epoch]) - best[epoch] < min_delta else 0
    return quiet


def open_ended_targets(best: Sequence[float], min_delta: float, patience: int) -> tuple[list[int], bool]:
    """Epoch targets of a run that goes on until ``patience`` epochs were quiet, and whether that is so by now.

    ``best``: the best objective of each completed epoch. The first target is the one at the start, each other one was
    set at the end of an epoch: the earliest at which the run can end.
    """
    targets = [OPEN_ENDED_TARGET]
    for epochs in range(1, len(best) + 1):
        missing = patience - quiet_epochs(best[:epochs], min_delta)
        if missing <= 0:
            return targets, True
        targets.append(max(OPEN_ENDED_TARGET, epochs + missing))
    return targets, False


def global_value(weights: Mapping[str, float], shares: Mapping[str, float]) -> float:
    """``global_progress_reel`` in percent; 100 only when every phase is complete."""
    if all(shares[phase] == 1.0 for phase in PHASES):
        return 100.0
    return min(100.0 * sum(weights[phase] * shares[phase] for phase in PHASES), 99.9)


@dataclass
class Progress:
    """The shown value. Thread-safe.

    ``floor`` and ``earlier``: value and shares that an earlier session showed last. ``ended``: when phases became
    complete in this session, on ``clock``; ``began`` is its start. ``left_out``: seconds of optional work between the
    fit and the segmentation, which are no phase's.
    """

    weights: Mapping[str, float]
    floor: float = 0.0
    shares: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    earlier: Mapping[str, float] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    began: float = field(init=False)
    ended: dict[str, float] = field(init=False, default_factory=dict)
    left_out: float = field(init=False, default=0.0)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.began = self.clock()

    def set(self, phase: str, share: float) -> None:
        """Raise a phase's share; a smaller value than before is ignored."""
        with self._lock:
            self.shares[phase] = max(self.shares[phase], min(max(share, 0.0), 1.0))
            if self.shares[phase] == 1.0:
                self.ended.setdefault(phase, self.clock())

    def phase_seconds(self) -> dict[str, float]:
        """Seconds that each complete phase took in this session, from the end of the one before it."""
        with self._lock:
            ends = [(phase, self.ended[phase]) for phase in PHASES if phase in self.ended]
        starts = [self.began, *(end for _, end in ends)]
        seconds = {phase: end - start for (phase, end), start in zip(ends, starts, strict=False)}
        return {phase: took - self.not_of(phase) for phase, took in seconds.items()}

    def not_of(self, phase: str) -> float:
        """Seconds since the phase before it ended that are not its own."""
        return self.left_out if phase == "segment" else 0.0

    @property
    def value(self) -> float:
        """Percent, 0 to 100; never less than it was. 100 only when every phase is complete."""
        return self.shown()[0]

    def shown(self) -> tuple[float, dict[str, float]]:
        """``value`` and the shares behind it, of one moment."""
        with self._lock:
            self.floor = max(self.floor, global_value(self.weights, self.shares))
            return self.floor, dict(self.shares)


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
