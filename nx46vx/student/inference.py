"""A trained student over whole volumes."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor

import numpy as np
import torch

from nx46vx.student.spec import StudentSpec
from nx46vx.student.unet import Network, build_network
from nx46vx.student.windows import Segmenter


def uses_amp(spec: StudentSpec) -> bool:
    """Whether the network computes in mixed precision."""
    return spec.device == "cuda" if spec.settings.amp == "auto" else bool(spec.settings.amp)


def placed(net: Network, spec: StudentSpec) -> Network:
    """The network on its device, in its memory layout."""
    net = net.to(torch.device(spec.device))
    if not spec.settings.channels_last:
        return net
    layout = torch.channels_last_3d if spec.variant == "3d" else torch.channels_last
    return net.to(memory_format=layout)  # type: ignore[call-overload]


def moved(x: torch.Tensor, spec: StudentSpec) -> torch.Tensor:
    """Patches (n, 1, D, H, W) where and as the network wants them."""
    x = x.to(torch.device(spec.device), non_blocking=True)
    volumetric = spec.settings.channels_last and spec.variant == "3d"
    return x.contiguous(memory_format=torch.channels_last_3d) if volumetric else x


def segmenter_of(net: Network, spec: StudentSpec, executor: Executor, batch: int) -> Segmenter:
    """Whole volumes through a network: windows on the executor's threads on a CPU, ``batch`` at a time on a GPU."""

    def logits_of(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(spec.device, enabled=uses_amp(spec)):
            outputs: list[torch.Tensor] = net(moved(x, spec))
        return outputs[0]

    on_cpu = spec.device == "cpu"
    return Segmenter(
        logits_of,
        spec.patch,
        spec.settings.overlap,
        spec.threads if on_cpu else batch,
        executor if on_cpu else None,
        spec.settings.sides,
    )


def trained_network(spec: StudentSpec, arrays: Mapping[str, np.ndarray], part: str = "best") -> Network:
    """The network with the weights that a checkpoint's arrays hold."""
    net = placed(build_network(spec, 0), spec).requires_grad_(False)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(torch.from_numpy(arrays[f"{part}/{name}"]))
    return net
