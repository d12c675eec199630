"""A run whose features a GPU computes: the same result, proof of it in the log, and the processor where it fails."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from nx46vx.errors import EnvironmentFault, IncompatibleError
from nx46vx.paths import RunPaths
from nx46vx.pipeline.run import run
from nx46vx.pipeline.verifying import verify_run
from nx46vx.runtime.device import Gpu, Probe, choice
from nx46vx.settings import ResourceSettings, Settings
from search.executor import SearchJob
from search.inline import InlineExecutor
from search.resources import plan_resources
from tests.fake_cupy import FakeCupy
from tests.tiny import events, results, tiny_settings

FOUND = Probe((Gpu(0, "0", "H200", 141 << 30, 140 << 30, "90"),), (), "1 GPU run kernels")


class OnTheCpu:
    """The inline executor; its engine computes on the processor, whatever the run was given."""

    def run(self, job: SearchJob) -> None:
        InlineExecutor().run(replace(job, resources=plan_resources(ResourceSettings(executor="inline", device="cpu"))))

    def close(self) -> None:
        return None


Start = Callable[..., Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A dataset, and what a run on the processor makes of it."""
    folder = tmp_path_factory.mktemp("gpu")
    run(_settings(folder, None, folder / "cpu-cache", {"resources.device": "cpu"}), folder / "cpu")
    return RunPaths(folder / "cpu").data, results(folder / "cpu")


def _settings(folder: Path, data: Path | None, cache: Path, flat: dict[str, Any]) -> Settings:
    return tiny_settings(data, {"features.cache_dir": str(cache), "resources.device": "auto", **flat})


@pytest.fixture
def start(data: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """A run on a machine with a GPU, as the probe says, and that CuPy."""

    def started(cupy: Any, name: str = "run", cache: str = "cache", **flat: Any) -> Path:
        monkeypatch.setattr(choice, "probe", lambda: FOUND)
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        dotted = {key.replace("__", "."): value for key, value in flat.items()}
        run(_settings(tmp_path, data[0], tmp_path / cache, dotted), tmp_path / name, executor=OnTheCpu())
        return tmp_path / name

    return started


def fallbacks(root: Path) -> list[str]:
    return [event["reason"] for event in events(root, "GPU_FALLBACK_DETECTED") if event["what"] == "features"]


def phase_end(root: Path) -> dict[str, Any]:
    return next(event for event in events(root, "GPU_PHASE_END") if event["phase"] == "features")


def test_features_of_a_gpu_give_the_same_run(start: Start, data: tuple[Path, dict[str, Any]]) -> None:
    cupy = FakeCupy()
    root = start(cupy)
    assert results(root) == data[1]
    (checked,), (told,) = events(root, "GPU_FEATURES_CHECK"), events(root, "GPU_FEATURES")
    assert checked["passed"] and (told["cases_on_gpu"], told["cases_on_cpu"]) == (5, 0)
    assert fallbacks(root) == [] and cupy.released
    assert phase_end(root)["on_gpu"] and phase_end(root)["gpu_seconds"] == told["gpu_seconds"] > 0
    assert [e["moment"] for e in events(root, "GPU_MEMORY_SNAPSHOT") if e["phase"] == "features"] == ["start", "end"]
    (stats,) = events(root, "GLOBAL_STATS")
    asked = [event for event in events(root, "GPU_PHASE_END") if event["asked"]]
    assert stats["gpu_phase_coverage_pct"] == pytest.approx(100 / len(asked))  # the engine was kept off the GPU
    assert verify_run(root).problems == []


def test_what_a_gpu_computed_is_found_by_a_machine_without_one(
    start: Start, data: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache's keys say nothing of the device: its bits do not depend on it."""
    root = start(FakeCupy())
    again = start(None, "other", features__device="cpu")
    assert not events(again, "CACHE_MISS") and not fallbacks(again)
    assert not events(again, "GPU_FEATURES_CHECK") and not phase_end(again)["asked"]
    assert results(again) == results(root) == data[1]


@pytest.mark.parametrize(
    ("cupy", "reason"),
    [
        (None, "CuPy cannot be used"),
        (FakeCupy(spoil=lambda found: found + found.dtype.type(1)), "wrong values"),
        (FakeCupy(room=20_000), "cannot compute features: OutOfMemoryError"),
    ],
)
def test_a_gpu_that_cannot_is_a_fallback_with_its_reason(
    start: Start, data: tuple[Path, dict[str, Any]], cupy: Any, reason: str
) -> None:
    root = start(cupy)
    (said,) = fallbacks(root)
    assert reason in said
    assert not phase_end(root)["on_gpu"] and not events(root, "GPU_FEATURES")
    assert results(root) == data[1]


def test_a_gpu_that_fails_midway_is_a_fallback_and_changes_no_bit(
    start: Start, data: tuple[Path, dict[str, Any]]
) -> None:
    cupy = FakeCupy()

    def fail_after_three_cases(found: Any) -> Any:
        cupy.fetched = getattr(cupy, "fetched", 0) + (found.ndim == 2 and found.shape[1] > 2000)
        if cupy.fetched > 3:
            raise RuntimeError("cudaErrorLaunchFailure")
        return found

    cupy.fetched = 0
    root = start(_armed(cupy, fail_after_three_cases))
    (said,) = fallbacks(root)
    assert "cudaErrorLaunchFailure" in said
    (told,) = events(root, "GPU_FEATURES")
    assert told["cases_on_gpu"] + told["cases_on_cpu"] == 5 and told["cases_on_gpu"] > 0 < told["cases_on_cpu"]
    assert phase_end(root)["on_gpu"] and results(root) == data[1]


def _armed(cupy: FakeCupy, spoil: Any) -> FakeCupy:
    cupy.spoil = spoil
    return cupy


def test_a_run_that_insists_on_the_gpu_is_refused_without(start: Start) -> None:
    with pytest.raises(EnvironmentFault) as refused:
        start(None, features__device="cuda")
    assert refused.value.where == "features.device" and "CuPy" in str(refused.value.found)


def test_features_that_are_not_those_of_the_plan_are_named(start: Start, tmp_path: Path) -> None:
    """A resume on a machine whose rebuilt features had other bits; here the plan is what was changed."""
    root = start(FakeCupy())
    path = RunPaths(root).plan
    plan = orjson.loads(path.read_bytes())
    key = next(iter(plan["feature_digests"]))
    plan["feature_digests"][key] = "0" * 128
    path.write_bytes(orjson.dumps(plan))
    RunPaths(root).report_json.unlink()
    with pytest.raises(IncompatibleError, match="planned with"):
        start(FakeCupy(), strict_numeric=True)
    start(FakeCupy())
    assert [event["keys"] for event in events(root, "RESUME_FEATURES_DIFFER")] == [[key], [key]]
