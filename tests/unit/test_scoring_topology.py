"""Matched components, loops and cavities, against boundary matrices that are reduced by definition."""

from __future__ import annotations

import numpy as np
import pytest
from scoring_oracle import matched_and_own

from nx46vx.inference.scoring import Counts, score_volume
from nx46vx.inference.scoring.betti import betti_numbers, euler_number
from nx46vx.inference.scoring.loops import matched_loops
from nx46vx.inference.scoring.octants import octants
from nx46vx.inference.scoring.topology import count_features, topo_score


def noisy_pair(seed: int, shape: tuple[int, int, int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Two bool volumes that share most of their voxels, of any density; each third is dense, for cavities."""
    rng = np.random.default_rng(seed)
    density, changed, edge = (0.95, 0.02, 8) if seed % 3 == 0 else (rng.uniform(0.2, 0.95), rng.uniform(0.0, 0.3), 6)
    label = rng.random(shape or tuple(rng.integers(edge - 3, edge + 1, 3))) < density
    return label ^ (rng.random(label.shape) < changed), label


@pytest.mark.parametrize("start", range(0, 240, 40))
def test_counts_are_those_of_betti_matching(start: int) -> None:
    for seed in range(start, start + 40):
        prediction, label = noisy_pair(seed)
        found = count_features(prediction, label, betti_numbers(label))
        assert [tuple(counts) for counts in found] == matched_and_own(prediction, label), seed


def test_the_noisy_pairs_hold_matches_of_every_dimension() -> None:
    """Otherwise the test above would say little."""
    seen = np.sum([matched_and_own(*noisy_pair(seed)) for seed in range(60)], axis=0)
    assert (seen > 10).all()


@pytest.mark.parametrize("shape", [(1, 6, 7), (6, 1, 7), (7, 6, 1), (2, 6, 6), (1, 1, 8), (1, 7, 1), (1, 1, 1)])
def test_volumes_of_a_voxel_or_two_are_counted_the_same_way(shape: tuple[int, int, int]) -> None:
    for seed in range(8):
        prediction, label = noisy_pair(seed, shape)
        found = count_features(prediction, label, betti_numbers(label))
        assert [tuple(counts) for counts in found] == matched_and_own(prediction, label), seed


def test_euler_numbers_of_solids() -> None:
    box = np.zeros((7, 7, 7), bool)
    box[1:6, 1:6, 1:6] = True
    hollow, ring = box.copy(), box.copy()
    hollow[3, 3, 3] = False
    ring[:, 3, 3] = False
    assert (euler_number(box), euler_number(hollow), euler_number(ring)) == (1, 2, 0)
    assert [tuple(betti_numbers(mask)) for mask in (box, hollow, ring)] == [(1, 0, 0), (1, 0, 1), (1, 1, 0)]


def test_a_void_that_touches_a_face_is_no_cavity() -> None:
    mask = np.ones((4, 5, 6), bool)
    mask[0, 2, 3] = mask[2, 2, 3] = False
    assert betti_numbers(mask).cavities == 1
    mask[1, 1, 2] = False  # joins the two voids by a corner
    assert betti_numbers(mask).cavities == 0


def test_a_hole_filled_in_one_mask_matches_nothing() -> None:
    plate = np.zeros((5, 12, 12), bool)
    plate[2] = True
    hole, moved, far = plate.copy(), plate.copy(), plate.copy()
    hole[2, 3:6, 3:6] = moved[2, 4:7, 4:7] = far[2, 8:10, 8:10] = False
    assert matched_loops(hole, moved) == 1
    assert matched_loops(hole, far) == 0


def test_octants_cover_a_volume_once_and_the_first_half_is_the_larger() -> None:
    covered = np.zeros((5, 4, 1), int)
    windows = octants(covered.shape)
    for window in windows:
        covered[window] += 1
    assert (covered == 1).all()
    assert windows[0] == (slice(0, 3), slice(0, 2), slice(0, 1)) and len(windows) == 4


def test_features_are_counted_by_octant() -> None:
    ring = np.zeros((16, 16, 16), bool)
    ring[8, 2:14, 2:14] = True
    ring[8, 3:13, 3:13] = False
    inside = np.roll(ring, -6, 0)[:, :8, :8]
    assert score_volume(ring, ring).counts == ((0, 0, 0), (0, 0, 0), (0, 0, 0)), "no octant holds the whole ring"
    assert betti_numbers(ring).loops == 1 and betti_numbers(inside).loops == 0


def test_only_dimensions_that_occur_are_weighed() -> None:
    none, some, false = Counts(0, 0, 0), Counts(3, 4, 8), Counts(0, 5, 0)
    assert topo_score((none, none, none)) == 1.0
    assert topo_score((none, some, none)) == 0.5
    assert topo_score((false, none, none)) == pytest.approx(0.5 / 5.5)
    assert topo_score((some, false, none)) == pytest.approx((0.34 * 0.5 + 0.33 * 0.5 / 5.5) / 0.67)
