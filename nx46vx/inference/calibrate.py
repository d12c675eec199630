"""The thresholds of a mask rule, chosen on validation volumes with the very steps that make the masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nx46vx.inference.masks.doubt import Prediction
from nx46vx.inference.masks.parameters import MaskRule
from nx46vx.inference.masks.profile import VolumeProfile
from nx46vx.inference.postprocess import mask_of
from nx46vx.model.metrics import Counts

#: Multiples of the expected surface that are tried where thresholds follow the volume.
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.5, 1.9, 2.4)
#: Quantiles of the surface voxels' probabilities between which thresholds are tried, where they do not.
STEPS = 12

Labelled = tuple[Prediction, np.ndarray]


@dataclass(frozen=True)
class Calibration:
    """The chosen rule, and the voxel F1 and F0.5 that it reaches on the volumes it was chosen on."""

    rule: MaskRule
    f1: float
    f_half: float
    tried: int


def calibrate_mask(volumes: Sequence[Labelled], start: MaskRule, *, strong: bool, weak: bool) -> Calibration:
    """Choose the hysteresis thresholds with the best voxel F1 of the finished masks, pooled over volumes.

    F1, not F0.5: a hole in a sheet costs the competition's score more than a sheet a voxel too thick.

    ``volumes`` holds (prediction, label uint8) pairs; label 2 does not count. First one threshold for both, then the
    weak one below it, then the strong one above that. ``strong`` and ``weak`` say which are to be chosen; the other
    stays as it is in ``start``.
    """
    profiles = [VolumeProfile.of(prediction) for prediction, _ in volumes]
    levels = list(SHARES) if start.per_volume else _levels(volumes)
    counts: dict[tuple[float, float], Counts] = {}

    def loose(level: float) -> float:
        """The larger, the more voxels reach this level."""
        return level if start.per_volume else -level

    def best(pairs: list[tuple[float, float]]) -> tuple[float, float]:
        """The pair with the best score; the loosest among equals."""
        for pair in pairs:
            if pair not in counts:
                counts[pair] = _count(volumes, profiles, replace(start, strong=pair[0], weak=pair[1]))
        return max(pairs, key=lambda pair: (_f_beta(counts[pair], 1.0), loose(pair[0]), loose(pair[1])))

    if not strong and not weak:
        chosen = best([(start.strong, start.weak)])
    elif not strong:
        chosen = best(
            [(start.strong, level) for level in [start.strong, *levels] if loose(level) >= loose(start.strong)]
        )
    elif not weak:
        chosen = best([(level, start.weak) for level in [start.weak, *levels] if loose(level) <= loose(start.weak)])
    else:
        both, _ = best([(level, level) for level in levels])
        _, low = best([(both, level) for level in levels if loose(level) >= loose(both)])
        chosen = best([(level, low) for level in levels if loose(level) <= loose(low)])
    reached = counts[chosen]
    rule = replace(start, strong=chosen[0], weak=chosen[1])
    return Calibration(rule, _f_beta(reached, 1.0), _f_beta(reached, 0.5), len(counts))


def _f_beta(counts: Counts, beta: float) -> float:
    return float(counts.f_beta(beta)[0])


def _count(volumes: Sequence[Labelled], profiles: Sequence[VolumeProfile], rule: MaskRule) -> Counts:
    """Voxels of the finished masks by class, all volumes together: a mask is one threshold."""
    tp = fp = positives = negatives = 0
    for (prediction, label), profile in zip(volumes, profiles, strict=True):
        mask = mask_of(prediction, rule, profile) == 1
        surface, rest = label == 1, label == 0
        tp += int(np.count_nonzero(mask & surface))
        fp += int(np.count_nonzero(mask & rest))
        positives += int(np.count_nonzero(surface))
        negatives += int(np.count_nonzero(rest))
    return Counts(np.array([tp]), np.array([fp]), positives, negatives)


def _levels(volumes: Sequence[Labelled]) -> list[float]:
    """Thresholds worth trying: quantiles of the probabilities of surface voxels, two digits, ascending."""
    surface = np.concatenate([prediction.probability[label == 1].ravel() for prediction, label in volumes])
    if surface.size == 0:
        return [0.5]
    quantiles = np.quantile(surface, np.linspace(0.05, 0.9, STEPS))
    return sorted({float(min(max(round(float(q), 2), 0.02), 0.98)) for q in quantiles})
