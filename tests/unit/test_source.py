"""The source of candidates: the grid in its order, growth between complete rounds, never a decision by order."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nx46vx.model.candidates import Candidate, Grid
from search.source import CandidateSource

GRID = Grid((1e-4, 1e-3), (1e-4,))


def never(records: Mapping[str, Any]) -> None:
    return None


class GrowsTo:
    """Adds neurons up to a number; remembers what it was asked with."""

    def __init__(self, neurons: int, limit: int) -> None:
        self.neurons, self.limit = neurons, limit
        self.asked: list[dict[str, Any]] = []

    def __call__(self, records: Mapping[str, Any]) -> tuple[Any, list[Candidate]] | None:
        self.asked.append(dict(records))
        if self.neurons == self.limit:
            return None
        self.neurons += 1
        return f"spec {self.neurons - 1}", GRID.candidates([self.neurons - 1])


def drain(source: CandidateSource, seed: int, in_flight: int) -> list[Candidate]:
    """Run a source to its end with some candidates in flight that come back in any order."""
    order, live, chance = [], [], random.Random(seed)
    while True:
        while len(live) < in_flight and (candidate := source.next()) is not None:
            order.append(candidate)
            live.append(candidate)
        if not live:
            assert source.ended
            return order
        back = live.pop(chance.randrange(len(live)))
        source.finish(back, {"candidate_id": back.candidate_id})


def test_the_grid_comes_in_its_order_whatever_order_it_was_given_in() -> None:
    grid = Grid((1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (1e-4, 1e-3, 1e-2)).candidates(range(9))
    assert len(grid) == len({candidate.candidate_id for candidate in grid}) == 135
    shuffled = random.Random(1).sample(grid, len(grid))
    assert drain(CandidateSource(shuffled, {}, never), 0, 1) == grid


@given(seed=st.integers(0, 2**16), in_flight=st.integers(1, 6), limit=st.integers(2, 5))
def test_every_candidate_comes_once_and_growth_sees_complete_rounds_only(seed: int, in_flight: int, limit: int) -> None:
    grow = GrowsTo(2, limit)
    source = CandidateSource(GRID.candidates(range(2)), {}, grow)
    order = drain(source, seed, in_flight)
    assert order == GRID.candidates(range(limit))
    assert [len(records) for records in grow.asked] == [2 * neurons for neurons in range(2, limit + 1)]
    for neurons, records in zip(range(2, limit + 1), grow.asked, strict=True):
        assert set(records) == {candidate.candidate_id for candidate in GRID.candidates(range(neurons))}
    assert set(source.records) == {candidate.candidate_id for candidate in order}


def test_none_before_the_end_means_ask_later() -> None:
    source = CandidateSource(GRID.candidates([0]), {}, never)
    first, second = source.next(), source.next()
    assert source.next() is None and not source.ended
    assert first is not None and second is not None
    source.finish(first, {})
    assert source.next() is None and not source.ended
    source.finish(second, {})
    assert source.next() is None and source.ended


def test_the_executor_learns_of_a_new_neuron_before_its_candidates_are_handed_out() -> None:
    source = CandidateSource([], {"done": {}}, GrowsTo(1, 2))
    told: list[tuple[Any, list[Candidate]]] = []
    source.on_grown = lambda spec, candidates: told.append((spec, candidates))
    candidate = source.next()
    assert told == [("spec 1", GRID.candidates([1]))]
    assert candidate == GRID.candidates([1])[0]


def test_a_candidate_that_came_back_incomplete_ends_the_search_without_growth() -> None:
    grow = GrowsTo(1, 9)
    source = CandidateSource(GRID.candidates([0]), {}, grow)
    first, second = source.next(), source.next()
    assert first is not None and second is not None
    source.give_up(first)
    source.finish(second, {})
    assert source.next() is None and source.ended
    assert grow.asked == []
    assert set(source.records) == {second.candidate_id}


def test_a_candidate_whose_process_died_is_the_next_and_growth_waits_for_it() -> None:
    grow = GrowsTo(1, 1)
    source = CandidateSource(GRID.candidates([0]), {}, grow)
    first, second = source.next(), source.next()
    assert first is not None and second is not None
    source.hand_back(first)
    source.finish(second, {})
    assert source.incomplete and not grow.asked
    assert source.next() == first
    source.finish(first, {})
    assert source.next() is None and source.ended and not source.incomplete
    assert set(source.records) == {first.candidate_id, second.candidate_id}


def test_finished_records_are_kept_and_are_the_callers_no_more() -> None:
    given_records: dict[str, dict[str, Any]] = {"k000": {"objective": 1.0}}
    source = CandidateSource([], given_records, never)
    source.records["other"] = {}
    assert list(given_records) == ["k000"]
    assert source.next() is None and source.ended


def test_waiting_is_what_was_not_handed_out() -> None:
    source = CandidateSource(GRID.candidates(range(2)), {}, never)
    source.next()
    assert list(source.waiting) == GRID.candidates(range(2))[1:]


@pytest.mark.parametrize("asked", [2, 5])
def test_the_end_is_decided_once(asked: int) -> None:
    grow = GrowsTo(1, 1)
    source = CandidateSource([], {"done": {}}, grow)
    assert [source.next() for _ in range(asked)] == [None] * asked
    assert len(grow.asked) == 1
