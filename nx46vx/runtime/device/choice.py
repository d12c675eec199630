"""The device asked for, or the best there is; several GPUs are put in the order that the configuration wants."""

from __future__ import annotations

from typing import Literal

from nx46vx.errors import EnvironmentFault
from nx46vx.runtime.device.found import CPU, DeviceChoice, Gpu
from nx46vx.runtime.device.probe import probe
from nx46vx.settings import GpuPolicy


def choose_device(asked: Literal["auto", "cpu", "cuda"], policy: GpuPolicy = "most_memory") -> DeviceChoice:
    """The device asked for, or the best there is. A GPU counts only if it really runs a kernel.

    Raises:
        EnvironmentFault: ``cuda`` is asked for and no GPU runs a kernel.
    """
    if asked == "cpu":
        return CPU
    found = probe()
    if found.gpus:
        return DeviceChoice("cuda", in_order(found.gpus, policy), found.reason, found.failures)
    if asked == "cuda":
        raise EnvironmentFault(
            "the configuration asks for a GPU", where="resources.device", found=found.reason,
            fix="set resources.device to cpu or auto, or mend the driver",
        )  # fmt: skip
    return DeviceChoice("cpu", (), found.reason, found.failures)


def in_order(gpus: tuple[Gpu, ...], policy: GpuPolicy) -> tuple[Gpu, ...]:
    """The GPUs by policy; equal ones as the driver counts them."""
    if policy == "index":
        return tuple(sorted(gpus, key=lambda gpu: gpu.index))
    size = {"most_memory": lambda gpu: gpu.total_bytes, "most_free": lambda gpu: gpu.free_bytes}[policy]
    return tuple(sorted(gpus, key=lambda gpu: (-size(gpu), gpu.index)))
