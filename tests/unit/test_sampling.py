"""Samples are balanced or natural, never ignored voxels, and a case's draw depends on that case alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nx46vx.features.sampling import case_seed, labelled_counts, sample_balanced, sample_natural, spatial_blocks

labels = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=9), elements=st.integers(0, 2))
seeds = st.integers(0, 2**63 - 1).map(np.random.SeedSequence)
limits = st.integers(0, 900)


def assert_sorted_and_distinct(index: np.ndarray) -> None:
    assert index.dtype == np.int64
    assert (np.diff(index) > 0).all()


@settings(max_examples=150, deadline=None)
@given(labels, limits, seeds)
def test_balanced_samples_hold_as_many_of_each_class_as_limit_and_volume_allow(
    label: np.ndarray, limit: int, seed: np.random.SeedSequence
) -> None:
    index = sample_balanced(label, limit, seed)
    each = min(limit // 2, (label == 0).sum(), (label == 1).sum())
    assert_sorted_and_distinct(index)
    assert np.bincount(label.ravel()[index], minlength=3).tolist() == [each, each, 0]


@settings(max_examples=150, deadline=None)
@given(labels, limits, seeds)
def test_natural_samples_are_labelled_voxels_up_to_the_limit(
    label: np.ndarray, limit: int, seed: np.random.SeedSequence
) -> None:
    index = sample_natural(label, limit, seed)
    assert_sorted_and_distinct(index)
    assert len(index) == min(limit, (label != 2).sum())
    assert not (label.ravel()[index] == 2).any()
    assert labelled_counts(label) == ((label == 0).sum(), (label == 1).sum())


@settings(max_examples=50, deadline=None)
@given(labels, limits, st.integers(0, 2**63 - 1))
def test_a_draw_repeats_with_its_seed_and_does_not_depend_on_memory_order(
    label: np.ndarray, limit: int, seed: int
) -> None:
    for draw in (sample_balanced, sample_natural):
        first = draw(label, limit, case_seed(seed, "a", "balanced"))
        again = draw(np.asfortranarray(label), limit, case_seed(seed, "a", "balanced"))
        assert np.array_equal(first, again)


def test_natural_samples_keep_the_prevalence_and_every_voxel_has_its_chance() -> None:
    label = np.zeros((6, 10, 10), np.uint8)
    label[:, :3], label[:, 9] = 1, 2
    hits = np.zeros(label.size)
    for repeat in range(600):
        hits[sample_natural(label, 54, case_seed(repeat, "a", "natural"))] += 1
    labelled = label.ravel() != 2
    assert not hits[~labelled].any()
    assert abs(hits[labelled].mean() - 60) < 1e-9  # 54 of 540, 600 times
    assert np.abs(hits[labelled] - 60).max() < 6 * np.sqrt(600 * 0.1 * 0.9)
    assert abs(hits[label.ravel() == 1].sum() / hits.sum() - 1 / 3) < 0.02


def test_seeds_differ_by_run_case_and_role_and_know_nothing_of_other_cases() -> None:
    keys = [(seed, case, role) for seed in (0, 1) for case in ("a", "b", "ab") for role in ("balanced", "natural")]
    states = {key: tuple(case_seed(*key).generate_state(4)) for key in keys}
    assert len(set(states.values())) == len(keys)
    assert tuple(case_seed(0, "a", "balanced").generate_state(4)) == states[(0, "a", "balanced")]


@settings(max_examples=100, deadline=None)
@given(st.tuples(*[st.integers(1, 80)] * 3), st.integers(1, 40), st.data())
def test_two_voxels_share_a_spatial_block_exactly_when_they_share_a_cube(
    shape: tuple[int, int, int], edge: int, data: st.DataObject
) -> None:
    size = int(np.prod(shape))
    index = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=2, max_size=20)))
    group = spatial_blocks(index, shape, edge)
    cubes = np.stack(np.unravel_index(index, shape), 1) // edge
    assert group.dtype == np.int32
    assert np.array_equal(group[:, None] == group, (cubes[:, None] == cubes).all(2))
