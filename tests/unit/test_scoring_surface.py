"""Surface areas against solid geometry, distances against a distance transform, VOI against a contingency table."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from scipy import ndimage
from scoring_pairs import pairs
from sklearn.metrics.cluster import contingency_matrix

from nx46vx.inference.scoring.surface import TOLERANCE, Surface, element_areas, surface_dice
from nx46vx.inference.scoring.voi import Groups, variation

PAIRS = {name: (prediction != 0, label == 1) for name, prediction, label in pairs()}


def test_a_box_has_the_area_of_its_faces_bevelled_edges_and_corners() -> None:
    z, y, x = 4, 5, 6
    box = np.zeros((9, 9, 9), bool)
    box[2 : 2 + z, 2 : 2 + y, 2 : 2 + x] = True
    a, b, c = z - 1, y - 1, x - 1
    wanted = 2 * (a * b + b * c + a * c) + 4 * (a + b + c) * 0.5**0.5 + 8 * 3**0.5 / 8
    assert Surface.of(box).area == pytest.approx(wanted)
    assert Surface.of(box[2:6, 2:7, 2:8]).area == pytest.approx(wanted), "beyond the volume all is background"


def test_areas_do_not_depend_on_direction_nor_on_the_side() -> None:
    areas = element_areas()
    bits = (np.arange(256)[:, None] >> np.arange(8) & 1).reshape(256, 2, 2, 2)
    weights = (1 << np.arange(8)).reshape(2, 2, 2)
    for axes, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
        turned = bits.transpose(0, *(axis + 1 for axis in axes))[(slice(None), *(slice(None, None, f) for f in flips))]
        np.testing.assert_array_equal(areas[(turned * weights).sum(axis=(1, 2, 3))], areas)
    np.testing.assert_array_equal(areas[::-1], areas)
    assert areas[0] == 0 and (areas[1:-1] > 0).all()


@pytest.mark.parametrize(
    "name", ["shift3_z", "all_ones", "rough", "three_slices", "shell_vs_ball", "salt_0.1pct_seed0"]
)
def test_elements_count_up_to_two_voxels_away(name: str) -> None:
    surfaces = [Surface.of(mask) for mask in PAIRS[name]]
    found = 0.0
    for one, other in (surfaces, surfaces[::-1]):
        distance = ndimage.distance_transform_edt(~other.elements)
        np.testing.assert_array_equal(other.near, distance <= TOLERANCE)
        found += element_areas()[one.codes][one.elements & (distance <= TOLERANCE)].sum()
    assert surface_dice(*surfaces) == pytest.approx(found / sum(surface.area for surface in surfaces), abs=1e-12)


def test_parallel_planes_are_found_at_two_voxels_and_lost_at_three() -> None:
    def plate(z: int) -> Surface:
        mask = np.zeros((20, 30, 30), bool)
        mask[z] = True
        return Surface.of(mask)

    assert surface_dice(plate(5), plate(7)) == 1.0
    assert surface_dice(plate(5), plate(8)) == pytest.approx(0.5, abs=1e-3)  # the faces towards each other
    assert surface_dice(plate(5), plate(9)) == 0.0


def test_an_empty_mask_has_no_surface_to_find() -> None:
    empty, full = (Surface.of(np.full((3, 4, 5), value)) for value in (False, True))
    assert (surface_dice(empty, empty), surface_dice(empty, full), surface_dice(full, empty)) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("name", ["shift2_z", "noise_in_both", "rough", "three_slices"])
def test_variation_is_that_of_the_contingency_table(name: str, dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nx46vx.inference.scoring.voi._SLAB_VOXELS", 20_000)
    monkeypatch.setattr("nx46vx.inference.scoring.voi._DENSE", 1 << 30 if dense else 0)
    masks = PAIRS[name]
    labels = [ndimage.label(mask, np.ones((3, 3, 3)))[0][masks[0] | masks[1]] for mask in masks]
    table = contingency_matrix(*labels) / labels[0].size
    joint, prediction, label = (_entropy(part) for part in (table.ravel(), table.sum(axis=1), table.sum(axis=0)))
    found = variation(*(Groups.of(mask) for mask in masks))
    assert (found.split, found.merge) == pytest.approx((joint - label, joint - prediction), abs=1e-9)
    assert found.score == pytest.approx(1 / (1 + 0.3 * (2 * joint - label - prediction)), abs=1e-9)


def _entropy(share: np.ndarray) -> float:
    share = share[share > 0]
    return float(-(share * np.log2(share)).sum())


def test_components_are_joined_by_corners() -> None:
    diagonal = np.eye(4, dtype=bool)[:, None, :] & np.ones((1, 4, 1), bool)
    assert Groups.of(diagonal).count == 1
    assert variation(Groups.of(diagonal), Groups.of(diagonal)).score == 1.0
