"""Yardstick: one candidate at a time, as the earlier runs fitted: float64, every product a pass over all samples."""

from __future__ import annotations

import time

import numpy as np
from threadpoolctl import threadpool_limits

from nx46vx.model.fitplan import FitPlan
from nx46vx.model.samples import FitData


def serial_fit(
    x: np.ndarray, g: np.ndarray, y: np.ndarray, *, l1: float, l2: float, iterations: int, step: float = 0.08
) -> tuple[np.ndarray, float]:
    """Plain proximal gradient from zero; weights (3, F) of features, squares and gradients, and the intercept.

    ``x`` and ``g`` are (samples, F) float64, ``y`` 0.0 or 1.0. Squares are computed anew for every product.
    """
    samples, features = x.shape
    weights, intercept = np.zeros((3, features)), 0.0
    for _ in range(iterations):
        logits = x @ weights[0] + np.square(x) @ weights[1] + g @ weights[2] + intercept
        error = 1.0 / (1.0 + np.exp(-np.clip(logits, -30.0, 30.0))) - y
        slopes = np.stack([x.T @ error, np.square(x).T @ error, g.T @ error]) / samples
        moved = weights - step * (slopes + l2 * weights)
        weights = np.sign(moved) * np.maximum(np.abs(moved) - step * l1, 0.0)
        intercept -= step * float(error.mean())
    return weights, intercept


def serial_ns(data: FitData, plan: FitPlan, iterations: int, threads: int) -> float:
    """Nanoseconds per sample and iteration of one candidate of the first meta-neuron, with so many BLAS threads."""
    rows, f = data.rows(plan.spec(0).view), len(plan.spec(0).view)
    raw = np.concatenate([case.features[rows] for case in data.train], axis=1).astype(np.float64)
    x, g = (np.ascontiguousarray(part.T) for part in (raw[:f], raw[f:]))
    y = np.concatenate([case.y for case in data.train]).astype(np.float64)
    with threadpool_limits(threads, user_api="blas"):
        started = time.perf_counter()
        serial_fit(x, g, y, l1=1e-3, l2=1e-3, iterations=iterations)
        seconds = time.perf_counter() - started
    return 1e9 * seconds / (y.size * iterations)
