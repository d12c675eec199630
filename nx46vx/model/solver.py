"""Proximal gradient on a tile of lanes: a state machine without I/O, clock, data or device.

FISTA: Beck & Teboulle, "A fast iterative shrinkage-thresholding algorithm", SIAM J. Imaging Sci. 2 (2009); momentum
reset by the gradient scheme of O'Donoghue & Candes, "Adaptive restart for accelerated gradient schemes", Found.
Comput. Math. 15 (2015). The objective of one lane is

    CE(theta) + l1 * |theta_pen|_1 + (l2 / 2) * |theta_pen|_2^2

where ``theta_pen`` leaves out the last entry, the intercept. All arrays are float64 of shape (columns, TILE) or
(TILE,), always whole tiles, and every operation acts on each lane by itself, so that a lane's bits do not depend on
its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from nx46vx.model.candidates import TILE
from nx46vx.model.state import LaneState

Method = Literal["fista", "ista"]

#: Columns of a lane's iteration record.
ITERATION_FIELDS = ("iter", "loss_at_gradient_point", "grad_norm", "step_norm", "active_weights", "restart")


def soft_threshold(values: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """The proximal operator of ``threshold * |.|_1``."""
    return np.sign(values) * np.maximum(np.abs(values) - threshold, 0.0)


def penalty(theta: np.ndarray, l1: np.ndarray, l2: np.ndarray) -> np.ndarray:
    """l1 |theta|_1 + (l2/2) |theta|_2^2 of each lane, intercept (last row) left out; shape (TILE,)."""
    body = theta[:-1]
    return l1 * _column_sum(np.abs(body)) + 0.5 * l2 * _column_sum(body * body)


def optimality_gap(theta: np.ndarray, gradient: np.ndarray, l1: np.ndarray, l2: np.ndarray) -> np.ndarray:
    """Largest entry of the smallest subgradient of the objective at ``theta``; 0 exactly at an optimum.

    ``gradient`` is the cross-entropy's, at ``theta``. Shape (TILE,).
    """
    body, smooth = theta[:-1], gradient[:-1] + l2 * theta[:-1]
    at_zero = np.maximum(np.abs(smooth) - l1, 0.0)
    off_zero = np.abs(smooth + l1 * np.sign(body))
    gap = np.where(body == 0.0, at_zero, off_zero).max(axis=0)
    return np.maximum(gap, np.abs(gradient[-1]))


@dataclass
class TileSolver:
    """The 16 lanes of a meta-neuron. Lanes outside ``active`` in a step keep their state untouched."""

    columns: int
    l1: np.ndarray
    l2: np.ndarray
    curvature: float
    method: Method = "fista"
    theta: np.ndarray = field(init=False)
    point: np.ndarray = field(init=False)
    momentum: np.ndarray = field(init=False)
    iteration: np.ndarray = field(init=False)
    restarts: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.theta = np.zeros((self.columns, TILE))
        self.point = np.zeros((self.columns, TILE))
        self.momentum = np.ones(TILE)
        self.iteration = np.zeros(TILE, np.int64)
        self.restarts = np.zeros(TILE, np.int64)

    def put(self, lane: int, state: LaneState) -> None:
        """Set one lane."""
        self.theta[:, lane], self.point[:, lane] = state.theta, state.point
        self.momentum[lane] = state.momentum
        self.iteration[lane], self.restarts[lane] = state.iteration, state.restarts

    def get(self, lane: int) -> LaneState:
        """A copy of one lane."""
        return LaneState(
            self.theta[:, lane].copy(), self.point[:, lane].copy(), float(self.momentum[lane]),
            int(self.iteration[lane]), int(self.restarts[lane]),
        )  # fmt: skip

    def step(self, loss: np.ndarray, gradient: np.ndarray, active: np.ndarray) -> np.ndarray:
        """One iteration of the active lanes, given cross-entropy (TILE,) and gradient (columns, TILE) at ``point``.

        Returns the iteration records, shape (TILE, len(ITERATION_FIELDS)); rows of idle lanes are meaningless.
        """
        return step_together({0: self}, {0: (loss, gradient)}, {0: active})[0]


class _State(NamedTuple):
    """What changes in a solver, the lanes last."""

    theta: np.ndarray
    point: np.ndarray
    momentum: np.ndarray
    iteration: np.ndarray
    restarts: np.ndarray


def _step(
    method: Method, l1: np.ndarray, l2: np.ndarray, curvature: np.ndarray, state: _State, loss: np.ndarray,
    gradient: np.ndarray, active: np.ndarray,
) -> tuple[_State, np.ndarray]:  # fmt: skip
    """``TileSolver.step`` of any number of lanes: the state that follows, and the records."""
    old, point = state.theta, state.point
    loss_at_point = loss + penalty(point, l1, l2)
    smooth = gradient.copy()
    smooth[:-1] += l2 * point[:-1]
    step = 1.0 / (curvature + l2)
    moved = point - step * smooth
    new = np.empty_like(moved)
    new[:-1] = soft_threshold(moved[:-1], step * l1)
    new[-1] = moved[-1]
    change = new - old
    if method == "fista":
        restart = _column_sum((point - new) * change) > 0.0
        grown = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * state.momentum * state.momentum))
        following = np.where(restart, new, new + ((state.momentum - 1.0) / grown) * change)
        momentum = np.where(restart, 1.0, grown)
    else:
        restart = np.zeros(l1.size, bool)
        following, momentum = new, state.momentum
    iteration = state.iteration + active
    rows = np.stack(
        [
            iteration.astype(float),
            loss_at_point,
            np.sqrt(_column_sum(smooth * smooth)),
            np.sqrt(_column_sum(change * change)),
            (new[:-1] != 0.0).sum(axis=0).astype(float),
            restart.astype(float),
        ],
        axis=1,
    )
    return _State(
        np.where(active, new, old), np.where(active, following, point), np.where(active, momentum, state.momentum),
        iteration, state.restarts + (active & restart),
    ), rows  # fmt: skip


def step_together(
    solvers: Mapping[int, TileSolver], sums: Mapping[int, tuple[np.ndarray, np.ndarray]],
    active: Mapping[int, np.ndarray],
) -> dict[int, np.ndarray]:  # fmt: skip
    """``TileSolver.step`` of some meta-neurons' tiles: those of one width and method in one go."""
    rows: dict[int, np.ndarray] = {}
    for columns, method in {(solver.columns, solver.method) for solver in solvers.values()}:
        keys = [k for k, solver in solvers.items() if (solver.columns, solver.method) == (columns, method)]
        tiles = [solvers[k] for k in keys]
        l1, l2 = (np.concatenate([getattr(tile, name) for tile in tiles]) for name in ("l1", "l2"))
        curvature = np.repeat([tile.curvature for tile in tiles], TILE)
        state = _State(*(np.concatenate([getattr(tile, name) for tile in tiles], -1) for name in _State._fields))
        loss, gradient = (np.concatenate([sums[k][part] for k in keys], -1) for part in (0, 1))
        following, records = _step(
            method, l1, l2, curvature, state, loss, gradient, np.concatenate([active[k] for k in keys])
        )  # fmt: skip
        for place, (k, tile) in enumerate(zip(keys, tiles, strict=True)):
            lanes = slice(place * TILE, (place + 1) * TILE)
            for name, values in zip(_State._fields, following, strict=True):
                setattr(tile, name, values[..., lanes])
            rows[k] = records[lanes]
    return rows


def _column_sum(values: np.ndarray) -> np.ndarray:
    """Sum over the rows, in row order, for each lane by itself."""
    return np.add.reduce(np.ascontiguousarray(values), axis=0)
