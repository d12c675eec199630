"""How torch computes while a student is at work: deterministic on a CPU, as fast as it can on a GPU; then as before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def numerics(device: str, *, cudnn_benchmark: bool, gpu: int = 0) -> Iterator[None]:
    """On the CPU every operation runs on one thread and by a deterministic algorithm: samples are what is spread over
    threads, so the bits do not depend on their number. On a GPU, number ``gpu`` as torch counts them in this process,
    cuDNN may measure which algorithm is fastest."""
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        if device == "cpu":
            torch.set_num_threads(1)
            torch.use_deterministic_algorithms(True, warn_only=True)
        else:
            torch.backends.cudnn.benchmark = cudnn_benchmark
        with torch.cuda.device(gpu) if device == "cuda" and torch.cuda.is_available() else nullcontext():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
