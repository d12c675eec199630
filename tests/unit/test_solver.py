"""The solver by itself: its parts against definitions, its steps against a plain FISTA for one lane, and its states."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nx46vx.model.candidates import TILE
from nx46vx.model.solver import ITERATION_FIELDS, TileSolver, optimality_gap, penalty, soft_threshold, step_together
from nx46vx.model.state import LaneState

COLUMNS = 7
ALL = np.ones(TILE, bool)
RESTART, ACTIVE = ITERATION_FIELDS.index("restart"), ITERATION_FIELDS.index("active_weights")

reals = st.floats(-50, 50, allow_subnormal=False)
tiles = hnp.arrays(np.float64, (COLUMNS, TILE), elements=reals)
rates = hnp.arrays(np.float64, (TILE,), elements=st.floats(0, 5, allow_subnormal=False))


class Quadratic:
    """1/2 theta' A theta - c' theta, another one in each lane; stands in for the cross-entropy."""

    def __init__(self, condition: float, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        basis, _ = np.linalg.qr(rng.standard_normal((TILE, COLUMNS, COLUMNS)))
        spectrum = np.geomspace(1.0, 1.0 / condition, COLUMNS)
        self.matrix = np.einsum("tik,k,tjk->tij", basis, spectrum, basis)
        self.target = rng.standard_normal((TILE, COLUMNS)) * 0.1
        self.curvature = 1.0

    def __call__(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        product = np.einsum("tij,jt->it", self.matrix, theta)
        loss = 0.5 * (theta * product).sum(axis=0) - (self.target.T * theta).sum(axis=0)
        return loss, product - self.target.T

    def objective(self, theta: np.ndarray, l1: np.ndarray, l2: np.ndarray) -> np.ndarray:
        return self(theta)[0] + penalty(theta, l1, l2)


def lanes(low: float = 1e-4, high: float = 1e-2, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(low, high, TILE), rng.uniform(low, high, TILE)


def run(solver: TileSolver, problem: Quadratic, steps: int) -> list[np.ndarray]:
    return [solver.step(*problem(solver.point), ALL) for _ in range(steps)]


@settings(deadline=None)
@given(tiles, rates)
def test_soft_threshold_moves_every_entry_towards_zero_and_not_beyond(values: np.ndarray, by: np.ndarray) -> None:
    found = soft_threshold(values, by)
    for row in range(COLUMNS):
        for lane in range(TILE):
            v, t = values[row, lane], by[lane]
            expected = v - t if v > t else v + t if v < -t else 0.0
            assert found[row, lane] == expected


@settings(max_examples=30, deadline=None)
@given(reals, st.floats(0, 5))
def test_soft_threshold_is_the_proximal_operator_of_the_absolute_value(value: float, by: float) -> None:
    found = float(soft_threshold(np.array([[value]]), np.array([by]))[0, 0])
    around = found + np.concatenate([np.linspace(-60, 60, 1201), np.geomspace(1e-6, 1, 50), -np.geomspace(1e-6, 1, 50)])
    assert 0.5 * (found - value) ** 2 + by * abs(found) <= (0.5 * (around - value) ** 2 + by * abs(around)).min() + 1e-9


@settings(deadline=None)
@given(tiles, rates, rates)
def test_penalty_is_the_elastic_net_without_the_intercept(theta: np.ndarray, l1: np.ndarray, l2: np.ndarray) -> None:
    for lane, found in enumerate(penalty(theta, l1, l2)):
        expected = sum(l1[lane] * abs(v) + l2[lane] / 2 * v * v for v in theta[:-1, lane])
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_the_optimality_gap_is_zero_at_an_optimum_and_only_there() -> None:
    rng = np.random.default_rng(3)
    l1, l2 = lanes()
    theta = rng.standard_normal((COLUMNS, TILE)) * (rng.random((COLUMNS, TILE)) < 0.6)
    gradient = np.zeros_like(theta)  # such that 0 lies in the subdifferential
    inside = rng.uniform(-1, 1, theta.shape)
    gradient[:-1] = np.where(theta[:-1] == 0, l1 * inside[:-1], -l2 * theta[:-1] - l1 * np.sign(theta[:-1]))
    assert optimality_gap(theta, gradient, l1, l2) == pytest.approx(np.zeros(TILE), abs=1e-15)
    for row in range(COLUMNS):
        moved = gradient.copy()
        moved[row] += (3 * l1 + 1e-3) * np.where(gradient[row] >= 0, 1, -1)
        assert (optimality_gap(theta, moved, l1, l2) > 9e-4).all()


@settings(deadline=None)
@given(tiles, tiles, rates, rates)
def test_the_optimality_gap_is_the_largest_entry_of_the_smallest_subgradient(
    theta: np.ndarray, gradient: np.ndarray, l1: np.ndarray, l2: np.ndarray
) -> None:
    theta = np.where(np.abs(theta) < 10, 0.0, theta)
    for lane, found in enumerate(optimality_gap(theta, gradient, l1, l2)):
        entries = [abs(gradient[-1, lane])]
        for row in range(COLUMNS - 1):
            smooth = gradient[row, lane] + l2[lane] * theta[row, lane]
            signs = [np.sign(theta[row, lane])] if theta[row, lane] else [-1.0, 1.0]
            ends = [smooth + l1[lane] * sign for sign in signs]
            entries.append(0.0 if min(ends) <= 0 <= max(ends) else min(abs(end) for end in ends))
        assert found == pytest.approx(max(entries), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("method", ["fista", "ista"])
def test_steps_are_those_of_a_plain_fista_written_for_one_lane(method: str) -> None:
    problem, (l1, l2) = Quadratic(1e3), lanes()
    solver = TileSolver(COLUMNS, l1, l2, problem.curvature, method)  # type: ignore[arg-type]
    records = run(solver, problem, 150)
    for lane in (0, 7, 15):
        matrix, target = problem.matrix[lane], problem.target[lane]
        x, y, t, restarts = np.zeros(COLUMNS), np.zeros(COLUMNS), 1.0, 0
        for number in range(150):
            smooth = matrix @ y - target
            value = 0.5 * y @ matrix @ y - target @ y + sum(l1[lane] * abs(v) + l2[lane] / 2 * v * v for v in y[:-1])
            smooth = smooth + l2[lane] * np.append(y[:-1], 0.0)
            rate = 1 / (problem.curvature + l2[lane])
            moved, new = y - rate * smooth, np.zeros(COLUMNS)
            for row in range(COLUMNS - 1):
                new[row] = np.sign(moved[row]) * max(abs(moved[row]) - rate * l1[lane], 0.0)
            new[-1] = moved[-1]
            again = method == "fista" and (y - new) @ (new - x) > 0
            following = (1 + np.sqrt(1 + 4 * t * t)) / 2
            if method == "ista" or again:
                y, t_new = new, 1.0
            else:
                y, t_new = new + (t - 1) / following * (new - x), following
            row = dict(zip(ITERATION_FIELDS, records[number][lane], strict=True))
            assert row["iter"] == number + 1
            assert row["loss_at_gradient_point"] == pytest.approx(value, rel=1e-9, abs=1e-12)
            assert row["grad_norm"] == pytest.approx(np.linalg.norm(smooth), rel=1e-6, abs=1e-10)
            assert row["step_norm"] == pytest.approx(np.linalg.norm(new - x), rel=1e-6, abs=1e-10)
            assert row["active_weights"] == np.count_nonzero(new[:-1])
            assert bool(row["restart"]) == again
            x, t, restarts = new, t_new, restarts + again
        state = solver.get(lane)
        assert state.theta == pytest.approx(x, rel=1e-9, abs=1e-12)
        assert state.point == pytest.approx(y, rel=1e-9, abs=1e-12)
        assert (state.momentum, state.restarts, state.iteration) == (pytest.approx(t), restarts, 150)


def test_restart_fires_where_momentum_overshoots_and_takes_the_momentum_away() -> None:
    problem, (l1, l2) = Quadratic(300.0), lanes(1e-6, 1e-5)
    solver = TileSolver(COLUMNS, l1, l2, problem.curvature)
    total = np.zeros(TILE)
    for _ in range(300):
        (record,) = run(solver, problem, 1)
        fired = record[:, RESTART] == 1.0
        assert (solver.momentum[fired] == 1.0).all()
        assert (solver.momentum[~fired] > 1.0).all()
        assert np.array_equal(solver.point[:, fired], solver.theta[:, fired])
        total += fired
    assert (total >= 2).all()
    assert np.array_equal(solver.restarts, total)


def test_restart_pays_on_an_ill_conditioned_problem() -> None:
    problem, (l1, l2) = Quadratic(300.0), lanes(1e-6, 1e-5)
    solver = TileSolver(COLUMNS, l1, l2, problem.curvature)
    run(solver, problem, 3000)
    optimum = problem.objective(solver.theta, l1, l2)

    def excess(restarting: bool) -> np.ndarray:
        solver = TileSolver(COLUMNS, l1, l2, problem.curvature)
        momentum = 1.0
        for _ in range(300):
            old = solver.theta
            solver.step(*problem(solver.point), ALL)
            if not restarting:  # what the momentum without restart would have done
                grown = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
                solver.point = solver.theta + (momentum - 1) / grown * (solver.theta - old)
                solver.momentum[:] = momentum = grown
        return problem.objective(solver.theta, l1, l2) - optimum

    assert excess(True).max() < 0.01 * excess(False).max()


def test_ista_never_goes_up_and_carries_no_momentum() -> None:
    problem, (l1, l2) = Quadratic(1e3), lanes()
    solver = TileSolver(COLUMNS, l1, l2, problem.curvature, "ista")
    last = problem.objective(solver.theta, l1, l2)
    for _ in range(400):
        (record,) = run(solver, problem, 1)
        now = problem.objective(solver.theta, l1, l2)
        assert (now <= last + 1e-15).all()
        assert np.array_equal(solver.point, solver.theta)
        assert (solver.momentum == 1.0).all()
        assert not record[:, RESTART].any()
        last = now


def test_fista_is_far_ahead_of_ista_after_120_iterations() -> None:
    problem, (l1, l2) = Quadratic(1e3), lanes(1e-5, 1e-4)
    excess = {}
    best = TileSolver(COLUMNS, l1, l2, problem.curvature)
    run(best, problem, 5000)
    for method in ("fista", "ista"):
        solver = TileSolver(COLUMNS, l1, l2, problem.curvature, method)  # type: ignore[arg-type]
        run(solver, problem, 120)
        excess[method] = problem.objective(solver.theta, l1, l2) - problem.objective(best.theta, l1, l2)
    assert excess["fista"].sum() < 0.1 * excess["ista"].sum()


def test_a_strong_l1_leaves_the_intercept_alone() -> None:
    problem, l2 = Quadratic(10.0), np.full(TILE, 1e-3)
    solver = TileSolver(COLUMNS, np.full(TILE, 10.0), l2, problem.curvature)
    records = run(solver, problem, 500)
    assert not solver.theta[:-1].any()
    assert solver.theta[-1] == pytest.approx(problem.target[:, -1] / problem.matrix[:, -1, -1])
    assert not records[-1][:, ACTIVE].any()


def test_lanes_outside_a_step_keep_every_bit() -> None:
    problem, (l1, l2) = Quadratic(1e2), lanes()
    solver = TileSolver(COLUMNS, l1, l2, problem.curvature)
    run(solver, problem, 5)
    before = [solver.get(lane).digest for lane in range(TILE)]
    active = np.arange(TILE) % 3 == 0
    solver.step(*problem(solver.point), active)
    after = [solver.get(lane).digest for lane in range(TILE)]
    assert [a == b for a, b in zip(before, after, strict=True)] == (~active).tolist()
    assert [solver.get(lane).iteration for lane in range(TILE)] == (5 + active).tolist()


def test_a_lane_put_into_another_solver_goes_on_with_the_same_bits() -> None:
    problem, (l1, l2) = Quadratic(1e2), lanes()
    first, second = (TileSolver(COLUMNS, l1, l2, problem.curvature) for _ in range(2))
    run(first, problem, 37)
    for lane in range(TILE):
        second.put(lane, first.get(lane))
    for a, b in zip(run(first, problem, 40), run(second, problem, 40), strict=True):
        assert a.tobytes() == b.tobytes()
    assert [first.get(lane).digest for lane in range(TILE)] == [second.get(lane).digest for lane in range(TILE)]


def test_a_lane_does_not_notice_its_neighbours() -> None:
    problem, (l1, l2) = Quadratic(1e2), lanes()
    alone, together = (TileSolver(COLUMNS, l1, l2, problem.curvature) for _ in range(2))
    for step in range(60):
        loss, gradient = problem(together.point)
        together.step(loss, gradient, ALL)
        strange = np.random.default_rng(step).standard_normal(gradient.shape) * 1e6
        strange[:, 4], odd = problem(alone.point)[1][:, 4], np.full(TILE, 1e9)
        odd[4] = problem(alone.point)[0][4]
        alone.step(odd, strange, np.arange(TILE) % 2 == 0)
    assert alone.get(4).digest == together.get(4).digest


def test_tiles_that_step_together_have_the_bits_of_each_by_itself() -> None:
    (l1, l2), problems = lanes(), {0: Quadratic(1e2), 4: Quadratic(1e3)}
    alone, together = (
        {k: TileSolver(COLUMNS, l1, l2, problem.curvature) for k, problem in problems.items()} for _ in range(2)
    )
    active = {0: np.arange(TILE) % 3 > 0, 4: ALL}
    for _ in range(30):
        rows = step_together(together, {k: problems[k](together[k].point) for k in problems}, active)
        for k, problem in problems.items():
            alone_rows = alone[k].step(*problem(alone[k].point), active[k])
            assert alone_rows[active[k]].tobytes() == rows[k][active[k]].tobytes()
    for k in problems:
        assert [alone[k].get(lane).digest for lane in range(TILE)] == [
            together[k].get(lane).digest for lane in range(TILE)
        ]
    assert together[0].iteration.tolist() == (30 * active[0]).tolist()


def test_a_state_taken_out_is_a_copy() -> None:
    problem, (l1, l2) = Quadratic(1e2), lanes()
    solver = TileSolver(COLUMNS, l1, l2, problem.curvature)
    run(solver, problem, 3)
    state = solver.get(2)
    digest = state.digest
    run(solver, problem, 3)
    assert state.digest == digest
    state.theta[:] = 99.0
    assert not (solver.theta[:, 2] == 99.0).any()


@settings(deadline=None)
@given(
    hnp.arrays(np.float64, 5, elements=st.floats(allow_nan=False)), hnp.arrays(np.float64, 5, elements=reals),
    st.floats(1, 1e6), st.integers(0, 2**40), st.integers(0, 2**40),
)  # fmt: skip
def test_a_state_survives_its_arrays_bit_for_bit(
    theta: np.ndarray, point: np.ndarray, momentum: float, iteration: int, restarts: int
) -> None:
    state = LaneState(theta, point, momentum, iteration, restarts)
    again = LaneState.from_arrays(state.arrays())
    assert again.digest == state.digest
    assert again.theta.tobytes() == theta.tobytes()
    assert (again.momentum, again.iteration, again.restarts) == (momentum, iteration, restarts)


def test_the_digest_sees_every_part_of_a_state() -> None:
    a, b = np.arange(4.0), np.ones(4)
    states = [
        LaneState(a, b), LaneState(b, a), LaneState(-a, b), LaneState(np.nextafter(a, 9), b), LaneState(a, b, 2.0),
        LaneState(a, b, 1.0, 1), LaneState(a, b, 1.0, 0, 1), LaneState.start(4), LaneState.start(5),
    ]  # fmt: skip
    assert len({state.digest for state in states}) == len(states)
    assert LaneState.start(4).digest == LaneState(np.zeros(4), np.zeros(4), 1.0, 0, 0).digest
