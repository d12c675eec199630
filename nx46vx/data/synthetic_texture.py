"""What the scanner sees of the sheets: layers, fibres, cracks, specks, blur, correlated noise."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from nx46vx.data.synthetic_sheets import SheetGeometry, SheetSlab
from nx46vx.data.synthetic_waves import Waves, affine

_RECTO_EDGE, _VERSO_EDGE = 1.0, 3.2  # widths of the two faces' grey ramps, in voxels
_MASK_MARGIN = 14.0  # voxels of air kept around the scroll before the scan is masked
_VOXELS_PER_SPECK = 12_000
_TABLE = 4096


class Texture:
    """Draws a volume's appearance once, then renders it slab by slab."""

    def __init__(self, geometry: SheetGeometry, rng: np.random.Generator) -> None:
        self.geometry = geometry
        self._rng = rng
        self._sheet_gain = rng.normal(0, 0.07, _TABLE).astype(np.float32)
        self._patches = Waves.random(rng, 5, wavelength=(22, 70), rms=0.10)
        self._swelling = Waves.random(rng, 4, wavelength=(40, 110), rms=0.10)
        self._wander = Waves.random(rng, 5, wavelength=(18, 50), rms=1.6)
        self._crack_depth = Waves.random(rng, 4, wavelength=(30, 80), rms=0.14)
        self._crack_zone = Waves.random(rng, 5, wavelength=(25, 70), rms=1.0)
        self._drift = Waves.random(rng, 4, wavelength=(120, 400), rms=4.0)
        self._crack_level = rng.uniform(0.4, 1.0)

    def render(self) -> np.ndarray:
        """The CT volume, (z, y, x) uint8."""
        geometry, scroll = self.geometry, self.geometry.scroll
        image = np.empty(geometry.shape, np.float32)
        masked: np.ndarray | None = None
        for first, last in geometry.slabs():
            slab = geometry.slab(first, last)
            grey = self._density(slab)
            grey *= np.float32(scroll.papyrus - scroll.air)
            grey += np.float32(scroll.air)
            grey += self._drift.at(slab.grid)
            image[first:last] = grey
            if slab.beyond is not None:
                masked = np.zeros(geometry.shape, bool) if masked is None else masked
                masked[first:last] = slab.beyond > _MASK_MARGIN
        self._add_specks(image)
        gaussian_filter(image, scroll.blur_sigma, output=image, truncate=3.0)
        self._add_noise(image)
        np.rint(image, out=image)
        np.clip(image, 1, 255, out=image)
        volume = image.astype(np.uint8)
        if masked is not None:
            volume[masked] = 0
        return volume

    def _density(self, slab: SheetSlab) -> np.ndarray:
        """Papyrus density relative to the mean, 0 in air."""
        scroll, distance = self.geometry.scroll, slab.distance
        thickness = (1 + self._swelling.at(slab.grid)) * np.float32(scroll.thickness)
        depth = distance / thickness  # 0 at the recto, 1 at the verso
        recto = np.clip(np.float32(1.3) - depth * 2, 0, 1)  # 1 in the recto layer, 0 in the verso layer
        gain = self._sheet_gain[slab.index % _TABLE]
        gain += self._patches.at(slab.grid)
        gain += (recto - np.float32(0.4)) * np.float32(scroll.recto_gain)
        gain += self._fibres(slab, recto)
        density = np.clip(distance / np.float32(_RECTO_EDGE) + np.float32(0.5), 0, 1)
        density *= np.clip((thickness - distance) / np.float32(_VERSO_EDGE) + np.float32(0.5), 0, 1)
        density *= 1 + gain
        middle = self._crack_depth.at(slab.grid) + np.float32(0.5)
        crack = np.clip(1 - np.abs(depth - middle) * thickness / np.float32(1.1), 0, 1)
        crack *= np.clip((self._crack_zone.at(slab.grid) - np.float32(self._crack_level)) * 4, 0, 1)
        density *= 1 - np.float32(0.8) * crack
        density[slab.hole] = 0
        return density

    def _fibres(self, slab: SheetSlab, recto: np.ndarray) -> np.ndarray:
        """Two crossed layers: recto fibres run around the scroll, verso fibres along its axis."""
        geometry, scroll = self.geometry, self.geometry.scroll
        wander = self._wander.at(slab.grid)
        wander += slab.index.astype(np.float32) * np.float32(2.3)
        wave = np.float32(2 * np.pi / scroll.fibre_period)
        around = np.cos((affine(slab.grid, geometry.axis) + wander) * wave)
        along = np.cos((affine(slab.grid, geometry.tangent) - wander) * (wave * np.float32(0.83)))
        return (along + (around - along) * recto) * np.float32(scroll.fibre_gain)

    def _add_specks(self, image: np.ndarray) -> None:
        """Small dense grains, a voxel or two across."""
        count = max(1, image.size // _VOXELS_PER_SPECK)
        centres = np.stack([self._rng.integers(1, edge - 1, count) for edge in image.shape], axis=1)
        strength = self._rng.uniform(40, 220, count).astype(np.float32)
        for offset in np.ndindex(3, 3, 3):
            step = np.array(offset) - 1
            weight = np.float32((1.0, 0.55, 0.3, 0.15)[int(np.abs(step).sum())])
            np.add.at(image, tuple((centres + step).T), strength * weight)

    def _add_noise(self, image: np.ndarray) -> None:
        """Gaussian noise with a short and a longer correlation, of the scroll's standard deviation in all."""
        for sigma, share in ((self.geometry.scroll.noise_sigma, 0.9), (2.2, 0.436)):
            noise = self._rng.standard_normal(image.shape, dtype=np.float32)
            gaussian_filter(noise, sigma, output=noise, truncate=3.0)
            noise *= np.float32(share * self.geometry.scroll.noise / _noise_scale(sigma))
            image += noise


def _noise_scale(sigma: float) -> float:
    """Standard deviation that filtering leaves of white noise in 3D: the kernel's l2 norm, cubed."""
    impulse = np.zeros(65)
    impulse[32] = 1
    return float(np.linalg.norm(gaussian_filter1d(impulse, sigma, truncate=3.0)) ** 3)
