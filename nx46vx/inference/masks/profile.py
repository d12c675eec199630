"""A volume's own distribution of probability and doubt, as counts: what its thresholds are calibrated from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from nx46vx.inference.masks.doubt import STEPS_PER_UNIT, Prediction
from nx46vx.inference.masks.regions import slabs

#: Bins of probability; their edges are exact in float32, so counts and comparisons with an edge agree.
BINS: Final = 1024


@dataclass(frozen=True)
class VolumeProfile:
    """``probability`` (1024,): voxels by probability. ``doubt`` (256,): voxels by deviation, of those that are probably
    surface (as many as are expected). ``deviation``: sum of all voxels' deviations, in steps."""

    probability: np.ndarray
    doubt: np.ndarray
    deviation: int

    @classmethod
    def of(cls, prediction: Prediction) -> VolumeProfile:
        probability, deviation, total = prediction.probability, prediction.deviation, 0
        counts = np.zeros(BINS, np.int64)
        for slab in slabs(probability):
            at = (probability[slab] * np.float32(BINS)).astype(np.int64).ravel()
            counts += np.bincount(np.minimum(at, BINS - 1), minlength=BINS)
            total += int(deviation[slab].sum(dtype=np.int64))
        edge = np.float32(cls(counts, np.zeros(256, np.int64), 0).threshold(1.0, 0.0))
        doubt = np.zeros(256, np.int64)
        for slab in slabs(probability):
            doubt += np.bincount(deviation[slab][probability[slab] >= edge], minlength=256)
        return cls(counts, doubt, total)

    def expected_share(self, doubt_weight: float) -> float:
        """The share of surface that the probabilities expect, less ``doubt_weight`` times their mean deviation.

        Never less than a tenth of what is expected without doubt.
        """
        voxels = max(int(self.probability.sum()), 1)
        middles = (np.arange(BINS) + 0.5) / BINS
        mean = float(self.probability @ middles) / voxels
        return max(mean - doubt_weight * self.deviation / STEPS_PER_UNIT / voxels, 0.1 * mean)

    def threshold(self, share: float, doubt_weight: float) -> float:
        """The lowest edge of a bin, above 0 and below 1, that at most ``share`` times the expected surface reaches."""
        wanted = share * self.expected_share(doubt_weight) * int(self.probability.sum())
        above = np.cumsum(self.probability[::-1])[::-1]  # voxels at or above each bin's lower edge
        reached = np.flatnonzero(above <= wanted)
        first = int(reached[0]) if reached.size else BINS
        return min(max(first, 1), BINS - 1) / BINS

    def doubt_at(self, quantile: float) -> int:
        """The deviation, in steps, that at least this share of the probable surface does not exceed; 255 for 1."""
        total = int(self.doubt.sum())
        if quantile >= 1.0 or not total:
            return 255
        return int(np.searchsorted(np.cumsum(self.doubt), quantile * total))

    def to_json(self) -> dict[str, Any]:
        return {
            "probability": self.probability.tolist(), "doubt": self.doubt.tolist(), "deviation": self.deviation,
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> VolumeProfile:
        return cls(
            np.array(value["probability"], np.int64), np.array(value["doubt"], np.int64), int(value["deviation"])
        )
