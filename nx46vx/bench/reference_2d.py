"""Yardstick: the 2D way of the earlier runs. A volume is projected along z, its one mask is repeated in every slice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude
from scipy.optimize import minimize

from nx46vx.bench.quality_methods import Choice, Method, Training
from nx46vx.inference.masks.dust import remove_dust
from nx46vx.model.metrics import sigmoid

#: Scales of the smoothed projections and of their gradients, in pixels.
_SMOOTH, _SLOPES = (1.0, 2.0, 4.0), (1.0, 2.0)
#: Shares of the image that are called surface, and the fewest pixels of a component.
_SHARES, _DUST = (0.03, 0.06, 0.1, 0.15, 0.25, 0.4, 0.6, 0.8), (1, 32)
_RIDGE = 1e-4


def projections(volume: np.ndarray) -> np.ndarray:
    """Features (F, y, x) float64 of a volume (z, y, x): mean and maximum over z, smoothed, and their gradients.

    Each is standardised over its own image.
    """
    images = []
    for flat in (volume.mean(axis=0), volume.max(axis=0).astype(np.float64)):
        images += [flat, *(gaussian_filter(flat, sigma) for sigma in _SMOOTH)]
        images += [gaussian_gradient_magnitude(flat, sigma) for sigma in _SLOPES]
    found = np.stack(images)
    centred = found - found.mean(axis=(1, 2), keepdims=True)
    spread = centred.std(axis=(1, 2), keepdims=True)
    return np.asarray(centred / np.where(spread > 0, spread, 1.0))


def flat_label(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of surface among the labelled voxels of each column, and how many those are, (y, x) float64."""
    surface, labelled = (label == 1).sum(axis=0), (label < 2).sum(axis=0)
    return surface / np.maximum(labelled, 1), labelled.astype(np.float64)


def fit_logistic(x: np.ndarray, share: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weights (F + 1,), the intercept last, of the weighted cross-entropy's minimum for shares in [0, 1]; x (F, n)."""
    columns, total = np.vstack([x, np.ones(x.shape[1])]), weight.sum()

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        z = np.einsum("f,fn->n", theta, columns)
        error = weight * (sigmoid(z) - share) / total
        penalty = _RIDGE * np.append(theta[:-1], 0.0)
        value = weight @ (np.logaddexp(0.0, z) - share * z) / total + 0.5 * float(penalty @ theta)
        return value, np.einsum("fn,n->f", columns, error) + penalty

    found = minimize(loss, np.zeros(len(columns)), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return np.asarray(found.x)


class Reference2D(Method):
    """Logistic regression of a pixel's share of surface. Its mask is the ``share`` of the image with the highest
    values, without components of fewer than ``dust`` pixels, in all slices alike."""

    def __init__(self) -> None:
        self.theta = np.zeros(0)

    def fit(self, training: Training) -> None:
        x, y, weights = [], [], []
        for image, label in training.volumes():
            share, weight = flat_label(label)
            x.append(projections(image).reshape(-1, share.size))
            y.append(share.ravel())
            weights.append(weight.ravel())
        self.theta = fit_logistic(np.concatenate(x, axis=1), np.concatenate(y), np.concatenate(weights))

    def choices(self) -> Sequence[Choice]:
        return [{"share": share, "dust": dust} for share in _SHARES for dust in _DUST]

    def prepare(self, volume: np.ndarray, choice: Choice) -> tuple[np.ndarray, int]:
        scores = np.einsum("f,fyx->yx", self.theta[:-1], projections(volume)) + self.theta[-1]
        return scores, volume.shape[0]

    def finish(self, prepared: tuple[np.ndarray, int], choice: Choice) -> np.ndarray:
        scores, depth = prepared
        flat = scores >= np.quantile(scores, 1.0 - choice["share"])
        return np.repeat(remove_dust(flat[None], choice["dust"]), depth, axis=0).view(np.uint8)
