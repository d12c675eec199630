"""The engine's benchmark on a GPU: its arithmetic, its refusal where there is none, and its path on torch's CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import orjson
import pytest
import torch
from tiny import Ended

from nx46vx.bench import engine_gpu, machine
from nx46vx.bench.engine_gpu import QUICK, Sizes, measure, repeated
from nx46vx.bench.lanes import learnable_data
from nx46vx.bench.machine import find_gpu
from nx46vx.bench.roofline import copy_speed, fit_seconds, moved_per_sample, needed_bytes, share_pct
from nx46vx.errors import UsageError
from nx46vx.model.neuron import bootstrap
from nx46vx.runtime.device import DeviceChoice, Gpu

SMALL = Sizes(
    samples=4000, per_case=200, iterations=1, one_lane_iterations=1, copied_bytes=1 << 16, repetitions=1, full=8000,
    full_iterations=1,
)  # fmt: skip
GPU = Gpu(1, "1", "Pretended", 80 << 30, 79 << 30, "90")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_what_a_pass_moves_is_the_sum_of_its_operations() -> None:
    """The figures of docs/gpu.md for six features."""
    assert moved_per_sample(6) == 96 + 96 + 52 + 140 + 196 + 260 + 140 == 980


def test_memory_of_a_full_size_fit() -> None:
    """Features and gradients alone are 4.8 GB; a 16 GB card holds it, an 8 GB one does not."""
    needed = needed_bytes(25_200_000, 48, 9)
    assert 25_200_000 * 48 * 4 + (1 << 30) < needed < 14 << 30 and needed > 7 << 30


def test_seconds_of_a_fit_and_shares_of_a_memorys_speed() -> None:
    assert fit_seconds(0.02, 25_200_000, 135, 120) == pytest.approx(8.1648)
    assert share_pct(1_000_000_000, 10.0, 200.0) == pytest.approx(50.0)


def test_copying_is_timed() -> None:
    assert 0.01 < copy_speed("cpu", 1 << 20) < 10_000


def test_cases_are_repeated_in_place_and_drawn_whole() -> None:
    base = learnable_data(100, 100)
    data = repeated(base, 2500)
    assert data.train_samples == 2500 and len({case.case_id for case in data.train}) == 25
    assert all(case.features is base.train[0].features for case in data.train)
    assert bootstrap(data, 0, 0).size == 25, "groups are cases"
    assert repeated(base, 100).train_samples == 2000


def test_every_figure_is_measured_on_torchs_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure(SMALL, "cpu", "torch on a CPU").to_json()
    figures = found["spread"]
    assert figures.keys() == {
        "ns_per_sample_lane_iter", "single_lane_ns_per_sample_iter", "pass_ms", "full_size_s", "copy_gb_per_s",
        "features_of_copy_pct", "moved_of_copy_pct",
    }  # fmt: skip
    assert all(found[name] > 0 for name in figures)
    assert (found["samples"], found["lanes"], found["device"]) == (4000, 135, "torch on a CPU")
    assert found["full_size"] == "measured: 8000 samples, 1 iterations"
    assert found["moved_bytes_per_pass"] * 48 == found["feature_bytes_per_pass"] * 980
    blocks = found["feature_bytes_per_pass"] / (1024 * 12 * 4)
    assert 9 < blocks <= 9 * 4, "of four blocks, each of nine tiles reads those that hold a drawn case"
    expected = share_pct(found["feature_bytes_per_pass"], found["pass_ms"], found["copy_gb_per_s"])
    assert found["features_of_copy_pct"] == pytest.approx(expected)
    assert found["options"] == ["GPU_PRECISION_DECISION: mode float32, reason this device has no TF32"]


def test_what_does_not_fit_is_scaled_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_gpu, "free_bytes", lambda device: 1 << 30)
    found = measure(SMALL, "cpu", "torch on a CPU").to_json()
    assert found["full_size"].startswith("scaled: from 4000 to 8000 samples; measuring takes about 2.0 GiB, 1.0 GiB")
    assert found["full_size_s"] == pytest.approx(fit_seconds(found["ns_per_sample_lane_iter"], 8000, 135, 120))


def test_without_a_gpu_it_refuses_and_names_what_was_found(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., Ended]
) -> None:
    old = "GPU 0 (Tesla K80) cannot run a kernel: no kernel image"
    monkeypatch.setattr(machine, "choose_device", lambda asked: DeviceChoice("cpu", (), old, (old,)))
    monkeypatch.setattr(engine_gpu, "measure", lambda *given: pytest.fail("there is nothing to measure"))
    done = command("bench", "engine", "--device", "cuda", "--quick")
    assert done.code == UsageError.exit_code and old in done.stderr and "--device auto" in done.stderr
    assert done.stdout == "" and find_gpu("auto") is None
    assert command("bench", "engine", "--device", "gpu").code == 2


def test_a_gpu_that_is_there_is_measured_under_its_number(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., Ended]
) -> None:
    asked: list[object] = []
    real = measure

    def on_cpu(sizes: Sizes, device: str, name: str) -> object:
        asked.extend((sizes, device))
        return real(SMALL, "cpu", name)

    monkeypatch.setattr(machine, "choose_device", lambda asked: DeviceChoice("cuda", (GPU,), "pretended"))
    monkeypatch.setattr(engine_gpu, "measure", on_cpu)
    done = command("bench", "engine", "--device", "auto", "--quick", "--json")
    assert done.code == 0, done.stderr
    found = orjson.loads(done.stdout)
    assert asked == [QUICK, "cuda:1"] and found["device"] == "Pretended (sm_90)" and found["quick"]
