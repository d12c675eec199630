"""How much runs at once: from cores, memory and devices; a fraction of a GPU is asked for only where there is one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nx46vx.errors import UsageError
from nx46vx.model.options import EngineOptions
from nx46vx.runtime.device import DeviceChoice, Gpu
from nx46vx.settings import ResourceSettings, load_settings
from search import resources as room
from search.resources import ENGINE_CPUS, Node, Resources, Spot, plan_resources
from search.student import own_device

GIB = 1 << 30


def some_gpus(count: int, ids: str = "0123456789") -> DeviceChoice:
    made = tuple(Gpu(index, ids[index], "Pretended", 80 * GIB, 79 * GIB, "90") for index in range(count))
    return DeviceChoice("cuda", made, "pretended")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend to be a machine of so many cores, free memory and GPUs."""

    def pretend(cpus: int = 2, memory: int = 8 * GIB, gpus: int = 0) -> None:
        device = some_gpus(gpus) if gpus else DeviceChoice("cpu", (), "pretended")
        monkeypatch.setattr(room, "choose_device", lambda wanted, policy: device)
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
    for plan in (planned(), planned(gpus_per_trial=0.25, mixed_precision="auto", compile=True, cuda_graphs=True)):
        assert plan.gpus_per_trial == 0.0
        assert plan.spots == (Spot("cpu", threads=8),)
        assert plan.options == EngineOptions()


@pytest.mark.parametrize("gpus", [1, 2, 3, 8])
@pytest.mark.parametrize("in_flight", ["auto", 1, 3, 16, 135])
def test_by_itself_every_trial_in_flight_fits(machine: Any, gpus: int, in_flight: Any) -> None:
    machine(16, 64 * GIB, gpus)
    plan, free = planned(trials_in_flight=in_flight), planned(trials_in_flight=in_flight, device="cpu")
    assert plan.trials_in_flight == free.trials_in_flight and plan.most_in_flight == free.most_in_flight
    assert plan.gpus_per_trial > 0
    per_gpu = -(-plan.most_in_flight // gpus)
    assert per_gpu * plan.gpus_per_trial <= 1.0 + 1e-12


@pytest.mark.parametrize(
    ("gpus", "share", "room_for"),
    [(1, 1.0, 1), (1, 0.5, 2), (2, 0.5, 4), (1, 0.34, 2), (1, 0.33, 3), (2, 1.0, 2), (1, 0.01, 8), (1, 0.0001, 8)],
)
def test_a_configured_share_is_what_ray_is_asked_for_and_decides_how_many_run(
    machine: Any, gpus: int, share: float, room_for: int
) -> None:
    machine(4, 64 * GIB, gpus)
    plan = planned(trials_in_flight=8, gpus_per_trial=share)
    assert plan.gpus_per_trial == share
    assert plan.trials_in_flight == min(8, room_for)
    assert plan.most_in_flight >= plan.trials_in_flight
    assert plan.most_in_flight <= gpus * int(1 / share + 1e-9)


@pytest.mark.parametrize("share", [0, -0.1, 1.01, 2, "half", 0.00001])
def test_an_impossible_share_is_refused_by_its_key(share: Any) -> None:
    with pytest.raises(UsageError, match=r"resources\.gpus_per_trial") as caught:
        load_settings(None, overrides={"resources.gpus_per_trial": share}, environ={})
    assert str(share) in str(caught.value) and caught.value.exit_code == 2


def test_engines_are_bound_to_gpus_in_the_order_of_the_choice(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(4)
    monkeypatch.setattr(room, "choose_device", lambda wanted, policy: some_gpus(3, ids="501"))
    kind = "Pretended (sm_90)"
    assert planned().spots == tuple(Spot("cuda", name, kind, threads=4) for name in "501")
    fewer = planned(gpus=2)
    assert fewer.spots == tuple(Spot("cuda", name, kind, threads=4) for name in "50")
    assert fewer.device.count == 2 and fewer.engines == 2
    assert planned(gpus=9).engines == 3


def test_options_reach_the_engines_on_gpus(machine: Any) -> None:
    machine(4, gpus=1)
    assert planned().options == EngineOptions(mixed_precision=True)
    assert planned(mixed_precision="off", compile=True, cuda_graphs=True).options == EngineOptions(False, True, True)


@pytest.mark.parametrize("cpus", [1, 2, 3, 16, 64])
@pytest.mark.parametrize("in_flight", ["auto", 1, 5, 60])
def test_trials_in_flight_fit_on_the_processors(machine: Any, cpus: int, in_flight: Any) -> None:
    machine(cpus, 64 * GIB)
    plan = planned(trials_in_flight=in_flight)
    assert 0 < plan.cpus_per_trial <= 1
    assert plan.most_in_flight * plan.cpus_per_trial <= cpus + 1e-9


# A cluster


def node(name: str, cpus: int = 8, gpus: int = 0) -> Node:
    return Node(name, f"host-{name}", cpus, 64 * GIB, some_gpus(gpus) if gpus else DeviceChoice("cpu", (), "none"))


def on(*nodes: Node, here: str = "a", **settings: Any) -> Resources:
    return plan_resources(ResourceSettings(**settings), nodes, here)


def test_every_machine_of_a_cluster_has_an_engine() -> None:
    plan = on(node("a"), node("b", 4), node("c", 2))
    assert plan.spots == (Spot(node="a", threads=8), Spot(node="b", threads=4), Spot(node="c", threads=2))
    assert (plan.here, plan.device.name, [one.id for one in plan.nodes]) == ("a", "cpu", ["a", "b", "c"])


def test_gpus_of_a_cluster_are_dealt_round_its_machines_and_cpus_stand_by() -> None:
    plan = on(node("a"), node("b", gpus=2), node("c", gpus=1))
    assert [(spot.node, spot.gpu) for spot in plan.spots] == [("b", "0"), ("c", "0"), ("b", "1")]
    assert plan.device.name == "cuda" and plan.device.count == 3
    assert [(s.node, s.gpu) for s in on(node("a"), node("b", gpus=2), node("c", gpus=1), gpus=2).spots] == [
        ("b", "0"), ("c", "0"),
    ]  # fmt: skip


def test_a_cluster_runs_more_trials_than_one_machine() -> None:
    alone, together = on(node("a", 16)), on(*(node(name, 16) for name in "abcd"))
    assert together.trials_in_flight == 4 * alone.trials_in_flight


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 4), (2,), (8, 8, 8, 8), (3, 5, 7)])
@pytest.mark.parametrize("in_flight", ["auto", 1, 9, 200])
def test_every_machine_has_room_for_an_engine_that_lost_its_own(sizes: tuple[int, ...], in_flight: Any) -> None:
    """Trials wait for engines: were they to take all, an engine could never come back."""
    plan = on(*(node(str(number), size) for number, size in enumerate(sizes)), trials_in_flight=in_flight)
    room_for = [int(size / plan.cpus_per_trial + 1e-9) for size in sizes]
    for size, trials in zip(sizes, room_for, strict=True):
        assert size - trials * plan.cpus_per_trial >= ENGINE_CPUS - 1e-9
    assert plan.trials_in_flight <= sum(room_for) and plan.trials_in_flight >= 1


def test_usable_cpus_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert room.usable_cpus() == 3


def test_students_stay_on_this_machine_whatever_else_the_cluster_has() -> None:
    cpu = DeviceChoice("cpu", (), "none")
    nodes = [Node("a", "a", 4, 8 * GIB, cpu), Node("b", "b", 4, 8 * GIB, some_gpus(2))]
    assert own_device(plan_resources(ResourceSettings(), nodes, "a")) == cpu
    assert own_device(plan_resources(ResourceSettings(), nodes, "b")) == some_gpus(2)
    assert own_device(plan_resources(ResourceSettings(), nodes, "elsewhere")).name == "cpu"


def test_without_a_cluster_students_get_what_the_engines_get(machine: Any) -> None:
    machine(4, gpus=2)
    assert own_device(planned(gpus=1)) == some_gpus(1)
