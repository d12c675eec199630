"""A student's training as a task: owns its state, cursor, checkpoints, events and metrics. Needs torch, not Ray."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nx46vx.events.writer import EventLog
from nx46vx.model.fitplan import FitPlan
from nx46vx.paths import RunPaths
from nx46vx.runtime.checkpoint.store import Checkpoint, CheckpointStore
from nx46vx.runtime.sink import EventSink
from nx46vx.student.numerics import numerics
from nx46vx.student.spec import StudentSpec
from nx46vx.student.state import arrays_of, load_state, model_state_of, optimizer_state_of, rng_of
from nx46vx.student.trainer import Trainer
from trainables.task import Keeping, open_store


@dataclass
class StudentTask:
    """Advances one student, a step or a piece of a validation volume at a time, and keeps it durable.

    ``position``: which of the run's students it is, and how many there are.
    """

    spec: StudentSpec
    store: CheckpointStore
    sink: EventSink
    position: tuple[int, int] = (0, 1)
    trainer: Trainer = field(init=False)
    checkpoint: Checkpoint | None = field(init=False)

    def __post_init__(self) -> None:
        self.checkpoint = self.store.latest(self.spec.owner, sink=self.sink)
        self.trainer = Trainer(self.spec, self.sink)
        if self.checkpoint is not None:
            load_state(self.trainer, self.checkpoint)

    @property
    def done(self) -> bool:
        return self.trainer.done

    @property
    def at_epoch_start(self) -> bool:
        """Whether the next piece of work begins an epoch."""
        return self.trainer.step == 0

    @property
    def record(self) -> dict[str, Any]:
        """What is known of it so far; ``gpu_seconds``: what a GPU worked for it since it was opened."""
        return {**record_of(model_state_of(self.trainer), self.metrics), "gpu_seconds": self.trainer.gpu.seconds}

    @property
    def metrics(self) -> dict[str, Any]:
        return {**self.trainer.last, "seconds": self.trainer.seconds}

    @property
    def covered_events(self) -> int:
        """How many of this writer's events the checkpoint vouches for."""
        return 0 if self.checkpoint is None else int(self.checkpoint.anchor["count"])

    def announce(self) -> None:
        """Say where the training goes on, if it does, and whether under the same identity, so bit for bit."""
        if self.checkpoint is None:
            return
        where = {"student": self.spec.variant, "checkpoint": self.checkpoint.number, "epoch": self.trainer.epoch}
        self.sink.emit(
            "RESUME_OK", resume_from_ts_ns=self.checkpoint.manifest["ts_ns"], next_iter=self.trainer.step + 1, **where
        )
        if not self.store.identity_differences(self.checkpoint.manifest):
            self.sink.emit("RESUME_EXACT_OK", source_ts_ns=self.checkpoint.manifest["ts_ns"], **where)

    def advance(self) -> None:
        """One piece of work; at an epoch's end its event and a checkpoint, else a checkpoint every so many steps."""
        trainer = self.trainer
        figures = trainer.advance()
        if figures is not None:
            self._event("STUDENT_EPOCH", **figures, seconds=trainer.seconds)
            if trainer.done:
                self._end()
            self._commit()
        elif trainer.step % self.spec.settings.checkpoint_steps == 0 and trainer.steps_done > self._kept:
            self._commit()

    def save(self) -> None:
        """Commit what was done since the last checkpoint, if anything."""
        if self.trainer.steps_done > self._kept:
            self._commit()

    def close(self) -> None:
        self.trainer.close()

    @property
    def _kept(self) -> int:
        return 0 if self.checkpoint is None else int(self.checkpoint.manifest["model_state"]["iterations"])

    def _end(self) -> None:
        trainer, stopping = self.trainer, self.trainer.stopping
        told = {"epoch": trainer.epoch, "best_epoch": stopping.epoch, "best_score": stopping.best}
        if trainer.epoch < self.spec.epochs:
            self._event(
                "STUDENT_EARLY_STOP", **told, epochs=self.spec.epochs,
                reason=f"no better score (F0.5 less its spread over volumes) for {stopping.quiet} epochs",
            )  # fmt: skip
        self._event("STUDENT_DONE", **told, updates=trainer.updates, seconds=trainer.seconds)

    def _commit(self) -> None:
        """A full checkpoint between two epochs, else a light one."""
        trainer = self.trainer
        cases = len(self.spec.train) + len(self.spec.validation)
        self.checkpoint = self.store.commit(
            self.spec.owner,
            cursor={
                "epoch": trainer.epoch,
                "candidate_index": self.position[0],
                "candidate_total": self.position[1],
                "iter": trainer.step,
                "max_iter": self.spec.settings.steps_per_epoch,
            },
            model_state=model_state_of(trainer),
            optimizer_state=optimizer_state_of(trainer),
            arrays=arrays_of(trainer),
            metrics=self.metrics,
            data_cursor={
                "files": cases, "offset": trainer.step, "digest": self.spec.data_digest,
                "order": trainer.order.to_json(),
            },
            rng=rng_of(trainer),
            sink=self.sink,
            kind="full" if trainer.step == 0 else "light",
        )  # fmt: skip

    def _event(self, event: str, **fields: Any) -> None:
        self.sink.emit(event, student=self.spec.variant, **fields)


@dataclass(frozen=True)
class StudentFactory:
    """Opens one student's task in a run directory, in whatever process it is to run."""

    spec: StudentSpec
    plan: FitPlan
    run: Path
    fence: int
    keeping: Keeping = field(default_factory=Keeping)
    position: tuple[int, int] = (0, 1)

    @contextlib.contextmanager
    def open(self) -> Iterator[StudentTask]:
        """The task with its own event writer; what it did is committed, and all is closed, on leaving."""
        spec = self.spec
        store = open_store(self.plan, self.run, self.fence, self.keeping)
        store.claim(spec.owner)  # an orphan of an earlier session is refused from here on
        log = EventLog(RunPaths(self.run).events, spec.owner, run_id=self.plan.run_id, fence=self.fence)
        try:
            with numerics(spec.device, cudnn_benchmark=spec.settings.cudnn_benchmark, gpu=spec.gpu):
                task = StudentTask(spec, store, log, self.position)
                try:
                    log.supersede(task.covered_events, "the run was interrupted after this writer's last checkpoint")
                    task.announce()
                    yield task
                    task.save()
                finally:
                    task.close()
        finally:
            log.close()


def record_of(state: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    """A student's figures from a checkpoint's ``model_state`` and ``best_metrics``."""
    return {
        "variant": state["variant"], "iter": state["iterations"], "epoch": state["epoch"],
        "best_epoch": state["stopping"]["epoch"], "best_score": state["stopping"]["best"],
        "parameters": state["parameters"], "seconds": metrics["seconds"],
        **{key: metrics.get(key) for key in ("loss", "f_beta", "score")},
    }  # fmt: skip
