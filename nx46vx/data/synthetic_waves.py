"""Smooth random fields that cost little per voxel and give the same values however a volume is cut into slabs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Coordinates along z, y and x, in voxels from the volume's centre.
Grid = tuple[np.ndarray, np.ndarray, np.ndarray]


def voxel_grid(shape: tuple[int, int, int], first: int = 0, last: int | None = None, stride: int = 1) -> Grid:
    """Coordinates of every ``stride``-th voxel of slices ``first`` to ``last``, which may reach past the ends."""
    y, x = (np.arange(edge, dtype=np.float64) - (edge - 1) / 2 for edge in shape[1:])
    slices = np.arange(first, shape[0] if last is None else last, dtype=np.float64) - (shape[0] - 1) / 2
    return slices[::stride], y[::stride], x[::stride]


@dataclass(frozen=True)
class Waves:
    """A sum of plane waves ``amplitude * cos(k . p + phase)``; ``vectors`` is (K, 3) in radians per voxel."""

    vectors: np.ndarray
    phases: np.ndarray
    amplitudes: np.ndarray

    @classmethod
    def random(
        cls, rng: np.random.Generator, count: int, *, wavelength: tuple[float, float], rms: float
    ) -> Waves:  # fmt: skip
        """Waves in all directions whose sum has the given root mean square; wavelengths in voxels."""
        directions = rng.standard_normal((count, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        lengths = rng.uniform(*wavelength, size=(count, 1))
        amplitude = rms * np.sqrt(2.0 / count)
        return cls(directions * (2 * np.pi / lengths), rng.uniform(0, 2 * np.pi, count), np.full(count, amplitude))

    def __add__(self, other: Waves) -> Waves:
        return Waves(
            np.concatenate([self.vectors, other.vectors]),
            np.concatenate([self.phases, other.phases]),
            np.concatenate([self.amplitudes, other.amplitudes]),
        )

    def at(self, grid: Grid) -> np.ndarray:
        """Values on a grid, (z, y, x) float32.

        ``cos(a + b) = cos a cos b - sin a sin b`` leaves two multiplications a wave and voxel; only element-wise
        arithmetic is used, so the bits do not depend on threads or on the size of the slab.
        """
        z, y, x = grid
        total = np.zeros((len(z), len(y), len(x)), np.float32)
        product = np.empty_like(total)
        for (kz, ky, kx), phase, amplitude in zip(self.vectors, self.phases, self.amplitudes, strict=True):
            plane = kz * z[:, None] + ky * y[None, :] + phase
            row = kx * x
            for left, right in (
                (amplitude * np.cos(plane), np.cos(row)),
                (-amplitude * np.sin(plane), np.sin(row)),
            ):
                np.multiply(left.astype(np.float32)[:, :, None], right.astype(np.float32), out=product)
                total += product
        return total


def affine(grid: Grid, direction: np.ndarray, offset: float = 0.0) -> np.ndarray:
    """``direction . p + offset`` on a grid, (z, y, x) float32."""
    z, y, x = grid
    plane = (direction[0] * z[:, None] + direction[1] * y[None, :] + offset).astype(np.float32)
    return plane[:, :, None] + (direction[2] * x).astype(np.float32)
