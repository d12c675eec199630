"""How sure the ensemble is, voxel by voxel: the spread of its members' probabilities, and how many vote against.

Both maps are kept in steps of 1/510, uint8: a standard deviation and a minority are at most 1/2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

#: Steps of the maps in one unit of probability.
STEPS_PER_UNIT: Final = 510.0


@dataclass(frozen=True)
class Prediction:
    """A volume's probabilities, and how far the ensemble's members agree.

    ``probability`` (z, y, x) float32; ``deviation`` (z, y, x) uint8, the weighted standard deviation of the members'
    probabilities; ``disagreement`` (z, y, x) uint8, the weighted share of members that vote otherwise than the rest.
    """

    probability: np.ndarray
    deviation: np.ndarray
    disagreement: np.ndarray

    @classmethod
    def certain(cls, probability: np.ndarray) -> Prediction:
        """Probabilities that nobody doubts."""
        return cls(probability, np.zeros(probability.shape, np.uint8), np.zeros(probability.shape, np.uint8))


def spread(probabilities: np.ndarray, weights: Sequence[float], vote_at: float) -> tuple[np.ndarray, np.ndarray]:
    """Deviation and disagreement, uint8, of members' probabilities (members, ...) with weights that add up to 1.

    A member votes for surface where its probability is at least ``vote_at``.
    """
    shape = (-1,) + (1,) * (probabilities.ndim - 1)
    w = np.asarray(weights, np.float64).reshape(shape)
    mean = (w * probabilities).sum(axis=0)
    variance = (w * np.square(probabilities - mean)).sum(axis=0)
    ayes = (w * (probabilities >= vote_at)).sum(axis=0)
    return _steps(np.sqrt(variance)), _steps(np.minimum(ayes, np.maximum(1.0 - ayes, 0.0)))


def trusted(prediction: Prediction, max_deviation: int, max_disagreement: int) -> np.ndarray | None:
    """The voxels that may be seeds, bool (z, y, x); both bounds in steps, 255 or more bounds nothing. None: all may."""
    found: np.ndarray | None = None
    for values, bound in ((prediction.deviation, max_deviation), (prediction.disagreement, max_disagreement)):
        if bound < 255:
            low = values <= bound
            found = low if found is None else found & low
    return found


def _steps(values: np.ndarray) -> np.ndarray:
    return np.minimum(np.rint(values * STEPS_PER_UNIT), 255).astype(np.uint8)
