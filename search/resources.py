"""How much runs at once: trials in flight, engine threads, GPU fractions. Changes no result."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil

from nx46vx.runtime.device import DeviceChoice, choose_device
from nx46vx.settings import ResourceSettings

#: Resident memory of one trial process, measured: 125 MB of its own.
TRIAL_BYTES = 160 << 20
#: Trials in flight when the run is accelerated, as a multiple.
ACCELERATED = 2
#: More trials in flight than this feed an engine no better; starting processes is what costs.
TRIALS_ENOUGH = 16


@dataclass(frozen=True)
class Resources:
    """``gpus_per_trial`` and ``gpus_per_engine`` are 0 where the engine runs on the CPU: then none is asked for.

    ``most_in_flight``: trials in flight once the run is accelerated; what each asks of Ray leaves room for so many.
    """

    device: DeviceChoice
    engines: int
    engine_threads: int
    trials_in_flight: int
    most_in_flight: int
    gpus_per_trial: float
    gpus_per_engine: float


def usable_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plan_resources(settings: ResourceSettings) -> Resources:
    """Settle every ``auto``.

    Raises:
        EnvironmentFault: a GPU is asked for and none can run a kernel.
    """
    device = choose_device(settings.device)
    cpus = usable_cpus()
    memory = psutil.virtual_memory().available
    auto = max(2, min(TRIALS_ENOUGH, 2 * cpus, int(memory * 0.25 / TRIAL_BYTES)))
    in_flight = auto if settings.trials_in_flight == "auto" else settings.trials_in_flight
    most = max(in_flight, min(ACCELERATED * in_flight, int(memory * 0.25 / TRIAL_BYTES)))
    threads = cpus if settings.engine_threads == "auto" else settings.engine_threads
    engines = max(1, device.count)
    if device.name == "cpu":
        return Resources(device, 1, threads, in_flight, most, 0.0, 0.0)
    per_device = -(-most // engines)
    engine_share = 0.52  # more than half: two engines never share a GPU
    share = (1 - engine_share) / per_device
    asked = share if settings.gpus_per_trial == "auto" else min(settings.gpus_per_trial, share)
    return Resources(device, engines, threads, in_flight, most, round(asked - 5e-5, 4), engine_share)
