"""What a pass on a GPU moves through its memory, against what the memory can move; and what a fit takes."""

from __future__ import annotations

import time

from nx46vx.model.candidates import TILE

#: Bytes of a float32.
_FLOAT = 4
#: Working memory of a pass on the device: the columns, logits and curves of a chunk, and what products need besides.
WORKING_BYTES = 2 << 30
#: Copies that are timed together.
_COPIES = 8


def moved_per_sample(view: int) -> int:
    """Bytes read and written per sample and tile, operation by operation as ``model.passes_gpu`` computes them, for a
    view of so many features, if nothing stays on the chip between two operations."""
    columns = 3 * view + 1
    floats = (
        4 * view  # gather x and g: read, written
        + 4 * view  # x less its mean, over its deviation: twice read and written
        + 2 * view + 1  # squares, and the ones
        + columns + TILE  # logits
        + 3 * TILE + 1  # softplus, and its weighted sum
        + 4 * TILE + 1  # sigmoid, times the weight
        + columns + TILE  # gradient
    )  # fmt: skip
    return _FLOAT * floats


def needed_bytes(samples: int, rows: int, tiles: int) -> int:
    """Memory of a device that a fit takes, roughly and rather too much: ``rows`` features and gradients of each sample,
    its label, validity and group; a weight for each tile and one more while it is made; and the working memory."""
    return samples * (_FLOAT * rows + 1 + 1 + 8 + _FLOAT * (tiles + 1)) + WORKING_BYTES


def fit_seconds(ns: float, samples: int, lanes: int, iterations: int) -> float:
    """Seconds of a fit from nanoseconds per sample, lane and iteration."""
    return 1e-9 * ns * samples * lanes * iterations


def share_pct(moved: int, milliseconds: float, gb_per_s: float) -> float:
    """Bytes moved in some time, in percent of what a memory of that speed (1e9 bytes a second) moves in it."""
    return 100.0 * moved / (1e-3 * milliseconds) / (1e9 * gb_per_s)


def copy_speed(device: str, size: int) -> float:
    """Bytes read and written per second, in 1e9, while ``size`` bytes are copied on a device of torch's."""
    import torch

    source = torch.ones(size // _FLOAT, device=device)
    target = torch.empty_like(source)
    target.copy_(source)

    def wait() -> None:
        if source.is_cuda:
            torch.cuda.synchronize(device)

    wait()
    started = time.perf_counter()
    for _ in range(_COPIES):
        target.copy_(source)
    wait()
    return 1e-9 * 2 * source.nbytes * _COPIES / (time.perf_counter() - started)
