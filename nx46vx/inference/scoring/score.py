"""The score of one volume, and of many predictions against one label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nx46vx.inference.scoring.betti import betti_numbers
from nx46vx.inference.scoring.masks import check_pair, check_volume, foreground, scored_voxels
from nx46vx.inference.scoring.octants import octants
from nx46vx.inference.scoring.surface import Surface, surface_dice
from nx46vx.inference.scoring.topology import Counts, add_counts, count_features, topo_score
from nx46vx.inference.scoring.voi import Groups, variation

TOPO_WEIGHT, SURFACE_WEIGHT, VOI_WEIGHT = 0.30, 0.35, 0.35


@dataclass(frozen=True)
class VolumeScore:
    """A volume's score and its parts, all in [0, 1] but the entropies.

    ``voi`` is 1 / (1 + 0.3 (``voi_split`` + ``voi_merge``)), the entropies H(prediction | label) and
    H(label | prediction) in bits; ``counts`` holds the matched, predicted and true components, loops and cavities.
    """

    score: float
    topo: float
    surface_dice: float
    voi: float
    voi_split: float
    voi_merge: float
    counts: tuple[Counts, Counts, Counts]


class LabelScorer:
    """Scores predictions against one label; what depends on the label alone is computed once.

    Args:
        label: (z, y, x) integers or booleans: 0 background, 2 ignored, anything else surface.

    Raises:
        DataError: not 3D, empty, or not of integers or booleans.
    """

    def __init__(self, label: np.ndarray, *, name: str = "the label") -> None:
        check_volume(label, name)
        self.shape = label.shape
        self._scored = scored_voxels(label)
        mask = foreground(label, self._scored)
        self._parts = [(window, np.ascontiguousarray(mask[window])) for window in octants(mask.shape)]
        self._betti = [betti_numbers(part) for _, part in self._parts]
        self._surface = Surface.of(mask)
        self._groups = Groups.of(mask)

    def score(self, prediction: np.ndarray, *, name: str = "the prediction") -> VolumeScore:
        """Score a mask (z, y, x) of integers or booleans: 0 background, anything else surface.

        Raises:
            DataError: another shape than the label's, or no mask.
        """
        check_pair(prediction, self.shape, name)
        mask = foreground(prediction, self._scored)
        counts = add_counts(
            [
                count_features(np.ascontiguousarray(mask[window]), part, betti)
                for (window, part), betti in zip(self._parts, self._betti, strict=True)
            ]
        )
        topo = topo_score(counts)
        dice = surface_dice(Surface.of(mask), self._surface)
        voi = variation(Groups.of(mask), self._groups)
        score = SURFACE_WEIGHT * dice + VOI_WEIGHT * voi.score + TOPO_WEIGHT * topo
        return VolumeScore(min(max(score, 0.0), 1.0), topo, dice, voi.score, voi.split, voi.merge, counts)


def score_volume(prediction: np.ndarray, label: np.ndarray) -> VolumeScore:
    """The competition's score of a mask against its label, both (z, y, x) of one shape.

    Args:
        prediction: integers or booleans; anything but 0 is surface.
        label: integers or booleans; 0 background, 2 ignored, anything else surface.

    Raises:
        DataError: not 3D, empty, not of integers or booleans, or shapes that differ.
    """
    check_volume(label, "the label")
    check_pair(prediction, label.shape, "the prediction")
    return LabelScorer(label).score(prediction)
