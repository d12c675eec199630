"""Watches a session: budget, progress, cursor, memory and stalls, in events every few seconds and for the screen."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil

from nx46vx.logs import Screen
from nx46vx.model.blocks import LaneRequest
from nx46vx.model.fitplan import FitPlan
from nx46vx.pipeline.counts import committed_iterations, first_unfinished, train_counts
from nx46vx.pipeline.session import Session
from nx46vx.runtime.atomic import write_json
from nx46vx.runtime.progress import StallWatch

#: Share of the machine's memory in use from which a warning is due.
MEMORY_WARNING = 0.90
#: Seconds without any committed work after which an alert is due.
STALL_SECONDS = 120.0


@dataclass
class TrainWatch:
    """What trials report as committed; the source of the shown progress of the fit."""

    plan: Callable[[], FitPlan] | None = None
    reported: dict[str, int] = field(default_factory=dict)
    in_flight: int = 0
    student_steps: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(
        self, plan: Callable[[], FitPlan], finished: Mapping[str, Mapping[str, Any]], pending: Sequence[LaneRequest]
    ) -> None:
        """Start from what the store says: complete records, and where the others stand."""
        with self._lock:
            self.plan = plan
            for candidate_id, record in finished.items():
                self.reported[candidate_id] = int(record["iter"])
            for request in pending:
                self.reported[request.candidate.candidate_id] = request.state.iteration

    def report(self, candidate_id: str, iterations: int) -> None:
        """A trial has committed so many iterations."""
        with self._lock:
            self.reported[candidate_id] = max(iterations, self.reported.get(candidate_id, 0))

    def snapshot(self) -> dict[str, int]:
        with self._lock:
            return dict(self.reported)


class Monitor:
    """One tick every ``heartbeat_seconds``; can be ticked by hand in tests."""

    def __init__(self, session: Session, watch: TrainWatch, screen: Screen) -> None:
        self.session, self.watch, self.screen = session, watch, screen
        self._stall = StallWatch(STALL_SECONDS)
        self._started = time.monotonic()
        self._first: tuple[float, float] | None = None

    def tick(self) -> dict[str, Any]:
        """Emit this moment's events; returns what the screen shows."""
        session, governor = self.session, self.session.governor
        cursor = self._training()
        value = session.progress.value
        remaining = self._remaining(value)
        view = {
            "global_progress_reel": value,
            "train_progress_reel": 100.0 * session.progress.shares["train_fit"],
            "cursor": cursor,
            "remaining_estimate_s": remaining,
        }
        write_json(session.paths.progress, view)
        session.log.emit("GLOBAL_PROGRESS_REALTIME", shares=dict(session.progress.shares), **view)
        if remaining is not None:
            governor.accelerate(remaining)
        phases = {"total": remaining, "package": governor.work.seconds(session.costs)}
        governor.report("RUNTIME_BUDGET_HEARTBEAT")
        governor.report("TIME_BUDGET_STATE", eta_per_phase_s=phases)
        self._memory()
        quiet = self._stall.stalled((value, self.watch.student_steps), time.monotonic())
        if quiet is not None:
            session.log.emit("STALL_ALERT", seconds_without_progress=quiet, **view)
        shown = {**view, "in_flight": self.watch.in_flight, "budget_left_s": governor.remaining}
        self.screen.show(shown)
        return shown

    @contextmanager
    def running(self, seconds: float) -> Iterator[None]:
        """Tick in a thread for the time of some work."""
        over = threading.Event()

        def loop() -> None:
            while not over.wait(seconds):
                self._safe_tick()

        thread = threading.Thread(target=loop, name="monitor", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._safe_tick()

    def _safe_tick(self) -> None:
        try:
            self.tick()
        except Exception as error:  # watching must never end the work
            self.session.log.emit("MONITOR_FAILED", error=f"{type(error).__name__}: {error}")

    def _training(self) -> list[int] | None:
        """Progress of the fit from what trials reported, held against the store."""
        if self.watch.plan is None:
            return None
        session, plan, shown = self.session, self.watch.plan(), self.watch.snapshot()
        stored = committed_iterations(session, plan)
        ahead = {key: [shown[key], stored.get(key, 0)] for key in shown if shown[key] > stored.get(key, 0)}
        if ahead:
            session.log.emit("PROGRESS_INTEGRITY_ALERT", shown_and_stored=ahead)
        session.progress.set("train_fit", train_counts(session, plan, shown).share)
        cursor = first_unfinished(plan, shown)
        session.log.emit(
            "TRAIN_CURSOR", epoch=cursor[0], candidate=cursor[1], iter=cursor[2], candidates=len(plan.candidates),
            iterations_committed=sum(stored.values()), in_flight=self.watch.in_flight,
        )  # fmt: skip
        return list(cursor)

    def _remaining(self, value: float) -> float | None:
        """Seconds left, from how fast the shown value has moved in this session."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, value)
        elapsed, moved = now - self._first[0], value - self._first[1]
        return elapsed / moved * (100.0 - value) if moved > 0 else None

    def _memory(self) -> None:
        memory, process = psutil.virtual_memory(), psutil.Process()
        used = 1.0 - memory.available / memory.total
        self.session.log.emit(
            "MEMORY_HEALTH", resident_bytes=process.memory_info().rss, available_bytes=memory.available,
            used_share=used, warning=used > MEMORY_WARNING,
        )  # fmt: skip
