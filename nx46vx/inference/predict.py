"""From a volume to the probability of surface in each voxel, block by block.

Every neuron is a quadratic form without mixed terms, and so is their weighted sum: an ensemble of any size costs one
form over the features that it sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from nx46vx.features.backend import Backend, backend
from nx46vx.features.blocks import block_windows, each_plane
from nx46vx.features.reference import measure_reference
from nx46vx.features.spread import usable_cpus
from nx46vx.inference.masks.doubt import Prediction, spread
from nx46vx.model.ensemble import Ensemble, Form
from nx46vx.model.metrics import sigmoid
from nx46vx.model.neuron import fold

#: Takes a block's window, the plane's number in it, and the features before it, its own and those after it.
OnPlane = Callable[[tuple[slice, slice, slice], int, np.ndarray, np.ndarray, np.ndarray], None]


def probability_volume(
    volume: np.ndarray,
    ensemble: Ensemble,
    *,
    block: int,
    threads: int | None = None,
    on_block: Callable[[int, int], None] | None = None,
    how: Backend | None = None,
    also: OnPlane | None = None,
) -> np.ndarray:
    """Probability of surface, float32 (z, y, x), of a uint8 volume (z, y, x).

    Only one block of at most ``block`` cubed voxels and its halo are smoothed at a time, and three planes of features
    per thread are in memory. ``threads`` (all processors unless given) share the work; neither they nor ``block`` nor
    ``how`` change a bit. ``on_block`` is told (blocks done, blocks in all). ``also`` sees every plane of features.
    Where nothing was scanned (``volume`` is 0) the probability is exactly 0.
    """
    names = ensemble.features
    if not names:  # no member helped: the same probability everywhere
        return without_unscanned(np.full(volume.shape, sigmoid(np.array(ensemble.constant)), np.float32), volume)
    threads, how = threads or usable_cpus(), how or backend()
    reference = measure_reference(volume, threads=threads, how=how)
    terms, constant = quadratic_terms(ensemble.forms, ensemble.constant, names)
    probability = np.empty(volume.shape, np.float32)
    windows = list(block_windows(volume.shape, block))
    for number, window in enumerate(windows, start=1):
        features = how.block(volume, window, reference, names, threads=threads)
        fill = partial(_fill, probability[window], how, terms, constant, also and partial(also, window))
        each_plane(features, window, volume.shape, fill, threads=threads)
        if on_block is not None:
            on_block(number, len(windows))
    return without_unscanned(probability, volume)


def without_unscanned(probability: np.ndarray, volume: np.ndarray) -> np.ndarray:
    """``probability`` (z, y, x), changed in place: 0 where the volume's grey value is 0, which is no papyrus."""
    for plane, grey in zip(probability, volume, strict=True):
        plane[grey == 0] = 0
    return probability


def predict(
    volume: np.ndarray, ensemble: Ensemble, *, block: int, vote_at: float, threads: int | None = None,
    how: Backend | None = None,
) -> Prediction:  # fmt: skip
    """The ensemble's probabilities and how far those agree that have a say, its joint fit among them; one votes for
    surface at ``vote_at``.

    Args as for ``probability_volume``; memory likewise, and two bytes per voxel more.
    """
    how = how or backend()
    deviation, disagreement = (np.zeros(volume.shape, np.uint8) for _ in range(2))
    see = _Voices(ensemble, vote_at, how, deviation, disagreement) if len(ensemble.forms) > 1 else None
    probability = probability_volume(volume, ensemble, block=block, threads=threads, how=how, also=see)
    return Prediction(probability, deviation, disagreement)


class _Voices:
    """Fills the two maps, plane by plane, from the probabilities that each form of an ensemble gives by itself."""

    def __init__(
        self, ensemble: Ensemble, vote_at: float, how: Backend, deviation: np.ndarray, disagreement: np.ndarray
    ) -> None:
        names, forms = ensemble.features, ensemble.forms
        total = sum(share for *_, share in forms)
        self._weights = [share / total for *_, share in forms]
        self._rows = [[names.index(name) for name in spec.view] for spec, *_ in forms]
        self._terms = [quadratic_terms([(spec, theta, 1.0)], 0.0, spec.view) for spec, theta, _ in forms]
        self._vote_at, self._how = vote_at, how
        self._deviation, self._disagreement = deviation, disagreement

    def __call__(
        self, window: tuple[slice, slice, slice], number: int, before: np.ndarray, here: np.ndarray, after: np.ndarray
    ) -> None:
        seen = []
        for rows, (terms, constant) in zip(self._rows, self._terms, strict=True):
            low, middle, high = (np.ascontiguousarray(plane[rows]) for plane in (before, here, after))
            seen.append(sigmoid(self._how.quadratic(low, middle, high, terms, constant).astype(np.float64)))
        maps = spread(np.stack(seen), self._weights, self._vote_at)
        self._deviation[window][number], self._disagreement[window][number] = maps


def quadratic_terms(forms: Sequence[Form], constant: float, names: Sequence[str]) -> tuple[np.ndarray, float]:
    """The logit of some forms' sum and ``constant`` as constant + sum over features of (a s + b) s + c g,
    s = x - shift.

    Returns:
        ``(F, 4)`` float32 of shift, a, b and c for each of ``names``, and the constant. A feature's shift is the mean
        of its neurons' shifts, which keeps s small.
    """
    seen = {name: [spec.shift[spec.view.index(name)] for spec, *_ in forms if name in spec.view] for name in names}
    shifts = {name: float(np.mean(found)) if found else 0.0 for name, found in seen.items()}
    terms = {name: np.zeros(3) for name in names}
    for spec, theta, share in forms:
        count = len(spec.view)
        weights = share * fold(spec, theta)
        constant += float(weights[-1]) + share * spec.prior_shift
        for row, name in enumerate(spec.view):
            linear, square, spatial = (float(weights[part * count + row]) for part in range(3))
            scale, moved = spec.scale[row], (shifts[name] - spec.shift[row]) / spec.scale[row]
            # The neuron's feature is s / scale + moved.
            terms[name] += (square / scale**2, (linear + 2 * square * moved) / scale, spatial)
            constant += (linear + square * moved) * moved
    return np.array([(shifts[name], *terms[name]) for name in names], np.float32), constant


def _fill(
    probability: np.ndarray, how: Backend, terms: np.ndarray, constant: float, also: Callable[..., None] | None,
    number: int, before: np.ndarray, here: np.ndarray, after: np.ndarray,
) -> None:  # fmt: skip
    logit = how.quadratic(before, here, after, terms, constant)
    probability[number] = sigmoid(logit.astype(np.float64))
    if also is not None:
        also(number, before, here, after)
