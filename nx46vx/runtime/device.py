"""Which device the engine runs on, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nx46vx.errors import EnvironmentFault


@dataclass(frozen=True)
class DeviceChoice:
    """``name`` is ``cpu`` or ``cuda``; ``count`` the number of usable GPUs (0 on the CPU); ``reason`` in words."""

    name: str
    count: int
    reason: str


def choose_device(asked: Literal["auto", "cpu", "cuda"]) -> DeviceChoice:
    """The device asked for, or the best there is. A GPU counts only if it really runs a kernel.

    Raises:
        EnvironmentFault: ``cuda`` is asked for and no GPU runs a kernel.
    """
    if asked == "cpu":
        return DeviceChoice("cpu", 0, "asked for")
    usable, reason = _probe_gpus()
    if usable:
        return DeviceChoice("cuda", usable, reason)
    if asked == "cuda":
        raise EnvironmentFault(
            "the configuration asks for a GPU", where="resources.device", found=reason,
            fix="set resources.device to cpu or auto, or mend the driver",
        )  # fmt: skip
    return DeviceChoice("cpu", 0, reason)


def _probe_gpus() -> tuple[int, str]:
    """Number of GPUs that ran a kernel, and what was found. Imports torch only where a GPU may be."""
    import glob

    if not glob.glob("/dev/nvidia[0-9]*") and not glob.glob("/dev/dxg"):
        return 0, "no GPU device on this machine"
    import torch

    if not torch.cuda.is_available():
        return 0, "torch sees no GPU"
    usable, failures = 0, []
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        try:
            value = (torch.ones(8, device=f"cuda:{index}") * 2).sum().item()
            if value != 16.0:
                raise RuntimeError(f"a kernel gave {value} for 16")
            usable += 1
        except Exception as error:
            failures.append(f"GPU {index} ({name}) cannot run a kernel: {error}")
    return usable, "; ".join(failures) if failures else f"{usable} GPU run kernels"
