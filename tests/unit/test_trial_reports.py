"""A trial is never silent for long: it reports while it waits for the engine, and only what it has committed."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from trainables import tune_adapter
from trainables.task import Spent
from trainables.tune_adapter import CandidateTrial, RemoteEngine


class SlowRay:
    """Answers are ready when they were waited for so many times."""

    def __init__(self, waits: int) -> None:
        self.waits, self.asked = waits, 0

    def remote(self, request: Any) -> str:
        self.asked += 1
        return f"answer {self.asked}"

    def wait(self, references: list[str], timeout: float) -> tuple[list[str], list[str]]:
        assert timeout <= 2.0
        self.waits -= 1
        return (references, []) if self.waits < 0 else ([], references)

    def get(self, reference: str) -> list[str]:
        return [reference]


class Task:
    """A candidate of one block; what it has computed is committed one report later."""

    def __init__(self) -> None:
        self.done, self.committed, self.took, self.spent = False, 0, [], Spent()

    @property
    def record(self) -> dict[str, Any]:
        return {"iter": 7 if self.done else 0}

    def advance(self, engine: RemoteEngine) -> None:
        self.took += engine.advance(None)  # type: ignore[arg-type]
        self.done = True


def test_a_trial_reports_while_the_engine_computes_and_asks_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, task = SlowRay(waits=2), Task()
    monkeypatch.setattr(tune_adapter, "ray", ray)
    trial: Any = CandidateTrial.__new__(CandidateTrial)
    trial._task, trial._engine, trial._meeting = task, RemoteEngine(SimpleNamespace(advance=ray)), None
    first, second, third = trial.step(), trial.step(), trial.step()
    for waiting in (first, second):
        assert not waiting["done"] and waiting["committed"] == 0 and math.isnan(waiting["objective"])
    assert third["done"] and task.took == ["answer 1"] and ray.asked == 1


def test_what_is_computed_and_not_committed_is_not_reported_as_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, task = SlowRay(waits=0), Task()
    monkeypatch.setattr(tune_adapter, "ray", ray)
    trial: Any = CandidateTrial.__new__(CandidateTrial)
    trial._task, trial._engine, trial._meeting = task, RemoteEngine(SimpleNamespace(advance=ray)), None
    result = trial.step()
    assert (result["iter"], result["committed"]) == (7, 0)
