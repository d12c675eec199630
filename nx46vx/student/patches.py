"""Training patches: where they are cut, how they are standardised and varied. Each is a function of seeds alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from nx46vx.data.cases import Case
from nx46vx.data.volume_io import read_volume
from nx46vx.features.reference import VolumeReference, measure_reference
from nx46vx.student.channels import channels_of, standardised
from nx46vx.student.spec import IGNORED, StudentSpec

Place = tuple[slice, slice, slice]

#: A patch cut anywhere is drawn again, so many times, while hardly any of it is labelled.
_ATTEMPTS = 4
_LEAST_LABELLED = 0.05
_FINEST = 1e-3


@dataclass(frozen=True)
class Visit:
    """One reading of a case: number ``index`` of an epoch whose draws come from ``seed``."""

    case: int
    seed: int
    index: int


class PatchSource:
    """Cuts the patches of a visit. Holds plain data only, so that it can go to another process."""

    def __init__(self, spec: StudentSpec) -> None:
        self._references: dict[int, VolumeReference] = {}
        self._cases, self._settings = spec.train, spec.settings
        self._patch, self._symmetries = spec.patch, spec.symmetries

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, visit: Visit) -> tuple[np.ndarray, np.ndarray]:
        """Patches (k, C, D, H, W) float32 and their labels (k, 1, D, H, W) uint8."""
        case = self._cases[visit.case]
        image, label = read_pair(case)
        reference, surface = self._reference(visit.case, image), np.flatnonzero(label == 1)
        images, labels = [], []
        for number in range(self._settings.patches_per_visit):
            rng = np.random.default_rng(np.random.SeedSequence([visit.seed, visit.index, number]))
            place = self._place(label, surface, rng)
            symmetry = self._symmetries[int(rng.integers(len(self._symmetries)))]
            grey = varied(standardised(cut(image, place, "reflect"), reference), self._settings.intensity_noise, rng)
            seen = channels_of(grey, reference, self._settings.sides)
            images.append(np.ascontiguousarray(symmetry.of_array(seen)))
            labels.append(np.ascontiguousarray(symmetry.of_array(cut(label, place, IGNORED))))
        return np.stack(images), np.stack(labels)[:, None]

    def learn(self, cases: Iterable[int]) -> None:
        """Measure some cases ahead of their first visit."""
        for case in sorted({*cases} - self._references.keys()):
            self._reference(case, read_pair(self._cases[case])[0])

    def _reference(self, case: int, image: np.ndarray) -> VolumeReference:
        """Facts about a case's whole volume, measured when it is first read in this process."""
        if case not in self._references:
            self._references[case] = measure_reference(image)
        return self._references[case]

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
