"""Yardstick without learning: maxima along the sheets' normal, which the structure tensor gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_dilation, generate_binary_structure, map_coordinates

from nx46vx.bench.quality_methods import Choice, Method, Training, finished
from nx46vx.features.blocks import iter_blocks
from nx46vx.features.pool import NORMAL
from nx46vx.features.reference import measure_reference
from nx46vx.features.spread import usable_cpus

#: What is followed to its maxima: grey values (the middle of a sheet), and the slope along the normal towards the
#: sharper face (the one that the label is about).
_FIELDS = ("gauss_s1", "gauss_s2", "signed_s1", "signed_s2")
#: Shares of the maxima that are kept, the highest first; voxels that they are widened by.
_SHARES, _WIDTHS = (0.1, 0.2, 0.35, 0.5), (1, 2)
_BLOCK = 160
_FACES = generate_binary_structure(3, 1)


def ridge_voxels(field: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Voxels whose value is above zero and that of both points one voxel away along the normal, bool (z, y, x).

    Args:
        field: (z, y, x) float32.
        normal: unit normals (3, z, y, x) float32; their sign does not matter.

    The points' values are interpolated linearly; beyond the border the nearest voxel stands. A plateau of two equal
    voxels counts where the first of them is higher than the point before it.
    """
    places = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in field.shape), indexing="ij"))
    ahead, behind = (map_coordinates(field, places + step * normal, order=1, mode="nearest") for step in (1, -1))
    return np.asarray((field > 0) & (field > behind) & (field >= ahead))


def widened(mask: np.ndarray, width: int) -> np.ndarray:
    """A mask grown by ``width`` voxels across faces."""
    return np.asarray(binary_dilation(mask, _FACES, iterations=width)) if width else mask


class RidgeNms(Method):
    """Maxima of ``scale`` along the normal, the highest ``share`` of a volume's, widened by ``width`` voxels.
    ``clean``: with the product's steps from closing to dust."""

    def fit(self, training: Training) -> None:
        """Nothing is learned."""

    def choices(self) -> Sequence[Choice]:
        return [
            {"scale": field, "share": share, "width": width, "clean": clean}
            for field in _FIELDS for share in _SHARES for width in _WIDTHS for clean in (False, True)
        ]  # fmt: skip

    def prepare(self, volume: np.ndarray, choice: Choice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        reference = measure_reference(volume, threads=usable_cpus())
        names = [*(spec.name for spec in NORMAL), choice["scale"]]
        found = np.empty((len(names), *volume.shape), np.float32)
        for window, x, _ in iter_blocks(
            volume, reference, names, block=_BLOCK, gradients=False, threads=usable_cpus()
        ):  # fmt: skip
            found[(slice(None), *window)] = x
        return volume, found[3], ridge_voxels(found[3], found[:3])

    def finish(self, prepared: tuple[np.ndarray, np.ndarray, np.ndarray], choice: Choice) -> np.ndarray:
        volume, field, ridge = prepared
        if not ridge.any():
            return np.zeros(field.shape, np.uint8)
        level = np.quantile(field[ridge], 1.0 - choice["share"])
        mask = widened(ridge & (field >= level), choice["width"])
        return finished(mask, volume, clean=choice["clean"])
