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
from typing import Literal

import numpy as np

from nx46vx.model.candidates import TILE
from nx46vx.model.state import LaneState

Method = Literal["fista", "ista"]

#: Columns of a lane's iteration record.
ITERATION_FIELDS = ("iter", "loss_at_gradient_point", "grad_norm", "step_norm", "active_weights", "restart")


#: What changes in a solver, the lanes last.
_STATE = ("theta", "point", "momentum", "iteration", "restarts")


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
    curvature: float | np.ndarray
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
        old, point = self.theta, self.point
        loss_at_point = loss + penalty(point, self.l1, self.l2)
        smooth = gradient.copy()
        smooth[:-1] += self.l2 * point[:-1]
        step = 1.0 / (self.curvature + self.l2)
        moved = point - step * smooth
        new = np.empty_like(moved)
        new[:-1] = soft_threshold(moved[:-1], step * self.l1)
        new[-1] = moved[-1]
        change = new - old
        if self.method == "fista":
            restart = _column_sum((point - new) * change) > 0.0
            grown = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * self.momentum * self.momentum))
            following = np.where(restart, new, new + ((self.momentum - 1.0) / grown) * change)
            momentum = np.where(restart, 1.0, grown)
        else:
            restart = np.zeros(self.l1.size, bool)
            following, momentum = new, self.momentum
        self.theta = np.where(active, new, old)
        self.point = np.where(active, following, point)
        self.momentum = np.where(active, momentum, self.momentum)
        self.iteration = self.iteration + active
        self.restarts = self.restarts + (active & restart)
        return np.stack(
            [
                self.iteration.astype(float),
                loss_at_point,
                np.sqrt(_column_sum(smooth * smooth)),
                np.sqrt(_column_sum(change * change)),
                (new[:-1] != 0.0).sum(axis=0).astype(float),
                restart.astype(float),
            ],
            axis=1,
        )


def step_together(
    solvers: Mapping[int, TileSolver], sums: Mapping[int, tuple[np.ndarray, np.ndarray]],
    active: Mapping[int, np.ndarray],
) -> dict[int, np.ndarray]:  # fmt: skip
    """``TileSolver.step`` of some meta-neurons' tiles: those of one width and method in one go."""
    rows: dict[int, np.ndarray] = {}
    for columns, method in {(solver.columns, solver.method) for solver in solvers.values()}:
        keys = [k for k, solver in solvers.items() if (solver.columns, solver.method) == (columns, method)]
        tiles = [solvers[k] for k in keys]
        l1, l2, curvature = (
            np.concatenate([np.broadcast_to(value, TILE) for value in values])
            for values in zip(*((tile.l1, tile.l2, tile.curvature) for tile in tiles), strict=True)
        )
        joint = TileSolver(columns, l1, l2, curvature, method)
        for name in _STATE:
            setattr(joint, name, np.concatenate([getattr(tile, name) for tile in tiles], axis=-1))
        loss, gradient = (np.concatenate([sums[k][part] for k in keys], axis=-1) for part in (0, 1))
        records = joint.step(loss, gradient, np.concatenate([active[k] for k in keys]))
        for place, (k, tile) in enumerate(zip(keys, tiles, strict=True)):
            lanes = slice(place * TILE, (place + 1) * TILE)
            for name in _STATE:
                setattr(tile, name, getattr(joint, name)[..., lanes])
            rows[k] = records[lanes]
    return rows


def _column_sum(values: np.ndarray) -> np.ndarray:
    """Sum over the rows, in row order, for each lane by itself."""
    return np.add.reduce(np.ascontiguousarray(values), axis=0)
