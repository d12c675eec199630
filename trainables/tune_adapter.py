"""A candidate's task as a Ray Tune ``Trainable``: a thin adapter, reused for one candidate after another."""

from __future__ import annotations

import contextlib
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
from ray import tune

from nx46vx.errors import NX46Error, failure_fields
from nx46vx.model.blocks import BlockResult, LaneRequest
from nx46vx.model.candidates import Candidate
from trainables.task import CandidateTask, TaskFactory

#: How often a trial reports to Tune, also while it waits for the engine; checkpoints and events do not depend on it.
REPORT_SECONDS = 1.0


class StillComputing(Exception):
    """The engine has no block yet: ask again with the same request."""


class RemoteEngine:
    """The engine in its actor, as a trial sees it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._asked: Any = None

    def advance(self, request: LaneRequest) -> list[BlockResult]:
        """Raises ``StillComputing`` if it takes longer than a trial may be silent."""
        if self._asked is None:
            self._asked = self._actor.advance.remote(request)
        if not ray.wait([self._asked], timeout=REPORT_SECONDS)[0]:
            raise StillComputing
        asked, self._asked = self._asked, None
        return ray.get(asked)


def _report(task: CandidateTask | None) -> dict[str, Any]:
    """What Tune is told: every number that is known."""
    if task is None:
        return {"objective": float("nan"), "iter": 0, "committed": 0, "done": False}
    numbers = {name: item for name, item in task.record.items() if not isinstance(item, list)}
    return {
        "objective": float("nan"), **numbers, "committed": task.committed, "done": task.done, "spent": vars(task.spent)
    }  # fmt: skip


class CandidateTrial(tune.Trainable):
    """One trial, one candidate. ``config`` is ``{"meta_neuron", "l1", "l2"}``."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], *, factory: TaskFactory, engines: list[Any], together: int = 1
    ) -> None:
        """``engines``: each has every so-manieth meta-neuron; ``together``: trials that begin together."""
        self._factory = factory
        self._engines = engines
        self._meeting = engines[0].meet.remote(together) if together > 1 else None
        self._stack = ExitStack()
        self._task: CandidateTask | None = None
        self._wanted = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._close()
        self._wanted = new_config
        return True

    def step(self) -> dict[str, Any]:
        until = time.monotonic() + REPORT_SECONDS
        try:
            self._meet()
            task = self._task or self._open(self._wanted)
            while not task.done:
                task.advance(self._engine)
                if time.monotonic() >= until:
                    break
        except StillComputing:
            pass
        except NX46Error as error:  # trying again would not help: report it instead of failing
            record = self._task.record if self._task else {"iter": 0}
            return {"objective": float("nan"), **record, "done": True, "failure": failure_fields(error)}
        return _report(self._task)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Ray gets a copy of ours; it is never read back."""
        if self._task is not None and self._task.checkpoint is not None:
            shutil.copytree(self._task.checkpoint.path, Path(checkpoint_dir), dirs_exist_ok=True)

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: the task found its own checkpoint, the newest valid one, when it was opened."""

    def cleanup(self) -> None:
        with contextlib.suppress(NX46Error):  # a newer session holds the candidate: what is left here is its own
            self._close()

    def _close(self) -> None:
        self._task = None
        self._stack.close()

    def _open(self, config: dict[str, Any]) -> CandidateTask:
        candidate = Candidate(int(config["meta_neuron"]), float(config["l1"]), float(config["l2"]))
        self._task = self._stack.enter_context(self._factory.open(candidate))
        self._engine = RemoteEngine(self._engines[candidate.meta_neuron % len(self._engines)])
        return self._task

    def _meet(self) -> None:
        """Wait for the other trials that begin together; raises ``StillComputing`` like an engine does."""
        if self._meeting is not None:
            if not ray.wait([self._meeting], timeout=REPORT_SECONDS)[0]:
                raise StillComputing
            self._meeting = None
