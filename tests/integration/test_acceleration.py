"""A run that is accelerated does the same work in another way: the same bits come out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import events, results, run, tiny_settings

from nx46vx.data.synthetic import make_dataset
from nx46vx.data.volume_io import read_volume
from nx46vx.pipeline import segment as segment_room
from nx46vx.pipeline import session as session_room
from nx46vx.runtime.budget import ACCELERATIONS, Governor
from nx46vx.runtime.sink import NullSink
from nx46vx.settings import SyntheticSettings
from search import executor as executor_room


@pytest.fixture
def accelerated(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on every session believes that it will be late."""
    real = session_room.make_governor

    def late(*given: Any) -> Governor:
        governor = real(*given)
        governor.accelerate(governor.budget)
        return governor

    return lambda: monkeypatch.setattr(session_room, "make_governor", late)


def test_masks_are_the_same_when_volumes_are_read_ahead(
    tmp_path: Path, accelerated: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    made = {"train_cases": 4, "test_cases": 3, "size": 48, "scrolls": 2}
    make_dataset(data, SyntheticSettings.model_validate(made), sink=NullSink())
    run(tiny_settings(data), tmp_path / "plain")
    ahead: list[str] = []
    monkeypatch.setattr(
        segment_room, "_in_memory", lambda session, case: (ahead.append(case.case_id), read_volume(case.image))[1]
    )
    accelerated()
    run(tiny_settings(data), tmp_path / "fast")
    assert len(ahead) == 2
    assert results(tmp_path / "fast") == results(tmp_path / "plain")
    (told,) = events(tmp_path / "fast", "RUNTIME_ACCELERATION_MODE_ON")
    assert told["actions"] == ["prefetch"] and set(told["actions"]) <= set(ACCELERATIONS)
    final = events(tmp_path / "fast", "RUNTIME_BUDGET_FINAL")[-1]
    assert final["acceleration_actions_applied"] == ["prefetch"]


@pytest.mark.slow
def test_more_trials_in_flight_and_no_growth_give_the_same_bits(
    tmp_path: Path, tiny_data: Path, accelerated: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through Ray; the growth that is then left out is a recorded decision."""
    flat = {"resources.executor": "ray", "resources.trials_in_flight": 1}
    grid = {"grid.meta_neurons": 3, "growth.enabled": True, "growth.max_meta_neurons": 4}
    accelerated()
    monkeypatch.setattr(executor_room, "START_SECONDS", 0.0)  # trials as short as these would not be worth a start
    run(tiny_settings(tiny_data, {**flat, **grid}), tmp_path / "fast")
    boot = events(tmp_path / "fast", "BOOT")[0]["resources"]
    assert (boot["trials_in_flight"], boot["most_in_flight"]) == (1, 2)
    told = events(tmp_path / "fast", "RUNTIME_ACCELERATION_MODE_ON")[0]
    assert told["actions"] == ["more_trials_in_flight", "no_further_growth", "prefetch"]
    together = max(e["in_flight"] for e in events(tmp_path / "fast", "hyperparam_search"))
    assert together >= 1
    (decision,) = [e for e in events(tmp_path / "fast", "AUTO_TUNE_POLICY_DECISION") if e["policy"] == "growth"]
    assert not decision["grow"]
    run(tiny_settings(tiny_data, {"grid.meta_neurons": 3}), tmp_path / "plain")
    assert results(tmp_path / "fast")["leaderboard"] == results(tmp_path / "plain")["leaderboard"]
    assert results(tmp_path / "fast")["submission"] == results(tmp_path / "plain")["submission"]
