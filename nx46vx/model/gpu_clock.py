"""Seconds that a GPU really worked: between two of its own events, once both have happened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class GpuClock:
    """Adds up the time of passes on one GPU; on torch's CPU there is nothing to add."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on = device.type == "cuda"
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time what is queued inside; on leaving, all of it is done."""
        if not self._on:
            yield
            return
        with torch.cuda.device(self._device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            end.synchronize()
            self.seconds += start.elapsed_time(end) / 1000.0

    @property
    def peak_bytes(self) -> int:
        """Most memory that torch held on the GPU at once."""
        return int(torch.cuda.max_memory_allocated(self._device)) if self._on else 0
