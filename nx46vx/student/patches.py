"""Training patches: where they are cut, how they are standardised and varied. Each is a function of seeds alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nx46vx.data.cases import Case
from nx46vx.data.volume_io import read_volume
from nx46vx.student.losses import IGNORED
from nx46vx.student.spec import StudentSpec

Place = tuple[slice, slice, slice]

#: Planes that a volume's grey values are measured on, at most.
_PLANES = 64
_QUANTILES = 2.5631031310892007  # distance between the 10 % and 90 % quantiles of a standard normal
#: A patch cut anywhere is drawn again, so many times, while hardly any of it is labelled.
_ATTEMPTS = 4
_LEAST_LABELLED = 0.05
_FINEST = 1e-3


def grey_scale(volume: np.ndarray) -> tuple[float, float]:
    """Median and robust standard deviation of the grey values that are not zero, on evenly spread planes."""
    step = max(1, len(volume) // _PLANES)
    counts = np.zeros(256, np.int64)
    for plane in volume[::step]:
        counts += np.bincount(plane.ravel(), minlength=256)
    counts[0] = 0
    total = int(counts.sum())
    if total == 0:
        return 0.0, 1.0
    low, median, high = (float(np.searchsorted(np.cumsum(counts), q * total)) for q in (0.1, 0.5, 0.9))
    return median, max((high - low) / _QUANTILES, 1.0)


def standardised(grey: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Grey values as float32 in robust standard deviations from the median."""
    return (grey.astype(np.float32) - np.float32(scale[0])) / np.float32(scale[1])


@dataclass(frozen=True)
class Visit:
    """One reading of a case: number ``index`` of an epoch whose draws come from ``seed``."""

    case: int
    seed: int
    index: int


class PatchSource:
    """Cuts the patches of a visit. Holds plain data only, so that it can go to another process."""

    def __init__(self, spec: StudentSpec) -> None:
        self._cases, self._settings = spec.train, spec.settings
        self._patch, self._symmetries = spec.patch, spec.symmetries

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, visit: Visit) -> tuple[np.ndarray, np.ndarray]:
        """Patches (k, 1, D, H, W) float32 and their labels, alike, uint8."""
        case = self._cases[visit.case]
        image, label = read_pair(case)
        scale, surface = grey_scale(image), np.flatnonzero(label == 1)
        images, labels = [], []
        for number in range(self._settings.patches_per_visit):
            rng = np.random.default_rng(np.random.SeedSequence([visit.seed, visit.index, number]))
            place = self._place(label, surface, rng)
            symmetry = self._symmetries[int(rng.integers(len(self._symmetries)))]
            grey = standardised(cut(image, place, "reflect"), scale)
            images.append(np.ascontiguousarray(symmetry.of_array(varied(grey, self._settings.intensity_noise, rng))))
            labels.append(np.ascontiguousarray(symmetry.of_array(cut(label, place, IGNORED))))
        return np.stack(images)[:, None], np.stack(labels)[:, None]

    def _place(self, label: np.ndarray, surface: np.ndarray, rng: np.random.Generator) -> Place:
        """Around a surface voxel, or anywhere that is not mostly unlabelled."""
        if surface.size and rng.random() < self._settings.surface_share:
            flat = int(surface[int(rng.integers(surface.size))])
            centre = [int(at) for at in np.unravel_index(flat, label.shape)]
            jitter = [int(rng.integers(-(edge // 4), edge // 4 + 1)) for edge in self._patch]
            starts = [at + by - edge // 2 for at, by, edge in zip(centre, jitter, self._patch, strict=True)]
            return self._within(starts, label.shape)
        for _ in range(_ATTEMPTS):
            starts = [
                int(rng.integers(max(size - edge, 0) + 1)) for size, edge in zip(label.shape, self._patch, strict=True)
            ]
            place = self._within(starts, label.shape)
            if np.mean(label[place] != IGNORED) >= _LEAST_LABELLED:
                break
        return place

    def _within(self, starts: Sequence[int], shape: Sequence[int]) -> Place:
        z, y, x = (
            slice(first := min(max(start, 0), max(size - edge, 0)), first + edge)
            for start, size, edge in zip(starts, shape, self._patch, strict=True)
        )
        return z, y, x


def read_pair(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """A case's volume and label, (z, y, x) uint8.

    Raises:
        DataError: a file is damaged.
    """
    assert case.label is not None
    return read_volume(case.image, case_id=case.case_id), read_volume(case.label, case_id=case.case_id)


def cut(volume: np.ndarray, place: Place, beyond: str | int) -> np.ndarray:
    """A box of a volume; what reaches past its end is mirrored (``"reflect"``) or filled with a value."""
    inner = volume[place]
    missing = [(0, (part.stop - part.start) - size) for part, size in zip(place, inner.shape, strict=True)]
    if not any(after for _, after in missing):
        return inner
    if beyond == "reflect":
        return np.pad(inner, missing, mode="symmetric")
    return np.pad(inner, missing, constant_values=beyond)


def varied(grey: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Another contrast, another offset and some noise, each up to ``strength`` standard deviations."""
    if strength < _FINEST:
        return grey
    gain, offset = 1.0 + strength * rng.uniform(-1, 1), strength * rng.uniform(-1, 1)
    noise = rng.standard_normal(grey.shape, dtype=np.float32)
    return (grey * np.float32(gain) + np.float32(offset)) + noise * np.float32(strength * rng.uniform(0, 1))
