"""Seconds that each phase still takes: from what this session measured, what earlier ones cost, or the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nx46vx.pipeline.session import Session
from nx46vx.runtime.pace import FitPace
from nx46vx.runtime.progress import PHASES

#: Weights say how phases compare, not how long they take: that needs this much of the whole to have been done.
LEAST_MEASURED = 0.05

#: What ``nx46vx plan`` estimated, by phase.
_PLANNED = {"train_data": "features_seconds", "train_fit": "train_seconds", "segment": "segment_seconds"}

Etas = dict[str, float | None]


@dataclass(frozen=True)
class FitStanding:
    """The fit at a tick: iterations committed by candidate, the epoch target, whether trials are under way."""

    done: Mapping[str, int]
    max_iter: int
    target: int
    begun: bool

    @property
    def until(self) -> int:
        least = min(self.done.values(), default=0)
        return max(min(least // self.max_iter + 1, self.target), 1) * self.max_iter

    @property
    def epochs_after(self) -> int:
        return max(self.target - self.until // self.max_iter, 0)


class Estimator:
    """Asked at every tick of one session. Costs that it learns are kept with the run (``save``)."""

    def __init__(self, session: Session) -> None:
        self._session = session
        costs = session.costs
        self.pace = FitPace(costs.p95("fit_depth"), costs.p95("fit_commit"))

    def etas(
        self, shares: Mapping[str, float], fit: FitStanding | None, planned: Mapping[str, float] | None, now: float
    ) -> Etas:
        """Seconds left of every phase and in ``total``; 0 where it is complete, None where nothing tells.

        ``planned``: the plan's estimate, if one was made; ``now`` on the clock of the session's progress.
        """
        if fit is not None and fit.begun:
            self.pace.see(fit.done, fit.until, now)
        left: Etas = {}
        for phase in PHASES:
            left[phase] = 0.0 if shares[phase] == 1.0 else self._measured(phase, shares, fit, now)
            if left[phase] is None and planned and phase in _PLANNED:
                left[phase] = planned[_PLANNED[phase]] * (1.0 - shares[phase])
        scale = self._scale(shares, left, now)
        for phase in PHASES:
            if left[phase] is None and scale is not None:
                left[phase] = scale * self._session.progress.weights[phase] * (1.0 - shares[phase])
        known = [seconds for seconds in left.values() if seconds is not None]
        return {**left, "total": sum(known) if len(known) == len(PHASES) else None}

    def founded(self, shares: Mapping[str, float], planned: Mapping[str, float] | None) -> bool:
        """Whether the fit's part of the estimate is more than a guess from weights."""
        pace = self.pace
        told = pace.depth_seconds is not None or pace.commit_seconds is not None or bool(planned)
        return told or shares["train_fit"] == 1.0

    def save(self) -> None:
        """Add what this session learned to the run's costs."""
        costs, progress = self._session.costs, self._session.progress
        if self.pace.measured:
            for kind, seconds in (("fit_depth", self.pace.depth_seconds), ("fit_commit", self.pace.commit_seconds)):
                if seconds is not None:
                    costs.add(kind, seconds)
        for phase in ("discovery", "load", "train_data"):
            if phase in progress.ended:
                costs.add(f"phase_{phase}", progress.ended[phase] - self._began(phase))

    def _measured(self, phase: str, shares: Mapping[str, float], fit: FitStanding | None, now: float) -> float | None:
        """What is known of a phase itself."""
        session, share = self._session, shares[phase]
        if phase == "train_fit":
            return self._fit(fit)
        if phase == "segment":
            case, cases = session.costs.p95("segment_case"), session.governor.work.segment_cases
            if case is None or not cases:
                return None
            before = (session.costs.p95("ensemble") or 0.0) + case * session.governor.work.calibrate_cases
            return case * cases * (1.0 - share) + (0.0 if share else before)
        if phase == "package":
            return session.costs.p95("package")
        if share > 0.0:
            return self._elapsed(phase, now) * (1.0 - share) / share
        cost = session.costs.p95(f"phase_{phase}")
        return None if cost is None else max(cost - self._elapsed(phase, now), 0.0)

    def _fit(self, fit: FitStanding | None) -> float | None:
        """This epoch's rest and the epochs after it, for the candidates there are now."""
        if fit is None:
            return None
        rest = self.pace.seconds_left(fit.done, fit.until)
        whole = self.pace.round_seconds(len(fit.done), fit.max_iter) if fit.epochs_after else 0.0
        return None if rest is None or whole is None else rest + fit.epochs_after * whole

    def _scale(self, shares: Mapping[str, float], left: Etas, now: float) -> float | None:
        """Seconds per unit of weight, from the phases whose time is known. One that an earlier session had done goes
        faster the second time: what it cost then counts."""
        progress, costs = self._session.progress, self._session.costs
        seconds = weight = 0.0
        for phase in PHASES:
            share, rest, earlier = shares[phase], left[phase], progress.earlier.get(phase, 0.0)
            whole = progress.weights[phase]
            if phase == "train_fit" and rest is not None and share > earlier:
                seconds, weight = seconds + self._elapsed(phase, now) + rest, weight + whole * (1.0 - earlier)
            elif phase != "train_fit" and share > 0.0 and not earlier:
                seconds, weight = seconds + self._elapsed(phase, now), weight + whole * share
            elif (cost := costs.p95(f"phase_{phase}")) is not None:
                seconds, weight = seconds + cost, weight + whole
        known = weight > 0.0 if shares["train_fit"] > 0.0 else weight >= LEAST_MEASURED
        return seconds / weight if known else None

    def _began(self, phase: str) -> float:
        """When a phase began: with the end of those before it, or with the session."""
        progress = self._session.progress
        before = [progress.ended[one] for one in PHASES[: PHASES.index(phase)] if one in progress.ended]
        return max([progress.began, *before])

    def _elapsed(self, phase: str, now: float) -> float:
        progress = self._session.progress
        return progress.ended.get(phase, now) - self._began(phase) - progress.not_of(phase)
