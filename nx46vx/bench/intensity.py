"""Yardstick: one grey value for all volumes, everything on one side of it is surface."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nx46vx.bench.quality_methods import Choice, Method, Training, finished
from nx46vx.inference.baseline import best_intensity_threshold, class_histograms

#: Quantiles of the surface's grey values in the training volumes, which thresholds are tried at.
_QUANTILES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 0.95)


class Intensity(Method):
    """The side and the candidates come from the training volumes: the grey value with the best voxel F0.5 there, and
    quantiles of what is surface. ``clean``: with the product's steps from closing to dust."""

    def __init__(self) -> None:
        self.above, self.levels = True, list[int]()

    def fit(self, training: Training) -> None:
        histograms = [class_histograms(image, label) for image, label in training.volumes()]
        best = best_intensity_threshold(histograms)
        surface = np.add.reduce(histograms)[1]
        shares = np.cumsum(surface) / surface.sum()
        self.above = best.above
        self.levels = sorted({best.value, *(int(np.searchsorted(shares, share)) for share in _QUANTILES)})

    def choices(self) -> Sequence[Choice]:
        return [{"value": level, "clean": clean} for level in self.levels for clean in (False, True)]

    def prepare(self, volume: np.ndarray, choice: Choice) -> np.ndarray:
        return volume

    def finish(self, prepared: np.ndarray, choice: Choice) -> np.ndarray:
        mask = prepared >= choice["value"] if self.above else prepared <= choice["value"]
        return finished(mask, prepared, clean=choice["clean"])
