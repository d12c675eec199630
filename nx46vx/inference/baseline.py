"""The yardstick that any learned mask has to beat: one global intensity threshold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


def class_histograms(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Histograms (2, 256) int64 of the uint8 grey values of background (label 0) and surface (label 1) voxels."""
    return np.stack([np.bincount(image[label == value].ravel(), minlength=256) for value in (0, 1)])


@dataclass(frozen=True)
class IntensityThreshold:
    """Surface where the grey value is >= ``value`` (``above``) or <= ``value``."""

    value: int
    above: bool

    def f_half(self, histograms: np.ndarray) -> float:
        """F0.5 on voxels given by their class histograms (2, 256)."""
        return float(_f_half(histograms, self.above)[self.value])


def best_intensity_threshold(histograms: Iterable[np.ndarray]) -> IntensityThreshold:
    """The threshold and side with the best F0.5 over the pooled histograms; the lowest one among equals."""
    pooled = np.add.reduce(list(histograms))
    curves = {above: _f_half(pooled, above) for above in (True, False)}
    above = bool(curves[True].max() >= curves[False].max())
    return IntensityThreshold(int(np.argmax(curves[above])), above)


def _f_half(histograms: np.ndarray, above: bool) -> np.ndarray:
    """F0.5 at each of the 256 thresholds."""
    found = histograms[:, ::-1].cumsum(axis=1)[:, ::-1] if above else histograms.cumsum(axis=1)
    fp, tp = found.astype(float)
    positives = float(histograms[1].sum())
    denominator = 1.25 * tp + 0.25 * (positives - tp) + fp
    return np.divide(1.25 * tp, denominator, out=np.zeros(256), where=denominator > 0)
