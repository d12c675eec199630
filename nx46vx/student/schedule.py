"""The learning rate over the steps, and the running average of the weights."""

from __future__ import annotations

import math

import torch
from torch import nn

#: The rate at the end, as a share of the highest.
FLOOR = 0.01


def learning_rate(step: int, total: int, highest: float, warmup_share: float) -> float:
    """The rate of step ``step`` (from 0) of ``total``: a linear rise, then half a cosine (Loshchilov & Hutter 2017)."""
    warmup = max(round(warmup_share * total), 1)
    if step < warmup:
        return highest * (step + 1) / warmup
    done = (step - warmup) / max(total - warmup, 1)
    return highest * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights towards the model's after optimiser step ``step`` (from 1); faster in the beginning."""
    keep = min(decay, step / (step + 9.0))
    for mean, value in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(value, 1.0 - keep)
