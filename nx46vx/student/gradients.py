"""The gradient of a batch: sample by sample on several threads, or in micro-batches on a device.

On the CPU each sample's gradient is computed on one thread and added in the batch's order, so the sum has the same
bits on any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Protocol

import torch
from torch import nn

from nx46vx.runtime.sink import EventSink

#: Loss of each sample (n,) from patches, labels and the bottleneck's factors, all of n samples.
Losses = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Gradients(Protocol):
    """Puts the gradient of a batch's mean loss, times ``scale``, into the parameters; returns the loss of each."""

    def __call__(
        self, losses: Losses, image: torch.Tensor, label: torch.Tensor, keep: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor: ...


class BySample:
    """Samples on the threads of an executor."""

    def __init__(self, parameters: Sequence[nn.Parameter], executor: Executor) -> None:
        self._parameters, self._executor = list(parameters), executor

    def __call__(
        self, losses: Losses, image: torch.Tensor, label: torch.Tensor, keep: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        size = len(image)

        def one(k: int) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
            loss = losses(image[k : k + 1], label[k : k + 1], keep[k : k + 1])[0]
            return loss.detach(), torch.autograd.grad(loss * (scale / size), self._parameters)

        for parameter in self._parameters:
            parameter.grad = None
        told = []
        for loss, gradients in self._executor.map(one, range(size)):
            told.append(loss)
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return torch.stack(told)


class ByMicroBatch:
    """``size`` samples at a time; halved, for good, when they turn out not to fit (``STUDENT_MICRO_BATCH``)."""

    def __init__(self, parameters: Sequence[nn.Parameter], size: int, sink: EventSink) -> None:
        self._parameters, self.size, self._sink = list(parameters), size, sink

    def __call__(
        self, losses: Losses, image: torch.Tensor, label: torch.Tensor, keep: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        while True:
            try:
                return self._whole(losses, image, label, keep, scale)
            except torch.OutOfMemoryError as error:
                if self.size == 1:
                    raise
                self.size //= 2
                reason = str(error).splitlines()[0][:200]
            torch.cuda.empty_cache()
            self._sink.emit("STUDENT_MICRO_BATCH", micro_batch=self.size, reason=f"out of memory: {reason}")

    def _whole(
        self, losses: Losses, image: torch.Tensor, label: torch.Tensor, keep: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        for parameter in self._parameters:
            parameter.grad = None
        told = []
        for first in range(0, len(image), self.size):
            part = slice(first, first + self.size)
            loss = losses(image[part], label[part], keep[part])
            (loss.sum() * (scale / len(image))).backward()
            told.append(loss.detach())
        return torch.cat(told)
