"""Connected regions of a mask: labels, sizes, and choosing among them in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nx46vx.inference.scoring.betti import label_components

_SLAB_VOXELS = 1 << 21  # voxels looked up at a time: index arrays are eight times wider than masks


def regions(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Labels 1..count of the 26-connected regions of a bool volume, 0 elsewhere; numbered along the raster."""
    return label_components(mask, 26)


def sizes(labels: np.ndarray, count: int) -> np.ndarray:
    """Voxels of each label, ``(count + 1,)`` int64."""
    found = np.zeros(count + 1, dtype=np.int64)
    for slab in slabs(labels):
        found += np.bincount(labels[slab].ravel(), minlength=count + 1)
    return found


def slabs(volume: np.ndarray) -> Iterator[slice]:
    """Cut along z into slabs small enough for wide temporaries."""
    thickness = max(1, _SLAB_VOXELS // max(1, int(np.prod(volume.shape[1:]))))
    for start in range(0, volume.shape[0], thickness):
        yield slice(start, start + thickness)


def select(labels: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The voxels whose label is to be kept; ``keep`` is bool, indexed by label."""
    chosen = np.empty(labels.shape, dtype=bool)
    for slab in slabs(labels):
        chosen[slab] = keep[labels[slab]]
    return chosen
