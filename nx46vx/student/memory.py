"""How many patches fit into memory at once, from what the network keeps of one for its backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from nx46vx.runtime import memory

#: Share of the free memory that may be used, and what a patch needs besides what autograd keeps of it.
USABLE = 0.8
WORKSPACE = 1.5


def saved_bytes(forward: Callable[[], torch.Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of a computation, each storage counted once."""
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()  # kept alive until counted, so that no storage is used twice
    total = sum(seen.values())
    del result
    return total


def free_bytes(device: str) -> int:
    """Memory that is free for us; on the GPU with what torch has set aside and does not use."""
    if device != "cuda":
        return memory.free_bytes()
    free, _ = torch.cuda.mem_get_info()
    return int(free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())


def fitting(per_patch: int, model: nn.Module, available: int, most: int) -> int:
    """How many patches fit, 1 to ``most``. The weights, their gradients, both moments and two averages come first."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    room = USABLE * available - 6 * weights
    return max(1, min(most, int(room / max(WORKSPACE * per_patch, 1.0))))
