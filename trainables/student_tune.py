"""A student's task as a Ray Tune ``Trainable``: a thin adapter."""

from __future__ import annotations

import contextlib
import shutil
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune

from nx46vx.errors import NX46Error, failure_fields
from trainables.student import StudentFactory, StudentTask

#: How often a trial reports to Tune, and so looks whether it is to stop.
REPORT_SECONDS = 1.0


class StudentTrial(tune.Trainable):
    """One trial, one student. ``config`` is ``{"variant"}``."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], *, factories: dict[str, StudentFactory]
    ) -> None:
        factory = factories[config["variant"]]
        # Ray shows this process the one GPU that the trial was given.
        self._factory = replace(factory, spec=replace(factory.spec, gpu=0))
        self._stack = ExitStack()
        self._task: StudentTask | None = None

    def step(self) -> dict[str, Any]:
        until = time.monotonic() + REPORT_SECONDS
        try:
            if self._task is None:
                self._task = self._stack.enter_context(self._factory.open())
            task = self._task
            while not task.done:
                task.advance()
                if time.monotonic() >= until or task.at_epoch_start:
                    break
        except NX46Error as error:  # trying again would not help: report it instead of failing
            return {"iter": 0, "done": True, "failure": failure_fields(error)}
        return {**task.record, "done": task.done, "epoch_begins": task.at_epoch_start}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Ray gets a copy of ours; it is never read back."""
        if self._task is not None and self._task.checkpoint is not None:
            shutil.copytree(self._task.checkpoint.path, Path(checkpoint_dir), dirs_exist_ok=True)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the task found its own checkpoint, the newest valid one, when it was opened."""

    def cleanup(self) -> None:
        with contextlib.suppress(NX46Error):  # a newer session holds the student: what is left here is its own
            self._task = None
            self._stack.close()
