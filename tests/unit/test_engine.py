"""The engine: blocks that join up, figures that are true, guesses that are never believed, errors that reach all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from model_samples import Problem, make_data, make_specs
from sklearn.metrics import fbeta_score, jaccard_score, log_loss

from nx46vx.model.blocks import BlockResult, LaneRequest, start_request
from nx46vx.model.candidates import Candidate, Grid
from nx46vx.model.engine import FitEngine
from nx46vx.model.neuron import NeuronSpec, neuron_logits
from nx46vx.model.passes import Passes
from nx46vx.model.samples import FitData
from nx46vx.model.solver import ITERATION_FIELDS
from nx46vx.model.state import LaneState

GRID = Grid((1e-3, 3e-2), (1e-3, 1e-2))
WAIT = 60.0

Build = Callable[..., FitEngine]


@pytest.fixture(scope="module")
def data() -> FitData:
    return make_data((500, 700), 5, intercept=-0.7)


@pytest.fixture(scope="module")
def specs(data: FitData) -> list[NeuronSpec]:
    return make_specs(data, neurons=2)


@pytest.fixture
def build(data: FitData, specs: list[NeuronSpec]) -> Iterator[Build]:
    """Makes engines, and closes them at the end."""
    made: list[FitEngine] = []

    def make(*, known: int = 2, passes: type[Passes] = Passes, **how) -> FitEngine:
        engine = FitEngine(passes(data, seed=0), GRID, **how)
        made.append(engine)
        for spec in specs[:known]:
            engine.add_neuron(spec)
        return engine

    yield make
    for engine in made:
        engine.close()


def begin(specs: list[NeuronSpec], candidate: Candidate, until: int) -> LaneRequest:
    return start_request(candidate, specs[candidate.meta_neuron], until)


def follow(engine: FitEngine, request: LaneRequest) -> list[BlockResult]:
    """All blocks of a candidate from a request on, asked for like a trial does."""
    blocks: list[BlockResult] = []
    while request.state.iteration < request.until:
        blocks += engine.advance(request)
        request = replace(request, state=blocks[-1].state)
    return blocks


def kpis(blocks: list[BlockResult]) -> list[dict]:
    return [dict(one) for block in blocks for one in block.kpis]


def rows(blocks: list[BlockResult]) -> np.ndarray:
    return np.concatenate([block.iterations for block in blocks])


FIRST = Candidate(0, 1e-3, 1e-2)
OTHER = Candidate(1, 3e-2, 1e-3)
both = pytest.mark.parametrize("background", [False, True], ids=["inline", "background"])


@both
def test_blocks_join_up_from_the_start_to_the_last_iteration(
    build: Build, specs: list[NeuronSpec], background: bool
) -> None:
    request = begin(specs, FIRST, 34)
    blocks = follow(build(background=background), request)
    assert [block.state.iteration for block in blocks] == [10, 20, 30, 34]
    assert [block.before for block in blocks] == [request.state.digest, *(b.state.digest for b in blocks[:-1])]
    assert all(block.candidate == FIRST for block in blocks)
    found = rows(blocks)
    assert found.shape == (34, len(ITERATION_FIELDS))
    assert found.dtype == np.float64
    assert found[:, 0].tolist() == list(range(1, 35))
    assert [one["iter"] for one in kpis(blocks)] == [10, 20, 30, 34]
    assert all(block.seconds >= 0 for block in blocks)


def test_blocks_end_at_multiples_of_their_length_wherever_a_request_starts(
    build: Build, specs: list[NeuronSpec]
) -> None:
    state = follow(build(block=1), begin(specs, FIRST, 13))[-1].state
    blocks = follow(build(block=7), LaneRequest(FIRST, state, 30))
    assert [block.state.iteration for block in blocks] == [14, 21, 28, 30]
    assert [one["iter"] for one in kpis(blocks)] == [20, 30]


@both
def test_figures_are_those_of_the_float64_definitions(
    build: Build, data: FitData, specs: list[NeuronSpec], background: bool
) -> None:
    (block,) = build(background=background).advance(begin(specs, FIRST, 10))
    (kpi,) = block.kpis
    spec, theta = specs[0], block.state.theta
    problem, case, rows_ = Problem.of(spec, data), data.validation[0], data.rows(spec.view)
    f = len(spec.view)
    assert kpi["train_loss"] == pytest.approx(problem.loss(theta), rel=1e-5)
    assert kpi["fit_objective"] == pytest.approx(problem.objective(theta, FIRST.l1, FIRST.l2), rel=1e-5)
    smooth = problem.gradient(theta) + FIRST.l2 * np.append(theta[:-1], 0.0)
    gap = [max(abs(s) - FIRST.l1, 0) if t == 0 else abs(s + FIRST.l1 * np.sign(t)) for s, t in zip(smooth, theta)][:-1]
    assert kpi["optimality_gap"] == pytest.approx(max([*gap, abs(smooth[-1])]), rel=1e-3, abs=1e-6)
    z = neuron_logits(spec, theta, case.features[rows_[:f]], case.features[rows_[f:]])
    p = 1 / (1 + np.exp(-z))
    assert kpi["val_ce"] == pytest.approx(log_loss(case.y, p), rel=1e-5)
    mask = p >= kpi["best_threshold"]
    assert kpi["val_fbeta"] == pytest.approx(fbeta_score(case.y, mask, beta=0.5), abs=0.01)
    assert kpi["val_f1"] == pytest.approx(fbeta_score(case.y, mask, beta=1.0), abs=0.01)
    assert kpi["val_iou"] == pytest.approx(jaccard_score(case.y, mask), abs=0.01)
    assert (kpi["val_positives"], kpi["val_negatives"]) == (int(case.y.sum()), int((1 - case.y).sum()))
    assert len(kpi["val_true_positives"]) == len(kpi["val_false_positives"]) == 19


@pytest.mark.parametrize("method", ["fista", "ista"])
def test_the_loss_in_a_record_is_the_objective_at_the_gradient_point(
    build: Build, data: FitData, specs: list[NeuronSpec], method: str
) -> None:
    blocks = follow(build(block=1, method=method), begin(specs, FIRST, 25))
    problem, points = Problem.of(specs[0], data), [np.zeros(specs[0].columns), *(b.state.point for b in blocks)]
    for record, point in zip(rows(blocks), points, strict=False):
        assert record[1] == pytest.approx(problem.objective(point, FIRST.l1, FIRST.l2), rel=1e-5)


def test_ista_goes_down_in_every_iteration_on_the_samples(
    build: Build, data: FitData, specs: list[NeuronSpec]
) -> None:
    blocks = follow(build(block=1, method="ista"), begin(specs, FIRST, 60))
    problem = Problem.of(specs[0], data)
    values = np.array([problem.objective(block.state.theta, FIRST.l1, FIRST.l2) for block in blocks])
    assert (np.diff(values) <= 1e-7 * values[:-1]).all()
    assert values[-1] < values[0] - 0.003
    assert not rows(blocks)[:, ITERATION_FIELDS.index("restart")].any()
    assert all(block.state.momentum == 1.0 for block in blocks)


@both
def test_more_iterations_continue_from_the_state_and_repeat_nothing(
    build: Build, specs: list[NeuronSpec], background: bool
) -> None:
    """Epochs: 20 and then 20 more are the 40 of one go, on the same engine and on one that is new."""
    whole = follow(build(), begin(specs, FIRST, 40))
    engine = build(background=background)
    first = follow(engine, begin(specs, FIRST, 20))
    done = engine.stats()["lane_iterations"]
    second = follow(engine, LaneRequest(FIRST, first[-1].state, 40))
    assert engine.stats()["lane_iterations"] - done == 20
    elsewhere = follow(build(background=background), LaneRequest(FIRST, first[-1].state, 40))
    for end in (second, elsewhere):
        assert end[-1].state.digest == whole[-1].state.digest
        assert rows(first + end).tobytes() == rows(whole).tobytes()
        assert kpis(first + end) == kpis(whole)


@both
def test_what_is_expected_is_done_ahead_and_handed_out_as_a_chain(
    build: Build, specs: list[NeuronSpec], background: bool
) -> None:
    engine = build(background=background)
    requests = [begin(specs, candidate, 30) for candidate in GRID.candidates([0, 1])]
    engine.expect(requests)
    follow(engine, requests[0])
    ends = [follow(engine, request)[-1].state.digest for request in requests[1:]]
    assert engine.stats()["lane_iterations"] == len(requests) * 30
    assert ends == [follow(build(), request)[-1].state.digest for request in requests[1:]]


@both
def test_a_trial_that_lost_its_answer_asks_again_and_gets_it(
    build: Build, specs: list[NeuronSpec], background: bool
) -> None:
    engine = build(background=background)
    first = engine.advance(begin(specs, FIRST, 10))
    again = engine.advance(begin(specs, FIRST, 10))
    assert [block.state.digest for block in again] == [block.state.digest for block in first]
    assert engine.stats()["lane_iterations"] == 10
    further = follow(engine, LaneRequest(FIRST, first[-1].state, 30))
    back = follow(engine, begin(specs, FIRST, 30))  # from the very start, long after: computed anew
    assert rows(back).tobytes() == rows(first + further).tobytes()


def test_what_others_need_is_advanced_in_the_same_pass(build: Build, specs: list[NeuronSpec]) -> None:
    engine = build()
    engine.expect([begin(specs, candidate, 10) for candidate in GRID.candidates([0, 1])])
    engine.advance(begin(specs, FIRST, 10))
    assert engine.stats()["lane_iterations"] == 80
    engine.advance(begin(specs, OTHER, 10))
    assert engine.stats()["lane_iterations"] == 80


@both
def test_a_guess_from_another_state_is_never_used(build: Build, specs: list[NeuronSpec], background: bool) -> None:
    """The engine went ahead from the start; the trial comes with a checkpoint of its own."""
    engine = build(background=background)
    engine.expect([begin(specs, FIRST, 30)])
    follow(engine, begin(specs, OTHER, 30))
    rng = np.random.default_rng(0)
    resumed = LaneState(rng.standard_normal(specs[0].columns), rng.standard_normal(specs[0].columns), 3.0, 10, 2)
    request = LaneRequest(FIRST, resumed, 30)
    found, alone = follow(engine, request), follow(build(), request)
    assert found[0].before == resumed.digest
    assert [block.state.digest for block in found] == [block.state.digest for block in alone]
    assert rows(found).tobytes() == rows(alone).tobytes()


@both
def test_one_bit_of_difference_is_another_state(build: Build, specs: list[NeuronSpec], background: bool) -> None:
    engine = build(background=background)
    blocks = follow(engine, begin(specs, FIRST, 30))
    state = blocks[0].state
    nudged = replace(state, theta=np.nextafter(state.theta, np.inf))
    others = [nudged, replace(state, momentum=np.nextafter(state.momentum, 9)), replace(state, restarts=9)]
    for other in others:
        assert engine.advance(LaneRequest(FIRST, other, 30))[0].before == other.digest


@both
def test_a_guess_that_goes_further_than_asked_is_not_used_either(
    build: Build, specs: list[NeuronSpec], background: bool
) -> None:
    """Expected up to 30, asked for up to 15: the answer ends at 15, with the bits of a request for 15."""
    engine = build(background=background)
    engine.expect([begin(specs, FIRST, 30)])
    follow(engine, begin(specs, OTHER, 30))
    found, alone = follow(engine, begin(specs, FIRST, 15)), follow(build(), begin(specs, FIRST, 15))
    assert [block.state.iteration for block in found] == [10, 15]
    assert found[-1].state.digest == alone[-1].state.digest
    assert kpis(found) == kpis(alone)


@both
def test_two_trials_that_disagree_on_one_candidate_both_get_their_own(
    build: Build, specs: list[NeuronSpec], background: bool
) -> None:
    """A trial whose driver was killed goes on asking while its successor does."""
    engine = build(background=background)
    start = begin(specs, FIRST, 40)
    ahead = LaneRequest(FIRST, follow(build(), begin(specs, FIRST, 13))[-1].state, 40)
    with ThreadPoolExecutor(2) as pool:
        answers = [future.result(WAIT) for future in [pool.submit(follow, engine, one) for one in (start, ahead)]]
    expected = follow(build(), start)[-1].state.digest
    assert [blocks[-1].state.digest for blocks in answers] == [expected, expected]
    assert rows(answers[0])[13:].tobytes() == rows(answers[1]).tobytes()


@both
def test_many_trials_at_once_get_what_each_would_get_alone(
    build: Build, specs: list[NeuronSpec], background: bool
) -> None:
    requests = [begin(specs, candidate, 20) for candidate in GRID.candidates([0, 1])]
    alone = [follow(build(), request)[-1].state.digest for request in requests]
    engine = build(background=background)
    with ThreadPoolExecutor(len(requests)) as pool:
        together = [blocks[-1].state.digest for blocks in pool.map(lambda one: follow(engine, one), requests)]
    assert together == alone
    assert len(set(together)) == len(together)


def test_adding_a_neuron_twice_is_one_neuron_and_keeps_what_was_done(build: Build, specs: list[NeuronSpec]) -> None:
    engine, plain = build(), build()
    request = begin(specs, FIRST, 30)
    first = engine.advance(request)
    engine.add_neuron(specs[0])
    engine.add_neuron(specs[1])
    rest = follow(engine, replace(request, state=first[-1].state))
    assert (first + rest)[-1].state.digest == follow(plain, request)[-1].state.digest
    assert engine.stats()["lane_iterations"] == 30


@both
def test_a_neuron_added_later_disturbs_nobody(build: Build, specs: list[NeuronSpec], background: bool) -> None:
    engine = build(known=1, background=background)
    request = begin(specs, FIRST, 30)
    first = engine.advance(request)
    engine.add_neuron(specs[1])
    grown = follow(engine, begin(specs, OTHER, 20))
    rest = follow(engine, replace(request, state=first[-1].state))
    assert rest[-1].state.digest == follow(build(), request)[-1].state.digest
    assert grown[-1].state.digest == follow(build(), begin(specs, OTHER, 20))[-1].state.digest


def test_a_neuron_with_another_bootstrap_is_refused(build: Build, specs: list[NeuronSpec]) -> None:
    with pytest.raises(ValueError, match="bootstrap of meta-neuron 0"):
        build(known=0).add_neuron(replace(specs[0], weights_digest="0" * 128))


class Faulty(Passes):
    """Works twice, then waits for ``go`` and fails."""

    go = threading.Event()
    left = 2

    def gradients(self, thetas):  # type: ignore[no-untyped-def]
        if self.left == 0:
            self.go.wait(WAIT)
            raise FloatingPointError("the device is gone")
        self.left -= 1
        return super().gradients(thetas)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> type[Passes]:
    monkeypatch.setattr(Faulty, "go", threading.Event())
    return Faulty


def test_an_error_in_the_loop_reaches_every_waiter_and_all_who_come_later(
    build: Build, specs: list[NeuronSpec], faulty: type[Faulty]
) -> None:
    engine = build(passes=faulty, background=True)
    requests = [begin(specs, candidate, 20) for candidate in GRID.candidates([0, 1])]
    with ThreadPoolExecutor(len(requests)) as pool:
        waiting = [pool.submit(engine.advance, request) for request in requests]
        faulty.go.set()
        for future in waiting:
            with pytest.raises(RuntimeError, match="engine stopped") as caught:
                future.result(WAIT)
            assert isinstance(caught.value.__cause__, FloatingPointError)
    with pytest.raises(RuntimeError, match="engine stopped"):
        engine.advance(requests[0])


def test_an_error_inline_is_the_callers(build: Build, specs: list[NeuronSpec], faulty: type[Faulty]) -> None:
    faulty.go.set()
    engine = build(passes=faulty)
    with pytest.raises(FloatingPointError, match="device is gone"):
        engine.advance(begin(specs, FIRST, 20))


@both
def test_a_candidate_of_an_unknown_neuron_is_an_error_and_no_hang(
    build: Build, specs: list[NeuronSpec], background: bool
) -> None:
    engine = build(known=1, background=background)
    with pytest.raises((KeyError, RuntimeError)) as caught:
        engine.advance(begin(specs, OTHER, 20))
    assert "[1]" in str(caught.value) + str(caught.value.__cause__)


@both
def test_a_candidate_off_the_grid_is_refused(build: Build, specs: list[NeuronSpec], background: bool) -> None:
    engine = build(background=background)
    with pytest.raises(ValueError, match="not in tuple"):
        engine.advance(begin(specs, Candidate(0, 0.5, 0.5), 20))
    assert engine.advance(begin(specs, FIRST, 10))[0].state.iteration == 10


@both
def test_a_candidate_that_is_done_is_told_so(build: Build, specs: list[NeuronSpec], background: bool) -> None:
    engine = build(background=background)
    state = follow(engine, begin(specs, FIRST, 10))[-1].state
    with pytest.raises(ValueError, match=r"k000-l1_0.001-l2_0.01 has nothing left"):
        engine.advance(LaneRequest(FIRST, state, 10))


def test_closing_wakes_those_who_wait(build: Build, specs: list[NeuronSpec], faulty: type[Faulty]) -> None:
    engine = build(passes=faulty, background=True)
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(engine.advance, begin(specs, FIRST, 20))
        closing = pool.submit(engine.close)
        with pytest.raises(RuntimeError, match="engine was closed"):
            waiting.result(WAIT)
        faulty.go.set()
        closing.result(WAIT)
    with pytest.raises(RuntimeError, match="closed|stopped"):
        engine.advance(begin(specs, FIRST, 20))


def test_an_engine_that_works_in_the_background_goes_on_without_being_asked(
    build: Build, specs: list[NeuronSpec]
) -> None:
    engine = build(background=True)
    engine.expect([begin(specs, candidate, 30) for candidate in GRID.candidates([0])])
    turns = threading.Event()
    for _ in range(int(WAIT / 0.02)):
        if engine.stats()["lane_iterations"] == 120:
            break
        turns.wait(0.02)
    assert engine.stats()["lane_iterations"] == 120
    assert engine.stats()["busy_seconds"] > 0
    blocks = engine.advance(begin(specs, FIRST, 30))
    assert [block.state.iteration for block in blocks] == [10, 20, 30]


def test_the_answers_are_the_callers_to_keep(build: Build, specs: list[NeuronSpec]) -> None:
    """A state that was handed out does not move while the engine goes on."""
    engine = build()
    (block,) = engine.advance(begin(specs, FIRST, 30))
    digest, theta = block.state.digest, block.state.theta.copy()
    follow(engine, LaneRequest(FIRST, block.state, 30))
    assert block.state.digest == digest
    assert np.array_equal(block.state.theta, theta)
