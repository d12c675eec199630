"""A run whose features a GPU computes: the same result, proof of it in the log, and the processor where it fails."""

from __future__ import annotations

import itertools
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest

from nx46vx.errors import EnvironmentFault, IncompatibleError
from nx46vx.features.cache import FeatureCache
from nx46vx.paths import RunPaths
from nx46vx.pipeline.featuring import features_on_gpu
from nx46vx.pipeline.run import run
from nx46vx.pipeline.verifying import verify
from nx46vx.runtime.device import CPU, DeviceChoice, Gpu, Probe, choice
from nx46vx.runtime.gpu_phases import PhaseUse
from nx46vx.runtime.sink import MemorySink, NullSink
from nx46vx.settings import ResourceSettings
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


def start(folder: Path, cupy: Any, name: str, **flat: Any) -> Path:
    """A run on a machine with a GPU, as the probe says, and that CuPy; its dataset is the first run's."""
    data = RunPaths(folder / "gpu").data
    given = {"features.cache_dir": str(folder / f"{name}-cache"), "resources.device": "auto"}
    given |= {key.replace("__", "."): value for key, value in flat.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "probe", lambda: FOUND)
        patch.setitem(sys.modules, "cupy", cupy)
        run(tiny_settings(data if data.exists() else None, given), folder / name, executor=OnTheCpu())
    return folder / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(scope="module")
def on_gpu(folder: Path) -> Path:
    """A run whose features the GPU computed."""
    return start(folder, FakeCupy(), "gpu")


@pytest.fixture(scope="module")
def on_cpu(folder: Path, on_gpu: Path) -> Path:
    """The same run where CuPy is not installed."""
    return start(folder, None, "cpu")


def fallbacks(root: Path) -> list[str]:
    return [event["reason"] for event in events(root, "GPU_FALLBACK_DETECTED") if event["what"] == "features"]


def phase_end(root: Path) -> dict[str, Any]:
    return next(event for event in events(root, "GPU_PHASE_END") if event["phase"] == "features")


def test_features_of_a_gpu_are_proven(on_gpu: Path) -> None:
    (checked,), (told,) = events(on_gpu, "GPU_FEATURES_CHECK"), events(on_gpu, "GPU_FEATURES")
    assert checked["passed"] and (told["cases_on_gpu"], told["cases_on_cpu"]) == (5, 0)
    assert fallbacks(on_gpu) == []
    assert phase_end(on_gpu)["on_gpu"] and phase_end(on_gpu)["gpu_seconds"] == told["gpu_seconds"] > 0
    assert [e["moment"] for e in events(on_gpu, "GPU_MEMORY_SNAPSHOT") if e["phase"] == "features"] == ["start", "end"]
    (stats,) = events(on_gpu, "GLOBAL_STATS")
    asked = [event for event in events(on_gpu, "GPU_PHASE_END") if event["asked"]]
    assert stats["gpu_phase_coverage_pct"] == pytest.approx(100 / len(asked))  # the engine was kept off the GPU
    assert verify(on_gpu)["problems"] == []


def test_without_cupy_the_processor_computes_the_same_and_the_log_says_why(on_gpu: Path, on_cpu: Path) -> None:
    (said,) = fallbacks(on_cpu)
    assert "CuPy cannot be used" in said
    assert phase_end(on_cpu)["asked"] and not phase_end(on_cpu)["on_gpu"] and not events(on_cpu, "GPU_FEATURES")
    assert results(on_cpu) == results(on_gpu)


def test_the_caches_keys_say_nothing_of_the_device(folder: Path, on_gpu: Path, on_cpu: Path) -> None:
    """What either computed is found by the other, for its bits do not depend on it."""
    plans = [orjson.loads(RunPaths(root).plan.read_bytes()) for root in (on_gpu, on_cpu)]
    assert plans[0]["feature_digests"] == plans[1]["feature_digests"] and len(plans[0]["feature_digests"]) == 5
    caches = [FeatureCache(folder / f"{name}-cache", sink=NullSink()) for name in ("gpu", "cpu")]
    assert caches[0].entry_keys() == caches[1].entry_keys() == sorted(plans[0]["feature_digests"])


def test_a_gpu_that_fails_midway_is_a_fallback_and_changes_no_bit(folder: Path, on_gpu: Path) -> None:
    cupy, cases = FakeCupy(), itertools.count(1)

    def fail_at_the_third_case(found: np.ndarray) -> np.ndarray:
        if cupy.checked and next(cases) == 3:
            raise RuntimeError("cudaErrorLaunchFailure")
        cupy.checked = cupy.checked or cupy.released > 0
        return found

    cupy.checked, cupy.spoil = False, fail_at_the_third_case
    root = start(folder, cupy, "midway")
    (said,) = fallbacks(root)
    assert "cudaErrorLaunchFailure" in said
    (told,) = events(root, "GPU_FEATURES")
    assert told["cases_on_gpu"] > 0 < told["cases_on_cpu"] and told["cases_on_gpu"] + told["cases_on_cpu"] == 5
    assert phase_end(root)["on_gpu"] and results(root) == results(on_gpu)


def test_features_that_are_not_those_of_the_plan_are_named(folder: Path, on_gpu: Path) -> None:
    """A resume whose features have other bits than the plan was frozen on; here the plan is what was changed."""
    root = folder / "other"
    shutil.copytree(on_gpu, root)
    paths = RunPaths(root)
    plan = orjson.loads(paths.plan.read_bytes())
    key = next(iter(plan["feature_digests"]))
    plan["feature_digests"][key] = "0" * 128
    paths.plan.write_bytes(orjson.dumps(plan))
    paths.report_json.unlink()
    with pytest.raises(IncompatibleError, match="planned with"):
        start(folder, FakeCupy(), "other", strict_numeric=True)
    assert [event["keys"] for event in events(root, "RESUME_FEATURES_DIFFER")] == [[key]]


def test_features_insisting_on_a_gpu_are_refused_where_the_run_has_none() -> None:
    session = SimpleNamespace(settings=tiny_settings(None, {"features.device": "cuda"}), log=MemorySink())
    with pytest.raises(EnvironmentFault) as refused:
        features_on_gpu(session, CPU, None).__enter__()  # type: ignore[arg-type]
    assert "computes on the CPU" in str(refused.value.found)


def test_on_a_cluster_the_processors_compute_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", FakeCupy())
    said: list[str] = []
    use = PhaseUse("features", asked=True, tell=said.append)
    settings = tiny_settings(None, {"features.device": "auto", "resources.ray_address": "head:6379"})
    session = SimpleNamespace(settings=settings, log=MemorySink())
    with features_on_gpu(session, DeviceChoice("cuda", FOUND.gpus), use) as how:  # type: ignore[arg-type]
        assert how is None
    assert said == ["on a cluster features are computed by its processors"]


@pytest.mark.parametrize(("asked", "cupy"), [("cuda", None), ("cpu", FakeCupy())])
def test_the_configuration_can_insist_on_a_device(asked: str, cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Off the GPU nothing is tried and nothing falls back; on it, a GPU that cannot is an error."""
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    log, use = MemorySink(), PhaseUse("features", asked=True)
    session = SimpleNamespace(settings=tiny_settings(None, {"features.device": asked}), log=log)
    device = DeviceChoice("cuda", FOUND.gpus)
    if asked == "cuda":
        with pytest.raises(EnvironmentFault) as refused:
            features_on_gpu(session, device, use).__enter__()  # type: ignore[arg-type]
        assert refused.value.where == "features.device" and "CuPy" in str(refused.value.found)
        return
    with features_on_gpu(session, device, use) as how:  # type: ignore[arg-type]
        assert how is None
    assert log.events == [] and not use.asked and not cupy.puts
