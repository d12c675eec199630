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
from nx46vx.model.ensemble import Ensemble
from nx46vx.model.metrics import sigmoid
from nx46vx.model.neuron import fold


def probability_volume(
    volume: np.ndarray,
    ensemble: Ensemble,
    *,
    block: int,
    threads: int | None = None,
    on_block: Callable[[int, int], None] | None = None,
    how: Backend | None = None,
) -> np.ndarray:
    """Probability of surface, float32 (z, y, x), of a uint8 volume (z, y, x).

    Only one block of at most ``block`` cubed voxels and its halo are smoothed at a time, and three planes of features
    per thread are in memory. ``threads`` (all processors unless given) share the work; neither they nor ``block`` nor
    ``how`` change a bit. ``on_block`` is told (blocks done, blocks in all).
    """
    names = ensemble.features
    if not names:  # no member helped: the same probability everywhere
        return np.full(volume.shape, sigmoid(np.array(ensemble.intercept)), np.float32)
    threads, how = threads or usable_cpus(), how or backend()
    reference = measure_reference(volume, threads=threads, how=how)
    terms, constant = quadratic_terms(ensemble, names)
    probability = np.empty(volume.shape, np.float32)
    windows = list(block_windows(volume.shape, block))
    for number, window in enumerate(windows, start=1):
        features = how.block(volume, window, reference, names, threads=threads)
        fill = partial(_fill, probability[window], how, terms, constant)
        each_plane(features, window, volume.shape, fill, threads=threads)
        if on_block is not None:
            on_block(number, len(windows))
    return probability


def quadratic_terms(ensemble: Ensemble, names: Sequence[str]) -> tuple[np.ndarray, float]:
    """The ensemble's logit as constant + sum over features of (a s + b) s + c g, s = x - shift.

    Returns:
        ``(F, 4)`` float32 of shift, a, b and c for each of ``names``, and the constant. A feature's shift is the mean
        of its members' shifts, which keeps s small.
    """
    active = ensemble.active
    shifts = {
        name: float(np.mean([m.spec.shift[m.spec.view.index(name)] for m in active if name in m.spec.view]))
        for name in names
    }
    terms = {name: np.zeros(3) for name in names}
    constant = ensemble.intercept
    for member in active:
        spec, count = member.spec, len(member.spec.view)
        weights = member.weight * fold(spec, np.array(member.theta))
        constant += float(weights[-1]) + member.weight * spec.prior_shift
        for row, name in enumerate(spec.view):
            linear, square, spatial = (float(weights[part * count + row]) for part in range(3))
            scale, moved = spec.scale[row], (shifts[name] - spec.shift[row]) / spec.scale[row]
            # The neuron's feature is s / scale + moved.
            terms[name] += (square / scale**2, (linear + 2 * square * moved) / scale, spatial)
            constant += (linear + square * moved) * moved
    return np.array([(shifts[name], *terms[name]) for name in names], np.float32), constant


def _fill(
    probability: np.ndarray, how: Backend, terms: np.ndarray, constant: float,
    number: int, before: np.ndarray, here: np.ndarray, after: np.ndarray,
) -> None:  # fmt: skip
    logit = how.quadratic(before, here, after, terms, constant)
    probability[number] = sigmoid(logit.astype(np.float64))
