"""Samples of generated scrolls with the pool's and the candidates' features, also of volumes turned about each axis.

A turned volume is sampled at the voxels that the volume's own samples have moved to, so only orientation differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from nx46vx.bench.families import CandidateFamily, candidate_names, sample_candidates
from nx46vx.data.synthetic import make_case
from nx46vx.features.blocks import sample_features
from nx46vx.features.extractors import standardise
from nx46vx.features.pool import feature_names
from nx46vx.features.reference import measure_reference
from nx46vx.features.sampling import case_seed, labelled_counts, sample_balanced, sample_natural, spatial_blocks
from nx46vx.features.spread import usable_cpus
from nx46vx.model.calibration import RandomSamples


@dataclass(frozen=True)
class Rotation:
    """``quarters`` quarter turns about an axis (0 z, 1 y, 2 x)."""

    axis: int
    quarters: int

    @property
    def name(self) -> str:
        return f"{90 * self.quarters} about {'zyx'[self.axis]}"

    def turn(self, volume: np.ndarray) -> np.ndarray:
        """The turned volume, contiguous."""
        first, second = (axis for axis in range(3) if axis != self.axis)
        return np.ascontiguousarray(np.rot90(volume, self.quarters, (first, second)))

    def moved(self, index: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Where the voxels at flat ``index`` of a volume of this shape lie in the turned one, as flat indices."""
        origin = self.turn(np.arange(np.prod(shape)).reshape(shape)).ravel()
        found = np.empty_like(origin)
        found[origin] = np.arange(origin.size)
        return found[index]


#: By 90 and by 180 degrees about each axis.
ROTATIONS = tuple(Rotation(axis, quarters) for axis in range(3) for quarters in (1, 2))
#: Key of the volume as it is.
UPRIGHT = "upright"


@dataclass(frozen=True)
class ScrollSamples:
    """One scroll: samples to fit on (both classes alike), and others to judge on as they come.

    ``judged``: features (2 C, n) float32 by orientation, ``UPRIGHT`` first, of the same voxels in the same order;
    ``y`` (n,) their labels. Columns are the pool's features, then the candidates', then all their gradients.
    """

    scroll: int
    fitted: RandomSamples
    judged: dict[str, np.ndarray]
    y: np.ndarray


def column_names(families: Sequence[CandidateFamily]) -> tuple[str, ...]:
    """Names of the columns: the pool's features, then the candidates'."""
    return (*feature_names(), *candidate_names(families))


def scroll_samples(
    scrolls: Sequence[int], edge: int, fitted: int, judged: int, families: Sequence[CandidateFamily]
) -> list[ScrollSamples]:
    """Samples of some generated scrolls: at most ``fitted`` and ``judged`` voxels of each."""
    make = partial(_one_scroll, edge=edge, fitted=fitted, judged=judged, families=families)
    with ThreadPoolExecutor(usable_cpus()) as threads:
        return list(threads.map(make, scrolls))


def _one_scroll(
    scroll: int, edge: int, fitted: int, judged: int, families: Sequence[CandidateFamily]
) -> ScrollSamples:  # fmt: skip
    volume, label = make_case((edge, edge, edge), scroll=scroll, seed=scroll)
    draw = sample_balanced(label, fitted, case_seed(0, f"scroll-{scroll}", "fitted"))
    seen = sample_natural(label, judged, case_seed(0, f"scroll-{scroll}", "judged"))
    group = spatial_blocks(draw, label.shape)
    order = np.lexsort((draw, group))  # as the feature cache keeps them
    draw, group = draw[order], group[order]
    both = _columns(volume, np.concatenate([draw, seen]), families)
    y = (label.ravel() == 1).astype(np.uint8)
    samples = RandomSamples(
        f"scroll-{scroll}", np.ascontiguousarray(both[:, : draw.size]), y[draw], group, draw, labelled_counts(label)
    )  # fmt: skip
    turned = {
        rotation.name: _columns(rotation.turn(volume), rotation.moved(seen, volume.shape), families)
        for rotation in ROTATIONS
    }
    return ScrollSamples(scroll, samples, {UPRIGHT: both[:, draw.size :], **turned}, y[seen])


def _columns(volume: np.ndarray, index: np.ndarray, families: Sequence[CandidateFamily]) -> np.ndarray:
    """Everything measured anew on this volume, as a run would: its reference, then the features."""
    reference = measure_reference(volume)
    pool = sample_features(volume, reference, feature_names(), index, block=max(volume.shape))
    if not families:
        return pool
    more = sample_candidates(standardise(volume, reference), reference, index, families)
    return np.concatenate([part for half in range(2) for part in (np.split(pool, 2)[half], np.split(more, 2)[half])])
