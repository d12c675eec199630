"""What counts as foreground: everything but 0, outside of the voxels that the label ignores."""

from __future__ import annotations

import numpy as np

from nx46vx.errors import DataError

#: The label of voxels that are not scored.
IGNORED = 2


def check_volume(volume: np.ndarray, name: str) -> None:
    """Refuse what is no (z, y, x) volume of integers or booleans.

    Raises:
        DataError: not 3D, empty, or of another type (a probability has to become a mask first).
    """
    if volume.ndim != 3 or volume.size == 0:
        raise DataError(
            "a mask has to be a (z, y, x) volume", where=name, found=f"shape {volume.shape}", fix="pass a 3D array"
        )
    if volume.dtype.kind not in "bui":
        raise DataError(
            "a mask has to hold booleans or integers", where=name, found=volume.dtype, fix="apply a threshold first"
        )


def check_pair(prediction: np.ndarray, shape: tuple[int, ...], name: str) -> None:
    """Refuse a prediction that is no mask, or has another shape than its label.

    Raises:
        DataError: see above.
    """
    check_volume(prediction, name)
    if prediction.shape != shape:
        raise DataError(
            "the prediction and the label differ in shape", where=name,
            found=f"prediction {prediction.shape}, label {shape}", fix="score a mask against its own label",
        )  # fmt: skip


def scored_voxels(label: np.ndarray) -> np.ndarray | None:
    """Bool volume of the voxels that count, or None where all do."""
    scored = np.asarray(label != IGNORED)
    return None if scored.all() else scored


def foreground(mask: np.ndarray, scored: np.ndarray | None) -> np.ndarray:
    """Bool volume, C-ordered: nonzero and scored."""
    found = np.not_equal(mask, 0, order="C")
    if scored is not None:
        found &= scored
    return found
