"""The engine at work: blocks that join up, figures that are true, epochs that go on, and work done ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from engine_bench import FIRST, GRID, OTHER, WAIT, Engines, begin, both, fit_data, fit_specs, follow, kpis, rows
from model_samples import Problem
from sklearn.metrics import fbeta_score, jaccard_score, log_loss

from nx46vx.model.blocks import LaneRequest
from nx46vx.model.neuron import neuron_logits
from nx46vx.model.solver import ITERATION_FIELDS


@pytest.fixture
def build() -> Iterator[Engines]:
    engines = Engines()
    yield engines
    engines.close()


@both
def test_blocks_join_up_from_the_start_to_the_last_iteration(build: Engines, background: bool) -> None:
    request = begin(FIRST, 34)
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


def test_blocks_end_at_multiples_of_their_length_and_at_every_tenth_wherever_a_request_starts(build: Engines) -> None:
    state = follow(build(block=1), begin(FIRST, 13))[-1].state
    blocks = follow(build(block=7), LaneRequest(FIRST, state, 30))
    assert [block.state.iteration for block in blocks] == [14, 20, 21, 28, 30]
    assert [one["iter"] for one in kpis(blocks)] == [20, 30]


@both
def test_figures_are_those_of_the_float64_definitions(build: Engines, background: bool) -> None:
    (block,) = build(background=background).advance(begin(FIRST, 10))
    (kpi,) = block.kpis
    spec, theta = fit_specs()[0], block.state.theta
    problem, case, rows_ = Problem.of(spec, fit_data()), fit_data().validation[0], fit_data().rows(spec.view)
    f = len(spec.view)
    assert kpi["train_loss"] == pytest.approx(problem.loss(theta), rel=1e-5)
    assert kpi["fit_objective"] == pytest.approx(problem.objective(theta, FIRST.l1, FIRST.l2), rel=1e-5)
    smooth = problem.gradient(theta) + FIRST.l2 * np.append(theta[:-1], 0.0)
    gap = [
        max(abs(s) - FIRST.l1, 0) if t == 0 else abs(s + FIRST.l1 * np.sign(t))
        for s, t in zip(smooth[:-1], theta[:-1], strict=True)
    ]
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
def test_the_loss_in_a_record_is_the_objective_at_the_gradient_point(build: Engines, method: str) -> None:
    blocks = follow(build(block=1, method=method), begin(FIRST, 25))
    problem, points = (
        Problem.of(fit_specs()[0], fit_data()),
        [np.zeros(fit_specs()[0].columns), *(b.state.point for b in blocks)],
    )
    for record, point in zip(rows(blocks), points, strict=False):
        assert record[1] == pytest.approx(problem.objective(point, FIRST.l1, FIRST.l2), rel=1e-5)


def test_ista_goes_down_in_every_iteration_on_the_samples(build: Engines) -> None:
    blocks = follow(build(block=1, method="ista"), begin(FIRST, 60))
    problem = Problem.of(fit_specs()[0], fit_data())
    values = np.array([problem.objective(block.state.theta, FIRST.l1, FIRST.l2) for block in blocks])
    assert (np.diff(values) <= 1e-7 * values[:-1]).all()
    assert values[-1] < values[0] - 0.003
    assert not rows(blocks)[:, ITERATION_FIELDS.index("restart")].any()
    assert all(block.state.momentum == 1.0 for block in blocks)


@both
def test_more_iterations_continue_from_the_state_and_repeat_nothing(build: Engines, background: bool) -> None:
    """Epochs: 20 and then 20 more are the 40 of one go, on the same engine and on one that is new."""
    whole = follow(build(), begin(FIRST, 40))
    engine = build(background=background)
    first = follow(engine, begin(FIRST, 20))
    done = engine.stats()["lane_iterations"]
    second = follow(engine, LaneRequest(FIRST, first[-1].state, 40))
    assert engine.stats()["lane_iterations"] - done == 20
    elsewhere = follow(build(background=background), LaneRequest(FIRST, first[-1].state, 40))
    for end in (second, elsewhere):
        assert end[-1].state.digest == whole[-1].state.digest
        assert rows(first + end).tobytes() == rows(whole).tobytes()
        assert kpis(first + end) == kpis(whole)


@both
def test_what_is_expected_is_done_ahead_and_handed_out_as_a_chain(build: Engines, background: bool) -> None:
    engine = build(background=background)
    requests = [begin(candidate, 30) for candidate in GRID.candidates([0, 1])]
    engine.expect(requests)
    follow(engine, requests[0])
    ends = [follow(engine, request)[-1].state.digest for request in requests[1:]]
    assert engine.stats()["lane_iterations"] == len(requests) * 30
    assert ends == [follow(build(), request)[-1].state.digest for request in requests[1:]]


@both
def test_a_trial_that_lost_its_answer_asks_again_and_gets_it(build: Engines, background: bool) -> None:
    engine = build(background=background)
    first = engine.advance(begin(FIRST, 10))
    again = engine.advance(begin(FIRST, 10))
    assert [block.state.digest for block in again] == [block.state.digest for block in first]
    assert engine.stats()["lane_iterations"] == 10
    further = follow(engine, LaneRequest(FIRST, first[-1].state, 30))
    back = follow(engine, begin(FIRST, 30))  # from the very start, long after: computed anew
    assert rows(back).tobytes() == rows(first + further).tobytes()


def test_what_others_need_is_advanced_in_the_same_pass(build: Engines) -> None:
    engine = build()
    engine.expect([begin(candidate, 10) for candidate in GRID.candidates([0, 1])])
    engine.advance(begin(FIRST, 10))
    assert engine.stats()["lane_iterations"] == 80
    engine.advance(begin(OTHER, 10))
    assert engine.stats()["lane_iterations"] == 80


def test_an_engine_that_works_in_the_background_goes_on_without_being_asked(build: Engines) -> None:
    engine = build(background=True)
    engine.expect([begin(candidate, 30) for candidate in GRID.candidates([0])])
    turns = threading.Event()
    for _ in range(int(WAIT / 0.02)):
        if engine.stats()["lane_iterations"] == 120:
            break
        turns.wait(0.02)
    assert engine.stats()["lane_iterations"] == 120
    assert engine.stats()["busy_seconds"] > 0
    blocks = engine.advance(begin(FIRST, 30))
    assert [block.state.iteration for block in blocks] == [10, 20, 30]


def test_the_answers_are_the_callers_to_keep(build: Engines) -> None:
    """A state that was handed out does not move while the engine goes on."""
    engine = build()
    (block,) = engine.advance(begin(FIRST, 30))
    digest, theta = block.state.digest, block.state.theta.copy()
    follow(engine, LaneRequest(FIRST, block.state, 30))
    assert block.state.digest == digest
    assert np.array_equal(block.state.theta, theta)
