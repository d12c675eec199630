"""How much runs at once: from cores, memory and devices; a fraction of a GPU is asked for only where there is one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nx46vx.runtime.device import DeviceChoice
from nx46vx.settings import ResourceSettings
from search import resources as room
from search.resources import Resources, plan_resources

GIB = 1 << 30


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend to be a machine of so many cores, free memory and GPUs."""

    def pretend(cpus: int = 2, memory: int = 8 * GIB, gpus: int = 0) -> None:
        device = DeviceChoice("cuda", gpus, "pretended") if gpus else DeviceChoice("cpu", 0, "pretended")
        monkeypatch.setattr(room, "choose_device", lambda wanted: device)
        monkeypatch.setattr(room, "usable_cpus", lambda: cpus)
        monkeypatch.setattr(room.psutil, "virtual_memory", lambda: SimpleNamespace(available=memory))

    return pretend


def planned(**settings: Any) -> Resources:
    return plan_resources(ResourceSettings(**settings))


@pytest.mark.parametrize(
    ("cpus", "memory", "in_flight"),
    [(1, 8 * GIB, 2), (2, 8 * GIB, 4), (4, 64 * GIB, 8), (64, 512 * GIB, 16), (64, 2 * GIB, 3), (4, GIB // 8, 2)],
)
def test_auto_follows_cores_and_memory_within_bounds(machine: Any, cpus: int, memory: int, in_flight: int) -> None:
    machine(cpus, memory)
    plan = planned()
    assert plan.trials_in_flight == in_flight
    assert plan.engine_threads == cpus


def test_what_is_configured_is_taken(machine: Any) -> None:
    machine(2)
    plan = planned(trials_in_flight=7, engine_threads=3)
    assert (plan.trials_in_flight, plan.engine_threads) == (7, 3)


def test_without_a_gpu_none_is_asked_for_even_if_configured(machine: Any) -> None:
    machine(8)
    for plan in (planned(), planned(gpus_per_trial=0.25)):
        assert (plan.engines, plan.gpus_per_trial, plan.gpus_per_engine) == (1, 0.0, 0.0)


@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
@pytest.mark.parametrize("in_flight", ["auto", 1, 3, 16, 135])
def test_engine_and_trials_fit_on_their_gpus_together(machine: Any, gpus: int, in_flight: Any) -> None:
    machine(16, 64 * GIB, gpus)
    plan = planned(trials_in_flight=in_flight)
    assert plan.engines == gpus
    per_gpu = -(-plan.trials_in_flight // gpus)
    assert plan.gpus_per_trial > 0
    assert plan.gpus_per_engine > 0.5, "two engines must not share a GPU"
    assert plan.gpus_per_engine + per_gpu * plan.gpus_per_trial <= 1.0 + 1e-12


def test_a_smaller_fraction_may_be_configured_a_larger_one_is_cut(machine: Any) -> None:
    machine(16, 64 * GIB, 1)
    assert planned(trials_in_flight=4, gpus_per_trial=0.01).gpus_per_trial == pytest.approx(0.01, abs=1e-4)
    assert planned(trials_in_flight=4, gpus_per_trial=1.0).gpus_per_trial <= 0.12


def test_usable_cpus_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert room.usable_cpus() == 3
