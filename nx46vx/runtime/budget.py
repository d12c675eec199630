"""The time governor: when to stop searching so that a submission is always handed in before the session ends.

    |------------------ RUN ------------------|- DRAIN -|-- STOP, FLUSH, PACKAGE --|-- margin --|
    start                                                stop_at                     deadline     end of budget

The time for segmenting and packaging is reserved and cannot be eaten up: 35 % of the budget until it was measured, then
1.5 times what the measured 95th percentiles add up to.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from nx46vx.errors import StoppedError, UsageError
from nx46vx.runtime.costs import CostBook
from nx46vx.runtime.sink import EventSink
from nx46vx.runtime.stop import StopFlag

UNMEASURED_SHARE = 0.35
MEASURED_FACTOR = 1.5
MARGIN_SECONDS = 600.0
MARGIN_SHARE = 0.05
#: After a signal, segmenting and packaging are begun only if they are expected to take no longer.
SIGNAL_GRACE_SECONDS = 60.0
#: An ETA beyond this share of the budget (8 h 15 of 9 h) turns the acceleration on.
ACCELERATE_SHARE = 8.25 / 9

#: What acceleration may do; never the grid, ``max_iter`` or the logs.
ACCELERATIONS = (
    "more_trials_in_flight",
    "no_further_growth",
    "optional_phases_off",
    "test_time_augmentation_off",
    "prefetch",
)


class State(StrEnum):
    """How far the session is; only ever moves on."""

    RUN = "RUN"
    DRAIN = "DRAIN"
    STOP = "STOP"
    FLUSH = "FLUSH"
    PACKAGE = "PACKAGE"


_ORDER = list(State)


@dataclass(frozen=True)
class Work:
    """What is left to do before the submission: kinds in ``CostBook`` and how often each."""

    segment_cases: int
    calibrate_cases: int

    def seconds(self, costs: CostBook) -> float | None:
        """Expected seconds, or None if anything of it was never measured."""
        case, package = costs.p95("segment_case"), costs.p95("package")
        if case is None or package is None:
            return None
        return (costs.p95("ensemble") or 0.0) + case * (self.segment_cases + self.calibrate_cases) + package


class Governor:
    """Watches the clock for one session. Thread-safe.

    Args:
        budget: seconds for the session.
        started: when it began, on ``clock``.
        work: what segmenting and packaging consist of.
        costs: measured so far, also in earlier sessions.
        clock: seconds; survives suspend, cannot be set.
        stop: a signal sets it: then the deadline is now.
        accelerations: those of ``ACCELERATIONS`` that this run has a use for.
    """

    def __init__(
        self, *, budget: float, started: float, work: Work, costs: CostBook, clock: Callable[[], float],
        sink: EventSink, stop: StopFlag, accelerations: Sequence[str] = ACCELERATIONS,
    ) -> None:  # fmt: skip
        if unknown := set(accelerations) - set(ACCELERATIONS):
            raise ValueError(f"no such acceleration: {sorted(unknown)}")
        self._accelerations, self._accelerated = tuple(accelerations), False
        self.budget, self.work, self.costs = budget, work, costs
        self._started, self._clock, self._sink, self._stop = started, clock, sink, stop
        self._lock = threading.RLock()
        self._state = State.RUN
        self._final = False
        self.actions: tuple[str, ...] = ()
        self._first_until_stop = self.until_stop

    @property
    def elapsed(self) -> float:
        """Seconds since the session began."""
        return self._clock() - self._started

    @property
    def remaining(self) -> float:
        """Seconds to the end of the budget; negative once it is over."""
        return self.budget - self.elapsed

    @property
    def margin(self) -> float:
        """Seconds before the end of the budget by which everything is over."""
        return margin_of(self.budget, self.costs)

    @property
    def reserve(self) -> float:
        """Seconds kept for segmenting and packaging."""
        measured = self.work.seconds(self.costs)
        return UNMEASURED_SHARE * self.budget if measured is None else MEASURED_FACTOR * measured

    @property
    def until_stop(self) -> float:
        """Seconds that the search may still take; at most 0 once it has to stop."""
        if self._stop():
            return 0.0
        flush = self.costs.p95("flush") or 0.0
        return self.remaining - self.margin - self.reserve - flush

    @property
    def deadline_passed(self) -> bool:
        """Whether only the margin is left: end now, whatever is unfinished."""
        return self.remaining <= self.margin

    @property
    def stopping(self) -> bool:
        """Whether the search has to stop, or has stopped."""
        return self.state not in (State.RUN, State.DRAIN)

    @property
    def draining(self) -> bool:
        """Whether candidates may have been left unstarted or unfinished on purpose."""
        return self.state != State.RUN

    @property
    def reason(self) -> str:
        """Why it stops, in words."""
        return self._stop.reason or "the time budget"

    def check(self) -> None:
        """Between two pieces of work before the fit: end here if the time is up.

        Raises:
            StoppedError: the deadline has come, or a signal.
        """
        if self.stopping:
            raise StoppedError(f"stopped by {self.reason}", fix="run the same command again to continue")

    def may_package(self) -> bool:
        """Whether to segment and package now: always in its reserved time, after a signal only if it is short."""
        if self.deadline_passed:
            return False
        expected = self.work.seconds(self.costs)
        return not self._stop() or expected is None or expected <= SIGNAL_GRACE_SECONDS

    def allows(self, kind: str) -> bool:
        """Whether one more piece of this kind fits before the stop, by its measured 95th percentile."""
        state = self.state
        return state == State.RUN or (state == State.DRAIN and self._needs(kind) < self.until_stop)

    def _needs(self, kind: str) -> float:
        """Seconds that one more piece takes. Where a session is too short for a whole one, a part of it is begun all
        the same: it stops at a checkpoint, and a later session goes on there; else short sessions would never end."""
        whole = self.costs.p95(kind) or 0.0
        return whole if whole < self._first_until_stop else 0.0

    @property
    def state(self) -> State:
        """The state now; entering a new one is an event."""
        with self._lock:
            if self._state in (State.RUN, State.DRAIN):
                left = self.until_stop
                drain = left <= self._needs("candidate")
                self._enter(State.STOP if left <= 0 else State.DRAIN if drain else self._state)
            return self._state

    def enter(self, state: State) -> None:
        """Move on to FLUSH or PACKAGE."""
        with self._lock:
            self._enter(state)

    def accelerate(self, eta: float) -> bool:
        """Turn the acceleration on, once, if the search would end beyond its share of the budget.

        ``eta`` is the expected remaining time of the whole run, in seconds.
        """
        with self._lock:
            if self._accelerated or self.elapsed + eta <= ACCELERATE_SHARE * self.budget:
                return False
            self._accelerated, self.actions = True, self._accelerations
            self._sink.emit("RUNTIME_ACCELERATION_MODE_ON", eta_s=eta, elapsed_s=self.elapsed, actions=self.actions)
            return True

    def finish(self, *, complete: bool) -> None:
        """Emit ``RUNTIME_BUDGET_FINAL``, once, however the session ends."""
        with self._lock:
            if not self._final:
                self._final = True
                self.report("RUNTIME_BUDGET_FINAL", complete=complete)

    def report(self, event: str, **fields: object) -> None:
        """Emit a budget event with the common figures."""
        self._sink.emit(
            event, state=self._state, budget_s=self.budget, elapsed_s=self.elapsed, remaining_s=self.remaining,
            until_stop_s=self.until_stop, margin_s=self.margin, reserve_s=self.reserve,
            elapsed_total_h=self.elapsed / 3600, runtime_margin_to_9h=9 - self.elapsed / 3600,
            acceleration_actions_applied=list(self.actions), **fields,
        )  # fmt: skip

    def _enter(self, state: State) -> None:
        if _ORDER.index(state) > _ORDER.index(self._state):
            self._state = state
            self.report("TIME_BUDGET_STATE", entered=state, forced_by=self._stop.reason or None)


def margin_of(budget: float, costs: CostBook) -> float:
    """The larger of the measured flush and min(10 min, 5 % of the budget)."""
    return max(costs.p95("flush") or 0.0, min(MARGIN_SECONDS, MARGIN_SHARE * budget))


def smallest_budget(packaging: float, costs: CostBook) -> float:
    """Seconds of the smallest budget in which ``packaging`` seconds fit beside the margin."""
    flush = costs.p95("flush") or 0.0
    needed = MEASURED_FACTOR * packaging + flush
    return max(needed / (1 - MARGIN_SHARE), needed + flush) if needed < 19 * MARGIN_SECONDS else needed + MARGIN_SECONDS


def require_budget(budget: float, elapsed: float, packaging: float, costs: CostBook) -> None:
    """Refuse a budget in which not even the packaging fits.

    Raises:
        UsageError: names the smallest budget that works.
    """
    smallest = smallest_budget(packaging, costs) + elapsed
    if budget < smallest:
        raise UsageError(
            "the time budget is too small to hand in a submission", where="--budget",
            found=f"{budget:.0f} s, of which {elapsed:.0f} s are gone", fix=f"give at least {smallest + 1:.0f} s",
        )  # fmt: skip


def parse_duration(text: str) -> float:
    """Seconds of ``9h``, ``45m``, ``90s``, ``1h30m`` or a plain number of seconds.

    Raises:
        UsageError: it is none of these.
    """
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    parts = zip(found.groups(), (3600, 60, 1), strict=True) if found else ()
    seconds = sum(float(value or 0) * factor for value, factor in parts)
    if seconds <= 0:
        raise UsageError("not a duration", found=text, fix="write for instance 9h, 45m, 1h30m or 90s")
    return seconds
