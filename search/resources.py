"""How much runs at once, and where: trials in flight, engines, threads, shares of a GPU. Changes no result."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import floor
from typing import Any

import psutil

from nx46vx.model.options import EngineOptions
from nx46vx.runtime.device import DeviceChoice, choose_device
from nx46vx.settings import ResourceSettings

#: Resident memory of one trial process, measured: 125 MB of its own.
TRIAL_BYTES = 160 << 20
#: Trials in flight when the run is accelerated, as a multiple.
ACCELERATED = 2
#: More trials in flight than this feed an engine no better; starting processes is what costs.
TRIALS_ENOUGH = 16
#: What an engine on a cluster asks for. Trials' shares are such that this much is left on every machine, so that an
#: engine whose machine is lost finds room elsewhere.
ENGINE_CPUS = 0.001
#: The finest share of a GPU that Ray counts.
STEP = 1e-4


@dataclass(frozen=True)
class Spot:
    """Where one engine runs. ``gpu``: its id as ``CUDA_VISIBLE_DEVICES`` names it, ``kind`` what it is; both empty on
    the CPU. ``node``: the cluster's id of its machine, empty for this one."""

    device: str = "cpu"
    gpu: str = ""
    kind: str = ""
    node: str = ""
    threads: int = 1


@dataclass(frozen=True)
class Node:
    """A machine of a cluster. ``memory_bytes`` is what is free there; ``numeric`` what decides bits there."""

    id: str
    host: str
    cpus: int
    memory_bytes: int
    device: DeviceChoice
    numeric: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Resources:
    """``gpus_per_trial``: share of a GPU that each trial asks Ray for, 0 where there is none. Engines ask for none:
    each is bound to its own, so trials' shares alone decide how many run at once.

    ``most_in_flight``: trials in flight once the run is accelerated. ``nodes``: of the cluster, if there is one;
    ``here``: which of them is this machine, if one is.
    """

    device: DeviceChoice
    spots: tuple[Spot, ...]
    engine_threads: int
    trials_in_flight: int
    most_in_flight: int
    gpus_per_trial: float = 0.0
    cpus_per_trial: float = 1.0
    options: EngineOptions = field(default_factory=EngineOptions)
    nodes: tuple[Node, ...] = ()
    here: str = ""

    @property
    def engines(self) -> int:
        return len(self.spots)


def usable_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plan_resources(settings: ResourceSettings, nodes: Sequence[Node] = (), here: str = "") -> Resources:
    """Settle every ``auto``; ``nodes``: the machines of a cluster, ``here`` is this one's id; none: this one alone.

    Raises:
        EnvironmentFault: a GPU is asked for and none can run a kernel.
    """
    if not nodes:
        device = choose_device(settings.device, settings.gpu_policy)
        return _planned(settings, [Node("", "", usable_cpus(), psutil.virtual_memory().available, device)])
    return replace(_planned(settings, list(nodes)), nodes=tuple(nodes), here=here)


def _planned(settings: ResourceSettings, machines: list[Node]) -> Resources:
    cpus, memory = sum(one.cpus for one in machines), sum(one.memory_bytes for one in machines)
    auto = max(2, min(TRIALS_ENOUGH * len(machines), 2 * cpus, int(memory * 0.25 / TRIAL_BYTES)))
    in_flight = auto if settings.trials_in_flight == "auto" else settings.trials_in_flight
    most = max(in_flight, min(ACCELERATED * in_flight, int(memory * 0.25 / TRIAL_BYTES)))
    spots = _spots(settings, machines)
    device = _used(machines, spots)
    share, options = 0.0, EngineOptions()
    if device.name == "cuda":
        asked = settings.gpus_per_trial
        share = _stepped(1 / -(-most // len(spots)) if asked == "auto" else asked, STEP)
        room = len(spots) * floor(1 / share + 1e-6)
        in_flight, most = min(in_flight, room), min(most, room)
        options = EngineOptions(settings.mixed_precision == "auto", settings.compile, settings.cuda_graphs)
    cpu_share = min(1.0, max(_stepped(cpus / (most + len(machines)), 0.01), 0.01))
    if machines[0].id:
        cpu_share = min(cpu_share, 0.99) + ENGINE_CPUS
    room = sum(floor(one.cpus / cpu_share + 1e-6) for one in machines)
    return Resources(device, spots, spots[0].threads, min(in_flight, room), min(most, room), share, cpu_share, options)


def _stepped(value: float, step: float) -> float:
    """The largest multiple of a step that is not above a value."""
    return round(floor(value / step + 1e-6) * step, 4)


def _spots(settings: ResourceSettings, machines: list[Node]) -> tuple[Spot, ...]:
    """One for each GPU, dealt round the machines; where there is none, one for each machine's CPU."""

    def threads(one: Node) -> int:
        return one.cpus if settings.engine_threads == "auto" else settings.engine_threads

    deepest = max(one.device.count for one in machines)
    gpus = [
        Spot("cuda", one.device.gpus[rank].id, one.device.gpus[rank].kind, one.id, threads(one))
        for rank in range(deepest)
        for one in machines
        if rank < one.device.count
    ]
    if gpus:
        return tuple(gpus if settings.gpus == "auto" else gpus[: settings.gpus])
    return tuple(Spot(node=one.id, threads=threads(one)) for one in machines)


def _used(machines: list[Node], spots: tuple[Spot, ...]) -> DeviceChoice:
    """The machines' devices as one, as far as engines use them."""
    if len(machines) == 1:
        only = machines[0].device
        return replace(only, gpus=only.gpus[: len(spots)]) if only.gpus else only
    used = {(spot.node, spot.gpu) for spot in spots}
    gpus = tuple(gpu for one in machines for gpu in one.device.gpus if (one.id, gpu.id) in used)
    failures = tuple(f"{one.host}: {failure}" for one in machines for failure in one.device.failures)
    reason = "; ".join(f"{one.host}: {one.device.reason}" for one in machines)
    return DeviceChoice("cuda" if gpus else "cpu", gpus, reason, failures)
