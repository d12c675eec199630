"""Hysteresis in 3D: weak regions that hold a strong voxel."""

from __future__ import annotations

import numpy as np

from nx46vx.inference.masks.checks import check_probability, check_thresholds
from nx46vx.inference.masks.regions import regions, select, slabs


def hysteresis(probability: np.ndarray, strong: float, weak: float, *, trusted: np.ndarray | None = None) -> np.ndarray:
    """The 26-connected components of ``p >= weak`` that contain a voxel with ``p >= strong``.

    Thresholds are compared as float32, like the probabilities.

    Args:
        probability: floats ``(z, y, x)``.
        trusted: bool ``(z, y, x)``; a strong voxel counts only there. All do where it is left out.

    Returns:
        bool ``(z, y, x)``.

    Raises:
        NX46Error: not a 3D array of floats, or NaN in it.
        UsageError: ``weak`` above ``strong``, or NaN.
    """
    check_thresholds(strong, weak)
    check_probability(probability)
    seeds = probability >= np.float32(strong)
    if trusted is not None:
        seeds &= trusted
    if not seeds.any():
        return seeds
    labels, count = regions(probability >= np.float32(weak))
    keep = np.zeros(count + 1, dtype=bool)
    for slab in slabs(labels):
        keep[labels[slab][seeds[slab]]] = True
    return select(labels, keep)
