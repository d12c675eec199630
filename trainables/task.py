"""One candidate's fit, as a task: owns its state, cursor, checkpoints, events and metrics. No Ray, no torch."""

from __future__ import annotations

import contextlib
import time
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

_INTEGERS = ("iter", "active_weights", "restart")


@dataclass
class Spent:
    """What a task spent since it was opened: seconds in its log and in the store, events, checkpoints."""

    log_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    events: int = 0
    checkpoints: int = 0


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
    spent: Spent = field(init=False, default_factory=Spent)
    _resumed: Checkpoint | None = field(init=False, default=None)
    _fitted: dict[str, Any] = field(init=False)  # what each checkpoint says of the model
    _position: dict[str, int] = field(init=False)  # the candidate's place in the grid

    def __post_init__(self) -> None:
        spec = self.plan.spec(self.candidate.meta_neuron).digest
        self._fitted = {**self.candidate.to_json(), "spec": spec, "method": self.plan.method}
        self._position = {
            "candidate_index": self.plan.grid.index(self.candidate), "candidate_total": len(self.plan.candidates),
        }  # fmt: skip
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
    def committed(self) -> int:
        """Iterations that the newest checkpoint vouches for."""
        return 0 if self.checkpoint is None else int(self.checkpoint.manifest["model_state"]["iterations"])

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
            self._resumed = self.checkpoint
            epoch, within = divmod(self.state.iteration, self.plan.max_iter)
            self._event(
                "RESUME_OK", resume_from_ts_ns=self.checkpoint.manifest["ts_ns"], checkpoint=self.checkpoint.number,
                epoch=epoch, candidate_index=self.plan.grid.index(self.candidate), iter=self.state.iteration,
                next_iter=within + 1,
            )  # fmt: skip

    def advance(self, engine: EngineClient) -> None:
        """Get at least one block from the engine; log it and commit it."""
        for block in engine.advance(LaneRequest(self.candidate, self.state, self.until)):
            self._take(block)

    def _take(self, block: BlockResult) -> None:
        started = time.perf_counter()
        self.sink.emit_many("PROGRESS_UPDATE", self._told_of(block))
        self.spent.log_seconds += time.perf_counter() - started
        self.spent.events += len(block.iterations) + len(block.kpis)
        self.state = block.state
        latest = block.kpis[-1] if block.kpis else {}
        self.metrics = {**self.metrics, **latest, "seconds": self.metrics["seconds"] + block.seconds}
        if self.done:
            self._event("CANDIDATE_DONE", **{k: v for k, v in self.record.items() if k != "candidate_id"})
        if self.done or self.state.iteration % KPI_EVERY == 0:
            self._commit()

    def save(self) -> None:
        """Commit what was done since the last checkpoint, if anything: before a deadline, whatever the cadence."""
        if self.state.iteration > self.committed:
            self._commit()

    def _commit(self) -> None:
        """A full checkpoint at the end of an epoch or of the candidate, else a light one."""
        started, done = time.perf_counter(), self.state.iteration
        epoch, within = divmod(done, self.plan.max_iter)
        self.checkpoint = self.store.commit(
            self.candidate.candidate_id,
            cursor={**self._position, "epoch": epoch, "iter": within, "max_iter": self.plan.max_iter},
            model_state={**self._fitted, "iterations": done},
            arrays=self.state.arrays(),
            metrics=self.metrics,
            data_cursor=self.plan.data_cursor,
            sink=self.sink,
            kind="full" if self.done or within == 0 else "light",
        )
        self.spent.checkpoint_seconds += time.perf_counter() - started
        self.spent.checkpoints += 1
        if self._resumed is not None:
            self._confirm(self._resumed)
            self._resumed = None

    def _confirm(self, source: Checkpoint) -> None:
        """The first checkpoint after a resume: it goes on exactly if it was fitted under the same identity."""
        assert self.checkpoint is not None
        differing = self.store.identity_differences(source.manifest)
        if not differing:
            self._event(
                "RESUME_EXACT_OK",
                source_ts_ns=source.manifest["ts_ns"], target_ts_ns=self.checkpoint.manifest["ts_ns"],
                source_checkpoint=source.number, target_checkpoint=self.checkpoint.number, iter=self.state.iteration,
            )  # fmt: skip

    def _told_of(self, block: BlockResult) -> Iterator[dict[str, Any]]:
        """The fields of a block's events: every iteration, then the KPIs."""
        common = {"candidate_id": self.candidate.candidate_id, "stage": "train_supervised"}
        iteration = {**common, "substage": "fit_prox_iter", "file": None}
        for row in block.iterations.tolist():
            fields = dict(zip(ITERATION_FIELDS, row, strict=True))
            for name in _INTEGERS:
                fields[name] = int(fields[name])
            yield {**iteration, **self._place(fields["iter"]), **fields}
        for kpi in block.kpis:
            yield {**common, "substage": "fit_kpi", "file": None, **self._place(kpi["iter"]), **kpi}

    def _place(self, done: int) -> dict[str, int]:
        return {"epoch": (done - 1) // self.plan.max_iter, "iter": done, "index": done, "total": self.until}

    def _event(self, event: str, **fields: Any) -> None:
        self.sink.emit(event, candidate_id=self.candidate.candidate_id, **fields)


@dataclass(frozen=True)
class Keeping:
    """How a session keeps checkpoints: a second place for them, and the numeric environment that it writes in."""

    mirror: Path | None = None
    numeric: str = ""


@dataclass(frozen=True)
class TaskFactory:
    """Opens tasks of one run directory, in whatever process they are to run."""

    plan: FitPlan
    run: Path
    until: int
    fence: int
    keeping: Keeping = field(default_factory=Keeping)

    @contextlib.contextmanager
    def open(self, candidate: Candidate) -> Iterator[CandidateTask]:
        """A task with its own event writer, closed on leaving. A candidate that growth added is found in the plan."""
        plan = self.plan if candidate.meta_neuron < len(self.plan.neurons) else load_fit_plan(self.run)
        store = open_store(plan, self.run, self.fence, self.keeping)
        store.claim(candidate.candidate_id)  # an orphan of an earlier session is refused from here on
        log = EventLog(RunPaths(self.run).events, candidate.candidate_id, run_id=plan.run_id, fence=self.fence)
        try:
            task = CandidateTask(candidate, plan, store, log, self.until)
            log.supersede(task.covered_events, "the run was interrupted after this writer's last checkpoint")
            task.announce()
            yield task
            task.save()
        finally:
            log.close()


def open_store(plan: FitPlan, run: Path, fence: int, keeping: Keeping | None = None) -> CheckpointStore:
    """The checkpoint store of a run directory; the second root, if any, has a folder for each run."""
    keeping = keeping or Keeping()
    return CheckpointStore(
        RunPaths(run).checkpoints,
        mirror=keeping.mirror / plan.run_id if keeping.mirror is not None else None,
        run_id=plan.run_id,
        identity={**plan.identity, **({"numeric_environment": keeping.numeric} if keeping.numeric else {})},
        fence=fence,
    )


def state_of(checkpoint: Checkpoint) -> LaneState:
    """The solver's state in a checkpoint, bit for bit."""
    return LaneState.from_arrays(checkpoint.arrays())


def read_record(plan: FitPlan, candidate: Candidate, checkpoint: Checkpoint) -> dict[str, Any]:
    """A candidate's row in the merged table, from its checkpoint."""
    return _record(plan, candidate, checkpoint.manifest["best_metrics"], state_of(checkpoint).iteration)


def _record(plan: FitPlan, candidate: Candidate, metrics: Mapping[str, Any], done: int) -> dict[str, Any]:
    return {**candidate.to_json(), **metrics, "epoch": -(-done // plan.max_iter), "iter": done}
