"""Candidates: one name, one place and one lane for each point of the grid, whatever the order they come in."""

from __future__ import annotations

import json
import re
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nx46vx.model.candidates import TILE, Candidate, Grid
from nx46vx.settings import GridSettings

penalties = st.floats(1e-12, 1e3)


@pytest.fixture
def grid() -> Grid:
    return Grid.from_settings(GridSettings())


def test_the_shipped_grid_has_135_candidates_each_once(grid: Grid) -> None:
    candidates = grid.candidates(range(9))
    assert len(candidates) == 135
    assert {(c.meta_neuron, c.l1, c.l2) for c in candidates} == set(
        product(range(9), (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (1e-4, 1e-3, 1e-2))
    )
    assert len({c.candidate_id for c in candidates}) == 135


def test_the_order_is_meta_neuron_then_l1_then_l2_and_index_counts_along_it(grid: Grid) -> None:
    candidates = grid.candidates(range(9))
    assert candidates == sorted(candidates)
    assert [grid.index(c) for c in candidates] == list(range(135))


def test_each_candidate_of_a_meta_neuron_has_a_lane_of_its_own_in_a_tile(grid: Grid) -> None:
    assert TILE == 16
    for k in (0, 8, 40):
        assert [grid.lane(c) for c in grid.candidates([k])] == list(range(15))


def test_the_order_of_the_configuration_changes_neither_lanes_nor_indices(grid: Grid) -> None:
    settings = GridSettings(l1=(1e-2, 1e-4, 3e-3, 3e-4, 1e-3), l2=(1e-2, 1e-4, 1e-3))
    assert Grid.from_settings(settings) == grid


def test_a_later_meta_neuron_leaves_the_earlier_ones_where_they_are(grid: Grid) -> None:
    assert grid.candidates(range(10))[:135] == grid.candidates(range(9))
    assert grid.index(grid.candidates([9])[0]) == 135


@pytest.mark.parametrize(
    ("candidate", "name"),
    [
        (Candidate(3, 0.001, 0.01), "k003-l1_0.001-l2_0.01"),
        (Candidate(0, 1e-4, 1e-4), "k000-l1_0.0001-l2_0.0001"),
        (Candidate(12, 1e-5, 1.0), "k012-l1_1e-05-l2_1.0"),
    ],
)
def test_the_name_is_readable_and_stable(candidate: Candidate, name: str) -> None:
    assert candidate.candidate_id == name


@settings(deadline=None)
@given(st.integers(0, 999), penalties, penalties)
def test_the_name_can_be_a_file_name(k: int, l1: float, l2: float) -> None:
    assert re.fullmatch(r"[A-Za-z0-9._+-]{1,100}", Candidate(k, l1, l2).candidate_id)


def test_penalties_that_differ_in_the_last_digit_have_unlike_names() -> None:
    assert Candidate(0, 0.3, 1.0).candidate_id != Candidate(0, 0.1 + 0.2, 1.0).candidate_id
    assert Candidate(0, 1.0, 0.3).candidate_id != Candidate(0, 1.0, 0.1 + 0.2).candidate_id


@settings(deadline=None)
@given(st.integers(0, 999), penalties, penalties, penalties)
def test_unlike_candidates_have_unlike_names(k: int, l1: float, l2: float, other: float) -> None:
    if other != l1:
        assert Candidate(k, l1, l2).candidate_id != Candidate(k, other, l2).candidate_id


@settings(deadline=None)
@given(st.integers(0, 999), penalties, penalties)
def test_json_gives_the_very_same_candidate_back(k: int, l1: float, l2: float) -> None:
    candidate = Candidate(k, l1, l2)
    assert Candidate.from_json(json.loads(json.dumps(candidate.to_json()))) == candidate


def test_a_candidate_off_the_grid_has_no_lane(grid: Grid) -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        grid.lane(Candidate(0, 0.5, 1e-3))
