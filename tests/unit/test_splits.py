"""Every case has one role, drawn from the seed alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nx46vx.data.splits import Split, make_split, seeded_order
from nx46vx.errors import DataError

IDS = st.lists(st.text("abc0129_", min_size=1, max_size=6), min_size=3, max_size=40, unique=True)
SHARES = st.floats(0.01, 0.49)


@settings(max_examples=80, deadline=None)
@given(ids=IDS, seed=st.integers(0, 2**63 - 1), validation=SHARES, holdout=SHARES, data=st.data())
def test_roles_part_the_cases_and_ignore_their_order(ids, seed, validation, holdout, data) -> None:
    split = make_split(ids, seed=seed, validation_fraction=validation, holdout_fraction=holdout)
    assert sorted([*split.train, *split.validation, *split.holdout]) == sorted(ids)
    assert split.train
    assert split.validation
    assert split.holdout
    again = make_split(data.draw(st.permutations(ids)), seed=seed, validation_fraction=validation,
                       holdout_fraction=holdout)  # fmt: skip
    assert again == split == Split.from_json(split.to_json())
    assert {split.role(case) for case in split.holdout} == {"holdout"}


def test_fractions_are_kept_and_seeds_differ() -> None:
    ids = [f"case_{index:03d}" for index in range(100)]
    splits = [make_split(ids, seed=seed, validation_fraction=0.2, holdout_fraction=0.15) for seed in range(5)]
    assert {(len(split.train), len(split.validation), len(split.holdout)) for split in splits} == {(65, 20, 15)}
    assert len({split.validation for split in splits}) == 5
    assert len(set.union(*(set(split.holdout) for split in splits))) > 40


def test_one_case_more_keeps_the_others_in_order() -> None:
    ids = [f"c{index}" for index in range(30)]
    longer = seeded_order([*ids, "new"], seed=3, purpose="p")
    assert [case for case in longer if case != "new"] == seeded_order(ids, seed=3, purpose="p")
    assert seeded_order(ids, seed=3, purpose="q") != seeded_order(ids, seed=3, purpose="p")


def test_too_few_or_doubled_cases_are_refused() -> None:
    with pytest.raises(DataError, match="three pairs or more"):
        make_split(["a", "b"], seed=0, validation_fraction=0.2, holdout_fraction=0.2)
    with pytest.raises(DataError, match="twice"):
        make_split(["a", "b", "c", "a"], seed=0, validation_fraction=0.2, holdout_fraction=0.2)


def test_a_saved_split_is_checked() -> None:
    for bad in ({}, {"train": "abc", "validation": [], "holdout": []}, {"train": [1], "validation": [], "holdout": []},
                {"train": ["a"], "validation": ["a"], "holdout": []}):  # fmt: skip
        with pytest.raises(DataError):
            Split.from_json(bad)
    with pytest.raises(DataError, match="no role"):
        Split(("a",), ("b",), ("c",)).role("d")
