"""Geometry of a rolled papyrus: where the sheets are, how far each voxel is from a recto, and the label volume.

A scroll is a spiral around a far axis. ``u(p)`` counts windings outward from the axis; sheet n has its recto (the
face toward the axis) where u = n, and its body on the outer side. Waves along the radius squeeze and stretch the
gaps, so that sheets touch in places; slower waves bend everything.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nx46vx.data.synthetic_waves import Grid, Waves, affine, voxel_grid

LABEL_THICKNESS = 3.0
BORDER = 3
BACKGROUND, SURFACE, IGNORED = 0, 1, 2
_SLAB_VOXELS = 1 << 20


@dataclass(frozen=True)
class Scroll:
    """What all volumes of one scroll share: direction of the axis, pitch and thickness in voxels, grey levels."""

    axis: np.ndarray
    turn: float
    pitch: float
    thickness: float
    air: float
    papyrus: float
    noise: float
    noise_sigma: float
    blur_sigma: float
    recto_gain: float
    fibre_gain: float
    fibre_period: float

    @classmethod
    def draw(cls, scroll: int) -> Scroll:
        rng = np.random.default_rng(np.random.SeedSequence([0x5C2011, scroll]))
        axis = rng.standard_normal(3)
        air = rng.uniform(45, 85)
        contrast = rng.uniform(50, 85)
        return cls(
            axis=axis / np.linalg.norm(axis), turn=float(rng.choice([-1.0, 1.0])), pitch=rng.uniform(19.5, 27.0),
            thickness=rng.uniform(9.2, 10.8), air=air, papyrus=air + contrast, noise=contrast * rng.uniform(0.26, 0.38),
            noise_sigma=rng.uniform(0.65, 0.95), blur_sigma=rng.uniform(0.5, 0.75), recto_gain=rng.uniform(0.12, 0.22),
            fibre_gain=rng.uniform(0.12, 0.2), fibre_period=rng.uniform(5.0, 8.0),
        )  # fmt: skip


@dataclass(frozen=True)
class SheetSlab:
    """A slab of z slices. Arrays are (z, y, x) float32, ``index`` int32 is the sheet, ``distance`` the voxels from
    its recto outward (negative just before it), ``hole`` true where that sheet is missing."""

    grid: Grid
    index: np.ndarray
    distance: np.ndarray
    pitch: np.ndarray
    hole: np.ndarray
    beyond: np.ndarray | None


class SheetGeometry:
    """One volume of a scroll, evaluated slab by slab; ``shape`` is (z, y, x)."""

    def __init__(self, shape: tuple[int, int, int], scroll: Scroll, rng: np.random.Generator) -> None:
        self.shape, self.scroll = shape, scroll
        axis = scroll.axis + 0.06 * rng.standard_normal(3)
        self.axis = axis / np.linalg.norm(axis)
        radial = rng.standard_normal(3)
        radial -= self.axis * (radial @ self.axis)
        self.radial = radial / np.linalg.norm(radial)
        self.tangent = np.cross(self.axis, self.radial)
        self.radius = 0.5 * float(np.linalg.norm(shape)) + rng.uniform(60.0, 450.0)
        self._offset = rng.uniform(0, 1)
        self._bends = self._draw_bends(rng)
        self._jitter = Waves.random(rng, 4, wavelength=(25, 60), rms=0.25)
        hole = Waves.random(rng, 5, wavelength=(35, 90), rms=1.0)
        self._holes = hole
        self._hole_shift = rng.uniform(1.0, 5.0, 5)
        self._hole_level = rng.uniform(1.45, 1.9)
        self._ignored, self._ignored_level = self._draw_ignored(rng)
        self._outer: float | None = None
        if rng.uniform() < 0.4:
            sample = self._windings(voxel_grid(shape, stride=_stride(shape)))
            self._outer = float(np.floor(np.quantile(sample, rng.uniform(0.72, 0.9))))
            self._margin = Waves.random(rng, 4, wavelength=(40, 120), rms=3.0)

    def _draw_bends(self, rng: np.random.Generator) -> Waves:
        """Displacement along the radius, in voxels: slow undulation, and squeezing between neighbouring sheets."""
        bends = Waves.random(rng, 5, wavelength=(90, 220), rms=rng.uniform(2.0, 4.5))
        shares = rng.dirichlet([1.5, 1.5, 1.5]) * rng.uniform(0.75, 1.0)
        orders = np.array([1.0, 2.0, 3.0])
        for share in shares:
            period = self.scroll.pitch * rng.uniform(2.5, 5.0)
            sideways = self.axis * rng.standard_normal() + self.tangent * rng.standard_normal()
            wave = self.radial * (2 * np.pi / period) + sideways * (2 * np.pi / rng.uniform(90, 200))
            # The slope is share * sum(weight cos(order t)): up to 2.1 share in narrow squeezes, never below -0.75.
            slopes = share * np.array([1.0, 0.7, 0.4]) / np.linalg.norm(wave)
            phases = orders * rng.uniform(0, 2 * np.pi) - np.pi / 2
            bends += Waves(orders[:, None] * wave, phases, slopes / orders)
        return bends

    def _draw_ignored(self, rng: np.random.Generator) -> tuple[Waves, float]:
        """A field and a level: voxels above it are ignored. One slow wave gives a wedge, several give blobs."""
        extent = float(min(self.shape))
        if rng.uniform() < 0.5:
            field = Waves.random(rng, 1, wavelength=(3.5 * extent, 5.0 * extent), rms=1.0)
            field += Waves.random(rng, 3, wavelength=(0.4 * extent, extent), rms=0.08)
        else:
            field = Waves.random(rng, 6, wavelength=(1.0 * extent, 2.2 * extent), rms=1.0)
        sample = field.at(voxel_grid(self.shape, stride=_stride(self.shape)))
        return field, float(np.quantile(sample, 1.0 - rng.uniform(0.06, 0.28)))

    def _windings(self, grid: Grid) -> np.ndarray:
        """u on a grid: windings counted outward from the axis."""
        along, across = affine(grid, self.radial, self.radius), affine(grid, self.tangent)
        u = np.sqrt(along * along + across * across)
        u += self._bends.at(grid)
        u -= np.float32(self.radius)
        u *= np.float32(1 / self.scroll.pitch)
        u += np.arctan2(across, along) * np.float32(self.scroll.turn / (2 * np.pi))
        u += np.float32(self._offset)
        return u

    def slabs(self) -> list[tuple[int, int]]:
        """(first, last) slices of the slabs a volume is worked through in; depends on the shape alone."""
        depth = max(1, _SLAB_VOXELS // (self.shape[1] * self.shape[2]))
        return [(first, min(first + depth, self.shape[0])) for first in range(0, self.shape[0], depth)]

    def slab(self, first: int, last: int) -> SheetSlab:
        """Sheets in slices ``first`` to ``last``; distance = (u - n) / |grad u|, exact to first order."""
        u = self._windings(voxel_grid(self.shape, first - 1, last + 1))
        steepness = np.square((u[2:] - u[:-2]) * np.float32(0.5))
        u = u[1:-1]
        for axis in (1, 2):
            steepness += np.square(np.gradient(u, axis=axis))
        np.sqrt(steepness, out=steepness)
        np.maximum(steepness, np.float32(0.004), out=steepness)
        grid = voxel_grid(self.shape, first, last)
        index = np.floor(u + steepness)  # the voxel before a recto belongs to that recto's sheet
        pitch = 1 / steepness
        distance = (u - index) * pitch
        hole = self._hole(grid, index)
        beyond = None
        if self._outer is not None:
            hole |= index >= self._outer
            beyond = (u - np.float32(self._outer)) * np.float32(self.scroll.pitch) + self._margin.at(grid)
        return SheetSlab(grid, index.astype(np.int32), distance, pitch, hole, beyond)

    def _hole(self, grid: Grid, index: np.ndarray) -> np.ndarray:
        """Lacunae: a field over space whose phases also turn from sheet to sheet, cut at a level."""
        total = np.zeros_like(index)
        for vector, phase, amplitude, shift in zip(
            self._holes.vectors, self._holes.phases, self._holes.amplitudes, self._hole_shift, strict=True
        ):
            argument = affine(grid, vector, phase)
            argument += index * np.float32(shift)
            total += np.cos(argument) * np.float32(amplitude)
        return total > self._hole_level

    def label(self) -> np.ndarray:
        """The label volume, (z, y, x) uint8: the first voxels behind each recto, then what is ignored over it."""
        label = np.zeros(self.shape, np.uint8)
        for first, last in self.slabs():
            slab = self.slab(first, last)
            start = slab.distance - self._jitter.at(slab.grid)
            label[first:last][(start >= 0) & (start < LABEL_THICKNESS) & ~slab.hole] = SURFACE
            label[first:last][self._ignored.at(slab.grid) > self._ignored_level] = IGNORED
        inner = label[BORDER:-BORDER, BORDER:-BORDER, BORDER:-BORDER].copy()
        label[...] = IGNORED
        label[BORDER:-BORDER, BORDER:-BORDER, BORDER:-BORDER] = inner
        return label


def _stride(shape: tuple[int, int, int]) -> int:
    return max(1, min(shape) // 16)
