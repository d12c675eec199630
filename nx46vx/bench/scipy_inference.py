"""Yardstick: a volume's probabilities as a user of SciPy and NumPy would write them, whole arrays at a time."""

from __future__ import annotations

import numpy as np
import scipy.ndimage as ndi

from nx46vx.bench.scipy_pool import clear_voxels, gradient, normal_of, scipy_feature
from nx46vx.features.extractors import standardise
from nx46vx.features.reference import VolumeReference, measure_reference
from nx46vx.model.ensemble import Ensemble
from nx46vx.model.neuron import fold


def scipy_probabilities(volume: np.ndarray, ensemble: Ensemble, dtype: type[np.floating] = np.float32) -> np.ndarray:
    """Probability of surface (z, y, x), computed in ``dtype``, of a uint8 volume.

    Each feature by itself, but the sheet normal once for all; its gradient magnitude; then each member's logit as
    products with its weights, and their weighted sum.
    """
    reference = measure_reference(volume)
    v, names = standardise(volume, reference).astype(dtype), ensemble.features
    normal = normal_of(v, reference)
    x = np.stack([scipy_feature(name, v, reference, normal) for name in names])
    g = np.stack([np.sqrt(sum(part * part for part in gradient(field))) for field in x])
    x, g = (part.reshape(len(names), -1).astype(dtype, copy=False) for part in (x, g))
    z = np.full(v.size, ensemble.constant, dtype)
    for spec, theta, share in ensemble.forms:
        rows, f = [names.index(name) for name in spec.view], len(spec.view)
        shift, scale = (np.array(part[:f], dtype)[:, None] for part in (spec.shift, spec.scale))
        weights = (share * fold(spec, theta)).astype(dtype)
        s = (x[rows] - shift) / scale
        z += weights[:f] @ s + weights[f : 2 * f] @ (s * s) + weights[2 * f : 3 * f] @ g[rows]
        z += weights[-1] + dtype(share * spec.prior_shift)
    return np.where(volume == 0, dtype(0), (1 / (1 + np.exp(-z))).reshape(volume.shape))


def comparable_voxels(volume: np.ndarray, reference: VolumeReference) -> np.ndarray:
    """Where probabilities can be compared: the sheet normal is well defined there and at the neighbours that the
    spatial gradient looks at."""
    clear = clear_voxels(standardise(volume, reference), reference)
    return np.asarray(ndi.binary_erosion(clear, border_value=1), bool)
