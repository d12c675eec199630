"""Tries what might be faster on a GPU against what is known to be right; the outcome is an event."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch

from nx46vx.errors import in_words
from nx46vx.model.candidates import TILE
from nx46vx.model.gpu_options import Curves, Products
from nx46vx.model.neuron import fold
from nx46vx.model.notes import Notes

if TYPE_CHECKING:
    from nx46vx.model.passes_gpu import Tile

#: Folded weights (columns, TILE) to a tile's sums over the training samples.
Sums = Callable[[np.ndarray], np.ndarray]

#: Largest change of the objective, relative to itself, that reduced precision may make.
LIMIT = 1e-5
#: Steps of gradient descent after which the objectives are compared.
STEPS = 10


def try_compiling(curves: Curves, weight: torch.Tensor, notes: Notes) -> Curves:
    """The curves through torch.compile, if that works and gives the same figures; else as they are.

    One compilation for all lengths: torch gives up after some eight of a kind, and without ``fullgraph`` it would not
    say so.
    """
    started = time.perf_counter()
    z = torch.linspace(-30, 30, TILE * weight.numel(), device=weight.device).view(TILE, -1)
    try:
        made: Curves = torch.compile(curves, dynamic=True, fullgraph=True)
        expected, found = curves(z.clone(), weight), made(z.clone(), weight)
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, one, rtol=LIMIT, atol=LIMIT)
    except Exception as error:  # a missing compiler, an old GPU, a fault of the compiler: torch has a kind for each
        notes.add("GPU_OPTION_FALLBACK", option="compile", reason=in_words(error))
        return curves
    notes.add("GPU_OPTION_DECISION", option="compile", used=True, seconds=time.perf_counter() - started)
    return made


def try_reduced_precision(products: Products, sums: Sums, tile: Tile, notes: Notes) -> None:
    """Descend some steps with reduced products and with plain ones; allow the former if the objective is the same.

    Compared are the losses at both ends, each computed plainly, and the reduced loss at its own end.
    """
    if not products.available:
        notes.add("GPU_PRECISION_DECISION", mode="float32", reason="this device has no TF32")
        return
    started = time.perf_counter()
    rng = np.random.default_rng(0)
    start = 0.1 * rng.standard_normal((tile.spec.columns, TILE))
    with products.plain():
        exact = _descend(sums, tile, start)
        best = _loss(sums, tile, exact)
    with products.tried():
        reduced = _descend(sums, tile, start)
        seen = _loss(sums, tile, reduced)
    with products.plain():
        reached = _loss(sums, tile, reduced)
    difference = float(max(np.abs(reached / best - 1).max(), np.abs(seen / reached - 1).max()))
    products.reduced = difference < LIMIT
    notes.add(
        "GPU_PRECISION_DECISION", mode="tf32" if products.reduced else "float32", relative_difference=difference,
        limit=LIMIT, steps=STEPS, seconds=time.perf_counter() - started,
    )  # fmt: skip


def _descend(sums: Sums, tile: Tile, theta: np.ndarray) -> np.ndarray:
    for _ in range(STEPS):
        weights = fold(tile.spec, theta)
        theta = theta - tile.figures(weights, sums(weights))[1] / tile.spec.curvature
    return theta


def _loss(sums: Sums, tile: Tile, theta: np.ndarray) -> np.ndarray:
    weights = fold(tile.spec, theta)
    return tile.figures(weights, sums(weights))[0]
