"""What the steps refuse: arrays that are no volumes, probabilities that are none, thresholds out of order."""

from __future__ import annotations

import numpy as np

from nx46vx.errors import NX46Error, UsageError


def check_volume(array: np.ndarray) -> None:
    """Raises ``NX46Error`` for an array that is not (z, y, x)."""
    if array.ndim != 3:
        raise NX46Error("the array is no (z, y, x) volume", where="masks", found=f"shape {array.shape}")


def check_probability(probability: np.ndarray) -> None:
    """Raises ``NX46Error`` for what is no volume of floats, and names the first NaN."""
    check_volume(probability)
    if not np.issubdtype(probability.dtype, np.floating):
        raise NX46Error("probabilities have to be floats", where="masks", found=f"dtype {probability.dtype}")
    if probability.size and np.isnan(probability.min()):
        first_z = next(z for z, plane in enumerate(probability) if np.isnan(plane).any())
        y, x = np.argwhere(np.isnan(probability[first_z]))[0]
        total = sum(int(np.isnan(plane).sum()) for plane in probability)
        raise NX46Error(
            "the probability volume contains NaN",
            where=f"first at (z, y, x) = ({first_z}, {y}, {x})", found=f"{total} NaN of {probability.size} voxels",
            fix="look for NaN in the model's weights or in the features of this case",
        )  # fmt: skip


def check_thresholds(strong: float, weak: float) -> None:
    """Raises ``UsageError`` for a weak threshold above the strong one, or NaN."""
    if not weak <= strong:
        raise UsageError(
            "the weak threshold has to be at most the strong one",
            where="mask.weak_th, mask.strong_th", found=f"weak {weak}, strong {strong}", fix="swap or lower weak_th",
        )  # fmt: skip


def check_not_negative(name: str, value: float) -> None:
    """Raises ``UsageError`` for a radius, size or count below zero."""
    if not value >= 0:
        raise UsageError(f"{name} is negative", found=value, fix=f"set mask.{name} to 0 or more")
