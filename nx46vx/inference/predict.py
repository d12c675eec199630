"""From a volume to the probability of surface in each voxel, block by block."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nx46vx.features.blocks import block_windows, iter_blocks
from nx46vx.features.reference import measure_reference
from nx46vx.model.ensemble import Ensemble
from nx46vx.model.metrics import sigmoid


def probability_volume(
    volume: np.ndarray, ensemble: Ensemble, *, block: int, on_block: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """Probability of surface, float32 (z, y, x), of a uint8 volume (z, y, x).

    Only one block of edge ``block`` and its halo has features in memory at a time; the block size changes the values
    by rounding at most. ``on_block`` is told (blocks done, blocks in all).
    """
    names = ensemble.features
    if not names:  # no member helped: the same probability everywhere
        return np.full(volume.shape, sigmoid(np.array(ensemble.intercept)), np.float32)
    reference = measure_reference(volume)
    probability = np.empty(volume.shape, np.float32)
    total = sum(1 for _ in block_windows(volume.shape, block))
    for number, (window, x, g) in enumerate(iter_blocks(volume, reference, names, block=block), start=1):
        z = ensemble.logits(names, x.reshape(len(names), -1), g.reshape(len(names), -1))
        probability[window] = sigmoid(z).reshape(x.shape[1:])
        if on_block is not None:
            on_block(number, total)
    return probability
