"""Proof of where phases ran: what asked for a GPU and did not get one is said, and the figures follow."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from nx46vx.runtime.device import CPU, DeviceChoice, Gpu
from nx46vx.runtime.gpu_memory import GpuMemory
from nx46vx.runtime.gpu_phases import KPIS, GpuLedger
from nx46vx.runtime.sink import MemorySink

GPU = DeviceChoice("cuda", (Gpu(0, "0", "H200", 141 << 30, 140 << 30, "90"),), "1 GPU run kernels")


def ledger(device: DeviceChoice = GPU, **how: Any) -> tuple[GpuLedger, MemorySink]:
    """Its clock goes on by ten seconds at each look."""
    sink, ticks = MemorySink(), itertools.count(0.0, 10.0)
    memory = ((GpuMemory(0, "H200", 141 << 30, 5 << 30),), "")
    return GpuLedger(sink, device, memory=lambda: memory, clock=lambda: next(ticks), **how), sink


def test_a_phase_on_the_gpu_is_proven_by_its_synchronised_seconds() -> None:
    made, sink = ledger()
    with made.phase("train_supervised") as use:
        use.on_gpu(2.5)
    assert [name for name, _ in sink.events] == [
        "GPU_PHASE_START", "GPU_MEMORY_SNAPSHOT", "GPU_MEMORY_SNAPSHOT", "GPU_PHASE_END",
    ]  # fmt: skip
    (end,) = sink.named("GPU_PHASE_END")
    assert (end["on_gpu"], end["gpu_seconds"], end["seconds"], end["asked"]) == (True, 2.5, 10.0, True)
    assert sink.named("GPU_PHASE_START")[0]["device"] == "cuda: H200 (sm_90)"
    assert sink.named("GPU_MEMORY_SNAPSHOT")[0]["gpus"][0]["used_bytes"] == 5 << 30
    assert made.figures() == {"gpu_phase_coverage_pct": 100.0, "gpu_time_ratio": 0.25, "cpu_fallback_count": 0}


def test_a_phase_that_asked_and_ran_on_the_cpu_is_a_fallback_with_its_reason() -> None:
    made, sink = ledger()
    for name in ("segment", "train_supervised"):
        with made.phase(name) as use:
            if name == "train_supervised":
                use.on_gpu(10.0)
    (told,) = sink.named("GPU_FALLBACK_DETECTED")
    assert told["what"] == "segment" and "CPU" in told["reason"]
    assert made.figures() == {"gpu_phase_coverage_pct": 50.0, "gpu_time_ratio": 0.5, "cpu_fallback_count": 1}


@pytest.mark.parametrize(("gpu_seconds", "coverage"), [(0.0, 0.0), (3.0, 100.0)])
def test_a_phase_that_leaves_the_gpu_says_so_at_once_and_once(gpu_seconds: float, coverage: float) -> None:
    made, sink = ledger()
    with made.phase("features") as use:
        use.on_gpu(gpu_seconds)
        use.fall_back("memory ended")
        use.fall_back("again")
        assert sink.named("GPU_FALLBACK_DETECTED") == [{"what": "features", "reason": "memory ended"}]
    assert made.figures()["cpu_fallback_count"] == 1 and made.figures()["gpu_phase_coverage_pct"] == coverage


def test_a_phase_that_asked_for_no_gpu_does_not_fall_back() -> None:
    made, sink = ledger(CPU)
    with made.phase("features") as use:
        use.fall_back("no GPU device on this machine")
    assert not sink.named("GPU_FALLBACK_DETECTED")


def test_a_phase_with_nothing_to_do_asks_for_nothing() -> None:
    made, sink = ledger()
    with made.phase("segment") as use:
        use.nothing_to_do()
    assert not sink.named("GPU_FALLBACK_DETECTED") and not sink.named("GPU_PHASE_END")[0]["asked"]
    assert made.figures()["gpu_phase_coverage_pct"] is None


def test_phases_that_no_gpu_could_help_leave_no_trace() -> None:
    made, sink = ledger()
    with made.phase("discovery"):
        pass
    assert sink.events == []


def test_a_phase_that_fails_is_still_ended_and_is_no_fallback() -> None:
    made, sink = ledger()
    with pytest.raises(ZeroDivisionError), made.phase("train_supervised"):
        _ = 1 / 0
    assert sink.named("GPU_PHASE_END") and not sink.named("GPU_FALLBACK_DETECTED")


def test_on_the_cpu_by_choice_nothing_falls_back() -> None:
    made, sink = ledger(CPU, wanted=False, share=True)
    made.announce()
    with made.phase("train_supervised"):
        pass
    assert not sink.named("GPU_FALLBACK_DETECTED") and not sink.named("GPU_MEMORY_SNAPSHOT")
    assert made.figures() == {"gpu_phase_coverage_pct": None, "gpu_time_ratio": None, "cpu_fallback_count": 0}
    assert set(made.figures()) == set(KPIS)


def test_a_gpu_that_cannot_be_used_is_a_fallback_from_the_start() -> None:
    old = "GPU 0 (Tesla K80) cannot run a kernel: no kernel image"
    made, sink = ledger(DeviceChoice("cpu", (), old, (old,)))
    made.announce()
    assert sink.named("GPU_FALLBACK_DETECTED") == [{"what": "device", "reason": old}]
    assert made.figures()["cpu_fallback_count"] == 1


def test_a_share_of_a_gpu_where_there_is_none_is_a_fallback() -> None:
    made, sink = ledger(DeviceChoice("cpu", (), "no GPU device on this machine"), share=True)
    made.announce()
    assert sink.named("GPU_FALLBACK_DETECTED") == [
        {"what": "resources.gpus_per_trial", "reason": "no GPU device on this machine"}
    ]
