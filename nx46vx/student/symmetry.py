"""Symmetries of a patch: rotations by quarter turns and reflections, applied to image and label together.

The label is the recto, the face of a sheet that looks towards the scroll's axis. Whatever tells it from the verso (the
side the sheet curves around, its sharper edge, its fibres) moves along when image and label are moved together, under
reflections too: those exchange the two winding senses, and the recto looks at the axis in both. What some of them
change is the axis itself. ``docs/student.md`` says which group is allowed when.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import torch

Group = Literal["none", "axial", "all"]


@dataclass(frozen=True)
class Symmetry:
    """Axes taken in the order ``axes``, then those of the result reversed where ``flips`` says so; (z, y, x)."""

    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    @property
    def inverse(self) -> Symmetry:
        """The symmetry that undoes this one."""
        axes = tuple(self.axes.index(axis) for axis in range(3))
        return Symmetry(axes, tuple(self.flips[axis] for axis in axes))  # type: ignore[arg-type]

    @property
    def is_identity(self) -> bool:
        return self == Symmetry()

    def of_array(self, array: np.ndarray) -> np.ndarray:
        """The last three axes of an array moved; a view."""
        lead = array.ndim - 3
        moved = array.transpose(*range(lead), *(lead + axis for axis in self.axes))
        return np.flip(moved, tuple(lead + axis for axis in range(3) if self.flips[axis]))

    def of_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """The last three axes of a tensor moved."""
        lead = tensor.dim() - 3
        moved = tensor.permute(*range(lead), *(lead + axis for axis in self.axes))
        reversed_axes = [lead + axis for axis in range(3) if self.flips[axis]]
        return moved.flip(reversed_axes) if reversed_axes else moved


def allowed(group: Group, shape: Sequence[int]) -> tuple[Symmetry, ...]:
    """The symmetries of a group that leave a patch's shape (z, y, x) as it is, the identity first.

    ``axial``: the z axis stays where it is, up to its direction (16 for a square patch). ``all``: those of the cube
    (48 for a cubic patch).
    """
    if group == "none":
        return (Symmetry(),)
    orders = itertools.permutations(range(3)) if group == "all" else ((0, 1, 2), (0, 2, 1))
    kept = [axes for axes in orders if tuple(shape[axis] for axis in axes) == tuple(shape)]
    return tuple(
        Symmetry((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))
        for axes in kept
        for flips in itertools.product((False, True), repeat=3)
    )


def for_averaging(symmetries: Sequence[Symmetry], most: int = 8) -> tuple[Symmetry, ...]:
    """At most so many of them, evenly chosen, the identity among them: what test-time augmentation averages over."""
    if len(symmetries) <= most:
        return tuple(symmetries)
    return tuple(symmetries[round(k * len(symmetries) / most)] for k in range(most))
