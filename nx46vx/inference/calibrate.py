"""Mask thresholds chosen on validation volumes, with the very steps that make the masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nx46vx.inference.postprocess import MaskParameters, make_mask

#: Quantiles of the surface voxels' probabilities between which thresholds are tried.
STEPS = 12


@dataclass(frozen=True)
class Calibration:
    """The chosen parameters and the voxel F0.5 they reach on the volumes they were chosen on."""

    parameters: MaskParameters
    f_half: float
    tried: int


def calibrate_mask(
    volumes: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    strong: float | None,
    weak: float | None,
    make: Callable[[float, float], MaskParameters],
) -> Calibration:
    """Choose the hysteresis thresholds with the best voxel F0.5 of the finished masks, pooled over volumes.

    ``volumes`` holds (probability float32, label uint8) pairs (z, y, x); label 2 does not count. First one threshold
    for both, then the weak one below it, then the strong one above that. A threshold that is given is kept.
    """
    levels = _levels(volumes)
    scores: dict[tuple[float, float], float] = {}

    def best(pairs: list[tuple[float, float]]) -> tuple[float, float]:
        for pair in pairs:
            if pair not in scores:
                scores[pair] = _f_half(volumes, make(*pair))
        return max(pairs, key=lambda pair: (scores[pair], -pair[0], -pair[1]))

    if strong is not None and weak is not None:
        chosen = best([(strong, weak)])
    elif strong is not None:
        chosen = best([(strong, level) for level in levels if level < strong] + [(strong, strong)])
    elif weak is not None:
        chosen = best([(weak, weak)] + [(level, weak) for level in levels if level > weak])
    else:
        both, _ = best([(level, level) for level in levels])
        _, low = best([(both, level) for level in levels if level <= both])
        chosen = best([(level, low) for level in levels if level >= low])
    return Calibration(make(*chosen), scores[chosen], len(scores))


def _f_half(volumes: Sequence[tuple[np.ndarray, np.ndarray]], parameters: MaskParameters) -> float:
    tp = fp = fn = 0
    for probability, label in volumes:
        mask = make_mask(probability, parameters) == 1
        tp += int(np.count_nonzero(mask & (label == 1)))
        fp += int(np.count_nonzero(mask & (label == 0)))
        fn += int(np.count_nonzero(~mask & (label == 1)))
    denominator = 1.25 * tp + 0.25 * fn + fp
    return 1.25 * tp / denominator if denominator else 0.0


def _levels(volumes: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    """Thresholds worth trying: quantiles of the probabilities of surface voxels, two digits, ascending."""
    surface = np.concatenate([probability[label == 1].ravel() for probability, label in volumes])
    if surface.size == 0:
        return [0.5]
    quantiles = np.quantile(surface, np.linspace(0.05, 0.9, STEPS))
    return sorted({float(min(max(round(float(q), 2), 0.02), 0.98)) for q in quantiles})
