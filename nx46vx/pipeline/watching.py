"""Watches a session: budget, progress, cursor, memory and stalls, in events every few seconds and for the screen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from nx46vx.errors import NX46Error
from nx46vx.logs import Screen, say
from nx46vx.model.blocks import LaneRequest
from nx46vx.model.fitplan import FitPlan
from nx46vx.pipeline.auditing import Audit, Recomputed, Shown
from nx46vx.pipeline.counts import (
    Committed,
    candidates_done,
    first_unfinished,
    read_committed,
    read_planned,
    recomputed_value,
    train_counts,
)
from nx46vx.pipeline.estimating import Estimator, Etas, FitStanding
from nx46vx.pipeline.session import Session
from nx46vx.runtime.atomic import write_json
from nx46vx.runtime.memory import Memory, MemoryWatch, read_memory
from nx46vx.runtime.progress import StallWatch

#: Seconds without any committed work after which an alert is due.
STALL_SECONDS = 120.0


@dataclass
class TrainWatch:
    """What trials report as committed; the source of the shown progress of the fit."""

    plan: Callable[[], FitPlan] | None = None
    reported: dict[str, int] = field(default_factory=dict)
    told_in_flight: int = 0
    student_steps: int = 0
    student_gpu_seconds: dict[str, float] = field(default_factory=dict)
    _until: int = 0
    _live: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def in_flight(self) -> int:
        """Trials under way: as the executor told when one ended, or as many as have reported unfinished candidates."""
        return max(len(self._live), self.told_in_flight)

    def begin(
        self, plan: Callable[[], FitPlan], finished: Mapping[str, Mapping[str, Any]], pending: Sequence[LaneRequest],
        until: int,
    ) -> None:  # fmt: skip
        """Start from what the store says: complete records, and where the others stand; the epoch ends at ``until``."""
        with self._lock:
            self._until, self._live, self.told_in_flight = until, set(), 0
            for candidate_id, record in finished.items():
                self.reported[candidate_id] = int(record["iter"])
            for request in pending:
                self.reported[request.candidate.candidate_id] = request.state.iteration
            self.plan = plan

    def report(self, candidate_id: str, iterations: int) -> None:
        """A trial has committed so many iterations."""
        with self._lock:
            self.reported[candidate_id] = max(iterations, self.reported.get(candidate_id, 0))
            (self._live.add if iterations < self._until else self._live.discard)(candidate_id)

    def correct(self, stored: Mapping[str, int]) -> dict[str, int]:
        """Take over what the store has beyond the reports; returns what is shown now."""
        with self._lock:
            for candidate_id, iterations in stored.items():
                self.reported[candidate_id] = max(iterations, self.reported.get(candidate_id, 0))
            return dict(self.reported)

    def snapshot(self) -> dict[str, int]:
        with self._lock:
            return dict(self.reported)


class Monitor:
    """One tick every ``heartbeat_seconds``; can be ticked by hand in tests.

    ``clock`` gives seconds (the progress's own unless given), ``memory`` a reading of the memory.
    """

    def __init__(
        self, session: Session, watch: TrainWatch, screen: Screen, *, clock: Callable[[], float] | None = None,
        memory: Callable[[], Memory] = read_memory,
    ) -> None:  # fmt: skip
        self.session, self.watch, self.screen = session, watch, screen
        self._clock = clock or session.progress.clock
        self._stall, self._audit, self._memory = StallWatch(STALL_SECONDS), Audit(), MemoryWatch(memory)
        self._estimator = Estimator(session)
        self._alerted = False

    def tick(self) -> dict[str, Any]:
        """Emit this moment's events; returns what the screen shows."""
        session, governor, now = self.session, self.session.governor, self._clock()
        plan, planned, shown, stored = self._training()
        value, shares = session.progress.shown()
        self._check(Shown(value, shown), plan, stored, now)
        fit = None if plan is None else self._standing(plan, shown)
        etas = self._estimator.etas(shares, fit, planned, now)
        remaining = etas["total"] if self._estimator.founded(shares, planned) else None
        view = {
            "global_progress_reel": value,
            "train_progress_reel": 100.0 * shares["train_fit"],
            "cursor": None if plan is None else list(first_unfinished(plan, shown)),
            "remaining_estimate_s": remaining,
        }
        found = {
            "candidates_done": 0 if plan is None else candidates_done(plan, shown),
            "candidates_total": None if plan is None else len(plan.candidates),
            "in_flight": self.watch.in_flight, "best": stored.best,
        }  # fmt: skip
        write_json(session.paths.progress, {**view, "shares": shares})
        session.log.emit("GLOBAL_PROGRESS_REALTIME", shares=shares, **view, **found)
        if plan is not None:
            self._cursor(plan, shown, stored)
        self._budget(etas, remaining)
        memory = self._health()
        quiet = self._stall.stalled((value, stored.total, tuple(shares.values()), self.watch.student_steps), now)
        if quiet is not None:
            session.log.emit("STALL_ALERT", seconds_without_progress=quiet, **view)
            say(f"nothing has moved for {quiet:.0f} s")
        told = {
            **view, **found, "shares": shares, "weights": dict(session.progress.weights), "eta_per_phase_s": etas,
            "budget_left_s": governor.remaining, "elapsed_s": governor.elapsed, "governor_state": str(governor.state),
            "memory": memory,
        }  # fmt: skip
        self.screen.show(told)
        return told

    @contextmanager
    def running(self, seconds: float) -> Iterator[None]:
        """Tick in a thread for the time of some work: at its begin, every so many seconds, and at its end."""
        over = threading.Event()

        def loop() -> None:
            self._safe_tick()
            due = self._clock() + seconds
            while not over.wait(max(due - self._clock(), 0.0)):
                due = max(due, self._clock() - seconds) + seconds  # a tick that was late is not made up for
                self._safe_tick()

        with self.screen.shown():
            thread = threading.Thread(target=loop, name="monitor", daemon=True)
            thread.start()
            try:
                yield
            finally:
                over.set()
                thread.join()
                self._safe_tick()
                self._estimator.save()

    def _safe_tick(self) -> None:
        try:
            self.tick()
        except Exception as error:  # watching must never end the work
            with suppress(NX46Error):  # a log that refuses is for the work to name
                self.session.log.emit("MONITOR_FAILED", error=f"{type(error).__name__}: {error}")

    def _training(self) -> tuple[FitPlan | None, dict[str, float] | None, dict[str, int], Committed]:
        """The fit, what trials reported, and after that what the store holds; raises the shown share of the fit.

        Before the trials begin, and when the search is wound up and last reports may not come any more, what is shown
        is what the store holds.
        """
        session, begun = self.session, self.watch.plan
        shown = self.watch.snapshot()
        planned, estimate = read_planned(session)
        plan = planned if begun is None else begun()
        stored = read_committed(session, plan)
        if begun is None:
            shown = dict(stored.iterations)
        elif session.governor.stopping:
            shown = self.watch.correct(stored.iterations)
        if plan is not None:
            session.progress.set("train_fit", train_counts(session, plan, shown).share)
        return plan, estimate, shown, stored

    def _check(self, shown: Shown, plan: FitPlan | None, stored: Committed, now: float) -> None:
        """Recompute the shown value from scratch and raise an alert for any difference."""
        session, progress = self.session, self.session.progress
        train = 0.0 if plan is None else train_counts(session, plan, stored.iterations).share
        shares = progress.shown()[1]
        ever = {phase: max(share, progress.earlier.get(phase, 0.0)) for phase, share in shares.items()}
        recomputed = Recomputed(
            recomputed_value(session, shares, train), recomputed_value(session, ever, train), stored.iterations
        )
        alerts = self._audit.differences(shown, recomputed, now)
        for alert in alerts:
            session.log.emit("PROGRESS_INTEGRITY_ALERT", **alert)
            if alert["direction"] == "behind":
                self.watch.correct(stored.iterations)
        if alerts and not self._alerted:
            say("the shown progress and the checkpoints differ: see PROGRESS_INTEGRITY_ALERT in the events")
        self._alerted = bool(alerts)

    def _standing(self, plan: FitPlan, shown: Mapping[str, int]) -> FitStanding:
        done = {candidate.candidate_id: shown.get(candidate.candidate_id, 0) for candidate in plan.candidates}
        target = train_counts(self.session, plan, done).target
        return FitStanding(done, plan.max_iter, target, begun=self.watch.plan is not None)

    def _cursor(self, plan: FitPlan, shown: Mapping[str, int], stored: Committed) -> None:
        epoch, candidate, iteration = first_unfinished(plan, shown)
        self.session.log.emit(
            "TRAIN_CURSOR", epoch=epoch, candidate=candidate, iter=iteration, candidates=len(plan.candidates),
            iterations_committed=stored.total, in_flight=self.watch.in_flight,
            epoch_target=train_counts(self.session, plan, shown).target,
        )  # fmt: skip

    def _budget(self, etas: Etas, remaining: float | None) -> None:
        governor = self.session.governor
        if remaining is not None and self._estimator.pace.measured:  # a guess is no reason to leave anything out
            governor.accelerate(remaining)
        governor.report("RUNTIME_BUDGET_HEARTBEAT")
        governor.report("TIME_BUDGET_STATE", eta_per_phase_s=etas)

    def _health(self) -> dict[str, Any]:
        memory, risen = self._memory.look()
        health = memory.to_json()
        self.session.log.emit("MEMORY_HEALTH", **health)
        if risen:
            say(f"memory {health['level']}: {memory.to_text()}")
        return health
