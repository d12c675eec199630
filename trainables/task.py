"""One candidate's fit, as a task: owns its state, cursor, checkpoints, events and metrics. No Ray, no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nx46vx.events.writer import EventLog
from nx46vx.model.blocks import KPI_EVERY, BlockResult, EngineClient, LaneRequest
from nx46vx.model.candidates import Candidate
from nx46vx.model.fitplan import FitPlan, load_fit_plan
from nx46vx.model.solver import ITERATION_FIELDS
from nx46vx.model.state import LaneState
from nx46vx.paths import RunPaths
from nx46vx.runtime.checkpoint.store import Checkpoint, CheckpointStore
from nx46vx.runtime.sink import EventSink

_INTEGERS = frozenset({"iter", "active_weights", "restart"})


@dataclass
class CandidateTask:
    """Advances one candidate to iteration ``until`` and keeps every block durable."""

    candidate: Candidate
    plan: FitPlan
    store: CheckpointStore
    sink: EventSink
    until: int
    state: LaneState = field(init=False)
    metrics: dict[str, Any] = field(init=False)
    checkpoint: Checkpoint | None = field(init=False)

    def __post_init__(self) -> None:
        self.checkpoint = self.store.latest(self.candidate.candidate_id, sink=self.sink)
        if self.checkpoint is None:
            self.state = self.plan.start(self.candidate, self.until).state
            self.metrics = {"seconds": 0.0}
        else:
            self.state = state_of(self.checkpoint)
            self.metrics = dict(self.checkpoint.manifest["best_metrics"])

    @property
    def done(self) -> bool:
        return self.state.iteration >= self.until

    @property
    def record(self) -> dict[str, Any]:
        """The candidate's row in the merged table, with everything known so far."""
        return _record(self.plan, self.candidate, self.metrics, self.state.iteration)

    @property
    def covered_events(self) -> int:
        """How many of this writer's events the checkpoint vouches for."""
        return 0 if self.checkpoint is None else int(self.checkpoint.anchor["count"])

    def announce(self) -> None:
        """Say where the task goes on, if it does."""
        if self.checkpoint is not None:
            self._event(
                "RESUME_OK", resume_from_ts_ns=self.checkpoint.manifest["ts_ns"], iter=self.state.iteration,
                epoch=self.state.iteration // self.plan.max_iter,
            )  # fmt: skip

    def advance(self, engine: EngineClient) -> None:
        """Get at least one block from the engine; log it and commit it."""
        for block in engine.advance(LaneRequest(self.candidate, self.state, self.until)):
            self._take(block)

    def _take(self, block: BlockResult) -> None:
        for row in block.iterations:
            fields = dict(zip(ITERATION_FIELDS, row.tolist(), strict=True))
            self._progress("fit_prox_iter", **{k: int(v) if k in _INTEGERS else v for k, v in fields.items()})
        for kpi in block.kpis:
            self._progress("fit_kpi", **kpi)
        self.state = block.state
        latest = block.kpis[-1] if block.kpis else {}
        self.metrics = {**self.metrics, **latest, "seconds": self.metrics["seconds"] + block.seconds}
        if self.done:
            self._event("CANDIDATE_DONE", **{k: v for k, v in self.record.items() if k != "candidate_id"})
        if self.done or self.state.iteration % KPI_EVERY == 0 or self.state.iteration % self.plan.block == 0:
            self._commit("full" if self.done or self.state.iteration % self.plan.max_iter == 0 else "light")

    def _commit(self, kind: str) -> None:
        done = self.state.iteration
        epoch, within = divmod(done, self.plan.max_iter)
        self.checkpoint = self.store.commit(
            self.candidate.candidate_id,
            cursor={
                "epoch": epoch,
                "candidate_index": self.plan.grid.index(self.candidate),
                "candidate_total": len(self.plan.candidates),
                "iter": within,
                "max_iter": self.plan.max_iter,
            },
            model_state={
                **self.candidate.to_json(),
                "spec": self.plan.spec(self.candidate.meta_neuron).digest,
                "iterations": done,
            },
            arrays=self.state.arrays(),
            metrics=self.metrics,
            data_cursor=self.plan.data_cursor,
            sink=self.sink,
            kind=kind,
        )

    def _progress(self, substage: str, *, iter: int, **fields: Any) -> None:
        self._event(
            "PROGRESS_UPDATE",
            stage="train_supervised",
            substage=substage,
            file=None,
            epoch=(iter - 1) // self.plan.max_iter,
            iter=iter,
            index=iter,
            total=self.until,
            **fields,
        )

    def _event(self, event: str, **fields: Any) -> None:
        self.sink.emit(event, candidate_id=self.candidate.candidate_id, **fields)


@dataclass(frozen=True)
class TaskFactory:
    """Opens tasks of one run directory, in whatever process they are to run."""

    plan: FitPlan
    run: Path
    until: int
    fence: int

    @contextlib.contextmanager
    def open(self, candidate: Candidate) -> Iterator[CandidateTask]:
        """A task with its own event writer, closed on leaving. A candidate that growth added is found in the plan."""
        plan = self.plan if candidate.meta_neuron < len(self.plan.neurons) else load_fit_plan(self.run)
        store = open_store(plan, self.run, self.fence)
        store.claim(candidate.candidate_id)  # an orphan of an earlier session is refused from here on
        log = EventLog(RunPaths(self.run).events, candidate.candidate_id, run_id=plan.run_id, fence=self.fence)
        try:
            task = CandidateTask(candidate, plan, store, log, self.until)
            log.supersede(task.covered_events, "the run was interrupted after this writer's last checkpoint")
            task.announce()
            yield task
        finally:
            log.close()


def open_store(plan: FitPlan, run: Path, fence: int) -> CheckpointStore:
    """The checkpoint store of a run directory."""
    return CheckpointStore(RunPaths(run).checkpoints, run_id=plan.run_id, identity=plan.identity, fence=fence)


def state_of(checkpoint: Checkpoint) -> LaneState:
    """The solver's state in a checkpoint, bit for bit."""
    return LaneState.from_arrays(checkpoint.arrays())


def read_record(plan: FitPlan, candidate: Candidate, checkpoint: Checkpoint) -> dict[str, Any]:
    """A candidate's row in the merged table, from its checkpoint."""
    return _record(plan, candidate, checkpoint.manifest["best_metrics"], state_of(checkpoint).iteration)


def _record(plan: FitPlan, candidate: Candidate, metrics: Mapping[str, Any], done: int) -> dict[str, Any]:
    return {**candidate.to_json(), **metrics, "epoch": -(-done // plan.max_iter), "iter": done}
