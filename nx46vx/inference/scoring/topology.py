"""TopoScore: components, loops and cavities that prediction and label share, counted octant by octant.

Which features match is decided as in Betti matching (Stucki et al., "Topologically faithful image segmentation via
induced matching of persistence barcodes", ICML 2023): both masks lie in their union U, and a feature of U matches when
it is the image of one of each. Where several features of U are candidates, the one that lives longest counts when the
background of U is filled in raster order; that order is part of the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nx46vx.inference.scoring.betti import Betti, betti_numbers, label_components, sealed_voids

#: Weights of components, loops and cavities.
WEIGHTS = (0.34, 0.33, 0.33)
_PREDICTED, _TRUE, _BOTH = 1, 2, 3


class Counts(NamedTuple):
    """Features of one dimension."""

    matched: int
    predicted: int
    true: int


def topo_score(counts: Sequence[Counts]) -> float:
    """Weighted F1 over the dimensions that occur at all; 1 if none does."""
    active = [(weight, _f1(count)) for weight, count in zip(WEIGHTS, counts, strict=True) if count[1] + count[2]]
    total = sum(weight for weight, _ in active)
    return sum(weight / total * f1 for weight, f1 in active) if active else 1.0


def _f1(count: Counts) -> float:
    if count.true == 0:  # false features cost the less the fewer they are, but never nothing
        return 0.5 / (count.predicted + 0.5)
    return 2.0 * count.matched / (count.predicted + count.true)


def add_counts(parts: Sequence[Sequence[Counts]]) -> tuple[Counts, Counts, Counts]:
    """Sums over octants or volumes; zeros if there are none."""
    first, second, third = (
        Counts(*(sum(part[dimension][field] for part in parts) for field in range(3))) for dimension in range(3)
    )
    return first, second, third


def count_features(prediction: np.ndarray, label: np.ndarray, true: Betti) -> tuple[Counts, Counts, Counts]:
    """Matched, predicted and true features of one octant; bool volumes (z, y, x), ``true`` the label's numbers.

    One component is not counted: the one that the whole volume becomes once all background is filled.
    """
    found = betti_numbers(prediction)
    joined = matched_components(prediction, label) if found.components > 1 and true.components > 1 else 0
    loops = 0
    if found.loops and true.loops:
        from nx46vx.inference.scoring.loops import matched_loops  # compiles: only where there is something to match

        loops = matched_loops(prediction, label)
    cavities = matched_cavities(prediction, label) if found.cavities and true.cavities else 0
    return (
        Counts(joined, max(found.components - 1, 0), max(true.components - 1, 0)),
        Counts(loops, found.loops, true.loops),
        Counts(cavities, found.cavities, true.cavities),
    )


def matched_components(prediction: np.ndarray, label: np.ndarray) -> int:
    """Components that match: those of the union that meet both masks, less the first of them.

    Filling joins the components to one growing whole, and a join matches when both sides meet both masks. So the first
    that meets both is lost, unless the whole has already met both by a false and a missed component.
    """
    labels, count = label_components(prediction | label, 6)
    kinds = np.zeros(count + 1, np.uint8)
    kinds[labels[prediction]] |= _PREDICTED
    kinds[labels[label]] |= _TRUE
    both, *others = (np.count_nonzero(kinds == kind) for kind in (_BOTH, _PREDICTED, _TRUE))
    if both and all(others):
        voxels = kinds[labels]
        first, *earlier = (_first_join(voxels == kind) for kind in (_BOTH, _PREDICTED, _TRUE))
        if max(earlier) < first:
            return int(both)
    return max(int(both) - 1, 0)


def _first_join(mask: np.ndarray) -> int:
    """When the growing whole reaches the mask: each voxel in raster order joins the next one along z, y and x."""
    if mask[0, 0, 0]:
        return -1
    parts = mask[1:], mask[0, 1:], mask[0, 0, 1:]  # by the first axis along which a voxel has one before it
    return min(3 * int(part.argmax()) + axis for axis, part in enumerate(parts) if part.any())


def matched_cavities(prediction: np.ndarray, label: np.ndarray) -> int:
    """Cavities of the union that are the last of their cavity in both masks, in raster order of their last voxels."""
    labels, sealed = sealed_voids(prediction | label)
    voxels = np.flatnonzero(sealed[labels])[::-1]
    _, first = np.unique(labels.ravel()[voxels], return_index=True)
    last = voxels[np.sort(first)]  # a voxel of each cavity of the union, later ones first
    predicted, true = (_last_of_each(last, mask) for mask in (prediction, label))
    return int(np.intersect1d(predicted, true, assume_unique=True).size)


def _last_of_each(voxels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """In each cavity of the mask, the first of some flat voxels of its background."""
    labels, sealed = sealed_voids(mask)
    cavity, first = np.unique(labels.ravel()[voxels], return_index=True)
    return voxels[first[sealed[cavity]]]
