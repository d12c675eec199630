"""A lane's bits do not depend on how the work is run: on the lanes beside it, the order of the requests, the length of
the blocks, the number of threads, the thread that computes, or a restart from a checkpoint in the middle."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from nx46vx.model.blocks import BlockResult, LaneRequest
from nx46vx.model.calibration import RandomSamples, random_samples
from nx46vx.model.candidates import TILE, Candidate, Grid
from nx46vx.model.engine import FitEngine
from nx46vx.model.neuron import NeuronSpec, prepare_neuron
from nx46vx.model.passes import KernelName, Passes
from nx46vx.model.samples import CHUNK, FitData
from nx46vx.model.state import LaneState

GRID = Grid((1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (1e-4, 1e-3, 1e-2))
NEURONS = 3
LENGTH = 24
CANDIDATES = GRID.candidates(range(NEURONS))
POOL = tuple(f"f{number}" for number in range(7))


#: The compiled kernel, and torch, which stands in for it where it cannot be had: each has to keep the promise.
kernels = pytest.mark.parametrize("kernel", ["llvm", "torch"])


def labelled(samples: int, seed: int) -> RandomSamples:
    """Random features with labels that depend on them, and uneven scales."""
    case = random_samples(samples, len(POOL), seed)
    rng = np.random.default_rng([seed, 1])
    case.features *= np.geomspace(0.1, 30, 2 * len(POOL), dtype=np.float32)[:, None]
    case.y = (case.features[0] * 5 + case.features[3] + rng.standard_normal(samples) > 0.4).astype(np.uint8)
    return case


@cache
def made(sizes: tuple[int, ...], chunk: int, width: int) -> tuple[FitData, tuple[NeuronSpec, ...]]:
    data = FitData(POOL, [labelled(n, seed) for seed, n in enumerate(sizes)], [labelled(301, 90)], chunk)
    views = [[POOL[(2 * k + step) % len(POOL)] for step in range(width)] for k in range(NEURONS)]
    return data, tuple(prepare_neuron(data, 0, k, view) for k, view in enumerate(views))


def small(width: int) -> tuple[FitData, tuple[NeuronSpec, ...]]:
    """Several chunks in each case, of odd lengths."""
    return made((750, 511, 97), 256, width)


def engine_on(width: int, kernel: KernelName, *, threads: int = 1, **how: Any) -> FitEngine:
    data, specs = small(width)
    engine = FitEngine(Passes(data, seed=0, threads=threads, prefer=kernel), GRID, **how)
    for spec in specs:
        engine.add_neuron(spec)
    return engine


def request(candidate: Candidate, state: LaneState, until: int) -> LaneRequest:
    return LaneRequest(candidate, state, until)


class Trajectory:
    """What one lane did: its state after some iterations, a record for each iteration, figures at some."""

    def __init__(self, start: LaneState) -> None:
        self.states, self.records, self.kpis = {start.iteration: start}, {}, {}

    def add(self, blocks: list[BlockResult]) -> None:
        for block in blocks:
            self.states[block.state.iteration] = block.state
            for row in block.iterations:
                self.records[int(row[0])] = row.tobytes()
            for kpi in block.kpis:
                self.kpis[kpi["iter"]] = dict(kpi)

    @property
    def last(self) -> LaneState:
        return self.states[max(self.states)]

    def assert_part_of(self, whole: Trajectory, *, kpis: int = 10) -> None:
        for iteration, state in self.states.items():
            assert state.digest == whole.states[iteration].digest, f"state after iteration {iteration}"
        for iteration, record in self.records.items():
            assert record == whole.records[iteration], f"record of iteration {iteration}"
        for iteration, kpi in self.kpis.items():
            if iteration % kpis == 0:
                assert kpi == whole.kpis[iteration], f"figures at iteration {iteration}"


@cache
def alone(candidate: Candidate, width: int, kernel: KernelName) -> Trajectory:
    """The reference: the lane by itself in a new engine, inline, one thread, one iteration at a time."""
    engine = engine_on(width, kernel, block=1)
    found = Trajectory(LaneState.start(3 * width + 1))
    while found.last.iteration < LENGTH:
        found.add(engine.advance(request(candidate, found.last, LENGTH)))
    engine.close()
    assert sorted(found.states) == list(range(LENGTH + 1))
    assert sorted(found.records) == list(range(1, LENGTH + 1))
    assert sorted(found.kpis) == [10, 20, LENGTH]
    return found


def go(engine: FitEngine, candidate: Candidate, start: LaneState, until: int) -> Trajectory:
    found = Trajectory(start)
    while found.last.iteration < until:
        found.add(engine.advance(request(candidate, found.last, until)))
    return found


some_candidates = st.lists(st.sampled_from(CANDIDATES), min_size=1, max_size=20, unique=True)
blocks = st.sampled_from([1, 3, 7, 10, 50])
widths = st.sampled_from([3, 6])  # products of other shapes take other ways through the BLAS
either = st.sampled_from(["llvm", "torch"])
#: An example takes engines and threads, so a failing one is shown as it was found: making it smaller takes minutes.
untimed = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)  # fmt: skip


@untimed
@given(
    widths, either, some_candidates, some_candidates, blocks, st.sampled_from([1, 2]), st.booleans(),
    st.lists(st.integers(0, LENGTH - 1), min_size=20, max_size=20),
)  # fmt: skip
def test_a_lane_has_the_same_bits_in_any_company_order_block_and_thread_count(
    width: int, kernel: KernelName, asked: list[Candidate], expected: list[Candidate], block: int, threads: int,
    background: bool, starts: list[int],
) -> None:  # fmt: skip
    """``asked`` come one after the other, each from a checkpoint somewhere; ``expected`` are advanced beside them."""
    engine = engine_on(width, kernel, block=block, threads=threads, background=background)
    try:
        engine.expect([request(one, alone(one, width, kernel).states[0], LENGTH) for one in expected])
        for candidate, start in zip(asked, starts, strict=False):
            found = go(engine, candidate, alone(candidate, width, kernel).states[start], LENGTH)
            assert found.last.iteration == LENGTH
            found.assert_part_of(alone(candidate, width, kernel))
    finally:
        engine.close()


@settings(untimed, max_examples=10)
@given(widths, either, some_candidates, blocks, st.sampled_from([1, 2]), st.booleans())
def test_a_lane_has_the_same_bits_when_trials_ask_at_the_same_time(
    width: int, kernel: KernelName, asked: list[Candidate], block: int, threads: int, background: bool
) -> None:
    engine = engine_on(width, kernel, block=block, threads=threads, background=background)
    try:
        with ThreadPoolExecutor(len(asked)) as pool:
            found = list(pool.map(lambda one: go(engine, one, alone(one, width, kernel).states[0], LENGTH), asked))
        for candidate, trajectory in zip(asked, found, strict=True):
            trajectory.assert_part_of(alone(candidate, width, kernel))
    finally:
        engine.close()


@settings(untimed, max_examples=10)
@given(
    widths, either, some_candidates,
    st.lists(st.integers(1, LENGTH - 1), min_size=1, max_size=4, unique=True).map(sorted),
    st.lists(st.tuples(blocks, st.sampled_from([1, 2]), st.booleans()), min_size=5, max_size=5), st.randoms(),
)  # fmt: skip
def test_engines_that_die_and_are_restarted_change_no_bit(
    width: int,
    kernel: KernelName,
    asked: list[Candidate],
    kills: list[int],
    engines: list[tuple[int, int, bool]],
    random: Random,
) -> None:
    """Each engine takes all lanes to the next kill; their states go through arrays, as through a checkpoint."""
    found = {one: Trajectory(alone(one, width, kernel).states[0]) for one in asked}
    for until, (block, threads, background) in zip([*kills, LENGTH], engines, strict=False):
        engine = engine_on(width, kernel, block=block, threads=threads, background=background)
        random.shuffle(asked)
        for one in asked:
            saved = LaneState.from_arrays(found[one].last.arrays())
            while saved.iteration < until:
                answer = engine.advance(request(one, saved, until))
                found[one].add(answer)
                saved = answer[-1].state
        engine.close()
    for one, trajectory in found.items():
        trajectory.assert_part_of(alone(one, width, kernel))
        assert sorted(trajectory.records) == list(range(1, LENGTH + 1))


@kernels
@pytest.mark.parametrize("chunk", [256, CHUNK])
@pytest.mark.parametrize("width", [3, 6])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_pass_of_a_new_thread_has_the_bits_of_any_other(
    threads: int, width: int, chunk: int, kernel: KernelName
) -> None:
    """Libraries keep their number of threads by calling thread: a new one must not split a product in two."""
    data, specs = made((CHUNK + 2_001, 3_333), chunk, width)
    passes = [Passes(data, seed=0, threads=number, prefer=kernel) for number in (1, threads)]
    assert {one.kernel for one in passes} == {kernel}
    for one in passes:
        for spec in specs:
            one.add(spec)
    rng = np.random.default_rng(0)
    thetas = {spec.meta_neuron: 0.3 * rng.standard_normal((spec.columns, TILE)) for spec in specs}
    expected = [passes[0].gradients(thetas), passes[0].validate(thetas)]
    results: list[list] = []
    for _ in range(3):
        thread = threading.Thread(
            target=lambda: results.append([passes[1].gradients(thetas), passes[1].validate(thetas)])
        )
        thread.start()
        thread.join()
    for gradients, validation in results:
        for k in thetas:
            assert gradients[k][0].tobytes() == expected[0][k][0].tobytes()
            assert gradients[k][1].tobytes() == expected[0][k][1].tobytes()
            assert validation[k][0].tobytes() == expected[1][k][0].tobytes()
            for counted, other in zip(validation[k][1], expected[1][k][1], strict=True):
                assert np.array_equal(counted.true_positives, other.true_positives)
                assert np.array_equal(counted.false_positives, other.false_positives)
    for one in passes:
        one.close()


@kernels
@pytest.mark.parametrize("width", [1, 3, 6])
def test_a_column_of_a_tile_does_not_notice_the_others_in_chunks_of_full_size(width: int, kernel: KernelName) -> None:
    """Full-size chunks meet other code in the BLAS than small ones do; so do views of other widths."""
    which = made((CHUNK + 5_001, 3_333), CHUNK, width)
    data, specs = which
    passes = [Passes(data, seed=0, threads=threads, prefer=kernel) for threads in (1, 2)]
    for one in passes:
        for spec in specs:
            one.add(spec)
    rng = np.random.default_rng(1)
    columns = specs[0].columns
    base = {k: 0.3 * rng.standard_normal((columns, TILE)) for k in range(NEURONS)}
    expected, checked = passes[0].gradients(base), passes[0].validate(base)
    for turn in range(12):
        lane, k = (5 * turn) % (TILE - 1), turn % NEURONS
        other = np.zeros((columns, TILE)) if turn % 3 == 0 else 3 * rng.standard_normal((columns, TILE))
        other[:, lane] = base[k][:, lane]
        beside = {} if turn % 2 else {(k + 1) % NEURONS: rng.standard_normal((columns, TILE))}
        one = passes[turn // 2 % 2]
        loss, gradient = one.gradients({**beside, k: other})[k]
        assert loss[lane] == expected[k][0][lane]
        assert gradient[:, lane].tobytes() == expected[k][1][:, lane].tobytes()
        mean, counts = one.validate({k: other, **beside})[k]
        assert mean[lane] == checked[k][0][lane]
        assert np.array_equal(counts[lane].true_positives, checked[k][1][lane].true_positives)
    for one in passes:
        one.close()


@kernels
@pytest.mark.parametrize("width", [3, 6])
def test_the_lanes_of_the_reference_differ_so_that_the_comparison_means_something(
    width: int, kernel: KernelName
) -> None:
    assert len({alone(one, width, kernel).last.digest for one in CANDIDATES}) == len(CANDIDATES)
    state = alone(CANDIDATES[0], width, kernel).states[5]
    assert replace(state, theta=np.nextafter(state.theta, np.inf)).digest != state.digest
