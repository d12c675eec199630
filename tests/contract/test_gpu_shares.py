"""Trials' shares of GPUs, with GPUs that Ray is only told of: engines are bound to theirs, shares decide the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import ITERATIONS, events, iterations_done, results, run, tiny_settings

from nx46vx.pipeline.run import make_executor
from nx46vx.runtime.device import DeviceChoice, Gpu
from nx46vx.settings import Settings
from search import resources as resources_room
from search.executor import SearchJob
from search.resources import plan_resources

pytestmark = pytest.mark.slow

GPUS = tuple(Gpu(index, str(index), "Pretended", (2 - index) << 30, 1 << 30, "90") for index in range(2))


class OnPretendedGpus:
    """The executor on Ray, which is told of two GPUs; the engines that are bound to them compute on the CPU."""

    def __init__(self, settings: Settings) -> None:
        self._inner = make_executor(settings)
        self._settings = settings.resources
        self.planned: Any = None

    def run(self, job: SearchJob) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resources_room, "choose_device", lambda *asked: DeviceChoice("cuda", GPUS, "pretended"))
            plan = plan_resources(self._settings)
        self.planned = replace(plan, spots=tuple(replace(spot, device="cpu") for spot in plan.spots))
        self._inner.run(replace(job, resources=self.planned))

    def close(self) -> None:
        self._inner.close()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    root = tmp_path_factory.mktemp("plain") / "run"
    run(tiny_settings(tiny_data), root)
    return root


@pytest.mark.parametrize(
    ("share", "at_once"), [("auto", 4), (0.5, 4), (1.0, 2), (0.3, 4)], ids=["auto", "half", "whole", "three to each"]
)
def test_the_configured_share_decides_how_many_trials_run_at_once(
    tmp_path: Path, tiny_data: Path, plain: Path, share: Any, at_once: int
) -> None:
    flat = {"resources.executor": "ray", "resources.device": "auto", "resources.gpus_per_trial": share}
    settings = tiny_settings(tiny_data, {**flat, "resources.trials_in_flight": 4})
    executor = OnPretendedGpus(settings)
    try:
        run(settings, tmp_path / "run", executor=executor)
    finally:
        executor.close()
    assert executor.planned.trials_in_flight == at_once
    if share != "auto":
        assert executor.planned.gpus_per_trial == share, "the share is not what was asked for"
    engines = events(tmp_path / "run", "ENGINE_READY")
    assert sorted(engine["gpu"] for engine in engines) == ["0", "1"], "an engine on each GPU, bound to it"
    processes = {event["pid"] for event in events(tmp_path / "run", "WRITER_OPEN") if event["writer"] != "driver"}
    assert len(processes) <= at_once
    if share == 1.0:
        assert len(processes) == 2, "both GPUs are used"
    assert results(tmp_path / "run") == results(plain)
    assert all(done == list(range(1, ITERATIONS + 1)) for done in iterations_done(tmp_path / "run").values())
