"""The engine under attack: guesses that are never believed, trials that disagree, errors that reach all who wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

import numpy as np
import pytest
from engine_bench import FIRST, GRID, OTHER, WAIT, Engines, begin, both, fit_specs, follow, kpis, rows

from nx46vx.model.blocks import LaneRequest
from nx46vx.model.candidates import Candidate
from nx46vx.model.passes import Passes
from nx46vx.model.state import LaneState


@pytest.fixture
def build() -> Iterator[Engines]:
    engines = Engines()
    yield engines
    engines.close()


@both
def test_a_guess_from_another_state_is_never_used(build: Engines, background: bool) -> None:
    """The engine went ahead from the start; the trial comes with a checkpoint of its own."""
    engine = build(background=background)
    engine.expect([begin(FIRST, 30)])
    follow(engine, begin(OTHER, 30))
    rng = np.random.default_rng(0)
    resumed = LaneState(
        rng.standard_normal(fit_specs()[0].columns), rng.standard_normal(fit_specs()[0].columns), 3.0, 10, 2
    )
    request = LaneRequest(FIRST, resumed, 30)
    found, alone = follow(engine, request), follow(build(), request)
    assert found[0].before == resumed.digest
    assert [block.state.digest for block in found] == [block.state.digest for block in alone]
    assert rows(found).tobytes() == rows(alone).tobytes()


@both
def test_one_bit_of_difference_is_another_state(build: Engines, background: bool) -> None:
    engine = build(background=background)
    blocks = follow(engine, begin(FIRST, 30))
    state = blocks[0].state
    nudged = replace(state, theta=np.nextafter(state.theta, np.inf))
    others = [nudged, replace(state, momentum=np.nextafter(state.momentum, 9)), replace(state, restarts=9)]
    for other in others:
        assert engine.advance(LaneRequest(FIRST, other, 30))[0].before == other.digest


@both
def test_a_guess_that_goes_further_than_asked_is_not_used_either(build: Engines, background: bool) -> None:
    """Expected up to 30, asked for up to 15: the answer ends at 15, with the bits of a request for 15."""
    engine = build(background=background)
    engine.expect([begin(FIRST, 30)])
    follow(engine, begin(OTHER, 30))
    found, alone = follow(engine, begin(FIRST, 15)), follow(build(), begin(FIRST, 15))
    assert [block.state.iteration for block in found] == [10, 15]
    assert found[-1].state.digest == alone[-1].state.digest
    assert kpis(found) == kpis(alone)


@both
def test_two_trials_that_disagree_on_one_candidate_both_get_their_own(build: Engines, background: bool) -> None:
    """A trial whose driver was killed goes on asking while its successor does."""
    engine = build(background=background)
    start = begin(FIRST, 40)
    ahead = LaneRequest(FIRST, follow(build(), begin(FIRST, 13))[-1].state, 40)
    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(follow, engine, one) for one in (start, ahead)]
        wait(asking, WAIT)
        engine.close()  # one that would ask for ever ends here, with an error
        answers = [future.result(WAIT) for future in asking]
    expected = follow(build(), start)[-1].state.digest
    assert [blocks[-1].state.digest for blocks in answers] == [expected, expected]
    assert rows(answers[0])[13:].tobytes() == rows(answers[1]).tobytes()


def test_a_block_that_another_trial_made_the_engine_forget_is_made_again(
    build: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One waits for the block from 13 to 20. Before it looks, a second one asks from 20 on: the first block goes."""
    state, end = (follow(build(), begin(FIRST, until))[-1].state for until in (13, 20))
    engine = build()
    advance_all, passes = engine._pass, []

    def forgetful_pass() -> None:
        advance_all()
        passes.append(1)
        assert len(passes) < 20, "it waits for ever"
        if len(passes) == 1:
            engine.advance(LaneRequest(FIRST, end, 40))

    monkeypatch.setattr(engine, "_pass", forgetful_pass)
    found = follow(engine, LaneRequest(FIRST, state, 40))
    assert found[0].before == state.digest
    assert found[-1].state.digest == follow(build(), begin(FIRST, 40))[-1].state.digest


@both
def test_many_trials_at_once_get_what_each_would_get_alone(build: Engines, background: bool) -> None:
    requests = [begin(candidate, 20) for candidate in GRID.candidates([0, 1])]
    alone = [follow(build(), request)[-1].state.digest for request in requests]
    engine = build(background=background)
    with ThreadPoolExecutor(len(requests)) as pool:
        together = [blocks[-1].state.digest for blocks in pool.map(lambda one: follow(engine, one), requests)]
    assert together == alone
    assert len(set(together)) == len(together)


def test_adding_a_neuron_twice_is_one_neuron_and_keeps_what_was_done(build: Engines) -> None:
    engine, plain = build(), build()
    request = begin(FIRST, 30)
    first = engine.advance(request)
    engine.add_neuron(fit_specs()[0])
    engine.add_neuron(fit_specs()[1])
    rest = follow(engine, replace(request, state=first[-1].state))
    assert (first + rest)[-1].state.digest == follow(plain, request)[-1].state.digest
    assert engine.stats()["lane_iterations"] == 30


def test_adding_a_known_neuron_in_the_middle_of_a_pass_changes_nothing(build: Engines) -> None:
    class Meddled(Passes):
        def gradients(self, thetas, lanes=None):  # type: ignore[no-untyped-def]
            engine.add_neuron(fit_specs()[0])
            return super().gradients(thetas, lanes)

    engine = build(passes=Meddled)
    assert follow(engine, begin(FIRST, 20))[-1].state.digest == follow(build(), begin(FIRST, 20))[-1].state.digest


@both
def test_a_neuron_added_later_disturbs_nobody(build: Engines, background: bool) -> None:
    engine = build(known=1, background=background)
    request = begin(FIRST, 30)
    first = engine.advance(request)
    engine.add_neuron(fit_specs()[1])
    grown = follow(engine, begin(OTHER, 20))
    rest = follow(engine, replace(request, state=first[-1].state))
    assert (first + rest)[-1].state.digest == follow(build(), request)[-1].state.digest
    assert grown[-1].state.digest == follow(build(), begin(OTHER, 20))[-1].state.digest


def test_a_neuron_with_another_bootstrap_is_refused(build: Engines) -> None:
    with pytest.raises(ValueError, match="bootstrap of meta-neuron 0"):
        build(known=0).add_neuron(replace(fit_specs()[0], weights_digest="0" * 128))


class Faulty(Passes):
    """Works twice, then waits for ``go`` and fails."""

    go = threading.Event()
    left = 2

    def gradients(self, thetas, lanes=None):  # type: ignore[no-untyped-def]
        if self.left == 0:
            self.go.wait(WAIT)
            raise FloatingPointError("the device is gone")
        self.left -= 1
        return super().gradients(thetas, lanes)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> type[Passes]:
    monkeypatch.setattr(Faulty, "go", threading.Event())
    return Faulty


def test_an_error_in_the_loop_reaches_every_waiter_and_all_who_come_later(build: Engines, faulty: type[Faulty]) -> None:
    engine = build(passes=faulty, background=True)
    requests = [begin(candidate, 20) for candidate in GRID.candidates([0, 1])]
    with ThreadPoolExecutor(len(requests)) as pool:
        waiting = [pool.submit(engine.advance, request) for request in requests]
        faulty.go.set()
        for future in waiting:
            with pytest.raises(RuntimeError, match="engine stopped") as caught:
                future.result(WAIT)
            assert isinstance(caught.value.__cause__, FloatingPointError)
    with pytest.raises(RuntimeError, match="engine stopped"):
        engine.advance(requests[0])


def test_an_error_inline_is_the_callers(build: Engines, faulty: type[Faulty]) -> None:
    faulty.go.set()
    engine = build(passes=faulty)
    with pytest.raises(FloatingPointError, match="device is gone"):
        engine.advance(begin(FIRST, 20))


@both
def test_a_candidate_of_an_unknown_neuron_is_an_error_and_no_hang(build: Engines, background: bool) -> None:
    engine = build(known=1, background=background)
    with pytest.raises((KeyError, RuntimeError)) as caught:
        engine.advance(begin(OTHER, 20))
    assert "[1]" in str(caught.value) + str(caught.value.__cause__)


@both
def test_a_candidate_off_the_grid_is_refused(build: Engines, background: bool) -> None:
    engine = build(background=background)
    with pytest.raises(ValueError, match="not in tuple"):
        engine.advance(begin(Candidate(0, 0.5, 0.5), 20))
    assert engine.advance(begin(FIRST, 10))[0].state.iteration == 10


@both
def test_a_candidate_that_is_done_is_told_so(build: Engines, background: bool) -> None:
    engine = build(background=background)
    state = follow(engine, begin(FIRST, 10))[-1].state
    with pytest.raises(ValueError, match=r"k000-l1_0.001-l2_0.01 has nothing left"):
        engine.advance(LaneRequest(FIRST, state, 10))


def test_closing_wakes_those_who_wait(build: Engines, faulty: type[Faulty]) -> None:
    engine = build(passes=faulty, background=True)
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(engine.advance, begin(FIRST, 20))
        closing = pool.submit(engine.close)
        with pytest.raises(RuntimeError, match="engine was closed"):
            waiting.result(WAIT)
        faulty.go.set()
        closing.result(WAIT)
    with pytest.raises(RuntimeError, match=r"closed|stopped"):
        engine.advance(begin(FIRST, 20))
