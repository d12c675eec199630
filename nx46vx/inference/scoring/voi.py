"""VOI: how differently two masks group the voxels into components, as variation of information in bits.

Meila, "Comparing clusterings" (2003). Components are 26-connected; counted are the voxels that are foreground in
either mask, and the background of a mask is one group of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nx46vx.inference.scoring.betti import label_components

#: How strongly the score falls with the variation.
ALPHA = 0.3
_DENSE = 1 << 21  # cells of a contingency table that is counted densely
_SLAB_VOXELS = 1 << 21  # voxels counted at a time


@dataclass(frozen=True)
class Groups:
    """Component labels (z, y, x) of a mask, 0 for background, and how many components there are."""

    labels: np.ndarray
    count: int

    @classmethod
    def of(cls, mask: np.ndarray) -> Groups:
        return cls(*label_components(mask, 26))


class Voi(NamedTuple):
    """``split`` = H(prediction | label), ``merge`` = H(label | prediction), in bits."""

    split: float
    merge: float

    @property
    def score(self) -> float:
        """1 for equal groups, towards 0 as they differ."""
        return 1.0 / (1.0 + ALPHA * (self.split + self.merge))


def variation(prediction: Groups, label: Groups) -> Voi:
    """Variation of information between two labellings of one volume; 0 where nothing is foreground."""
    columns = label.count + 1
    cells, voxels = _contingency(prediction, label)
    if not cells.size:
        return Voi(0.0, 0.0)
    share = voxels / voxels.sum()
    return Voi(*(_conditional_entropy(share, given) for given in (cells % columns, cells // columns)))


def _conditional_entropy(share: np.ndarray, given: np.ndarray) -> float:
    """Entropy of the cells, with shares that sum to 1, once their group ``given`` is known."""
    _, group = np.unique(given, return_inverse=True)
    return float(share @ np.log2(np.bincount(group, weights=share)[group] / share))


def _contingency(prediction: Groups, label: Groups) -> tuple[np.ndarray, np.ndarray]:
    """Cells of the table that occur, as ``prediction label * (label components + 1) + label``, and their voxels."""
    columns = label.count + 1
    size = (prediction.count + 1) * columns
    dense = np.zeros(size if size <= _DENSE else 0, np.int64)
    sparse = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
    depth = len(label.labels)
    thickness = max(1, _SLAB_VOXELS * depth // label.labels.size)
    for slab in (slice(start, start + thickness) for start in range(0, depth, thickness)):
        cell = prediction.labels[slab].astype(np.int64)
        cell *= columns
        cell += label.labels[slab]
        cell = cell[cell != 0]
        if dense.size:
            dense += np.bincount(cell, minlength=size)
        else:
            sparse.append(np.unique(cell, return_counts=True))
    if dense.size:
        cells = np.flatnonzero(dense)
        return cells, dense[cells]
    cells, where = np.unique(np.concatenate([found for found, _ in sparse]), return_inverse=True)
    return cells, np.bincount(where, weights=np.concatenate([times for _, times in sparse])).astype(np.int64)
