"""The steps from probability to mask: each against SciPy or a definition, off means unchanged, twice is once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from test_postprocess import smooth_noise

from nx46vx.bench.inference import random_ensemble
from nx46vx.data.synthetic import make_case
from nx46vx.errors import UsageError
from nx46vx.features.blocks import iter_blocks
from nx46vx.features.reference import measure_reference
from nx46vx.inference.calibrate import SHARES, calibrate_mask
from nx46vx.inference.masks.border import clear_border
from nx46vx.inference.masks.closing import closing
from nx46vx.inference.masks.doubt import Prediction, spread, trusted
from nx46vx.inference.masks.dust import remove_dust
from nx46vx.inference.masks.hysteresis import hysteresis
from nx46vx.inference.masks.parameters import MaskParameters, MaskRule
from nx46vx.inference.masks.plugging import fill_cavities, plug_tunnels
from nx46vx.inference.masks.profile import BINS, VolumeProfile
from nx46vx.inference.masks.separation import grow, separate_sheets
from nx46vx.inference.masks.slices import bridge_slices, drop_unsupported
from nx46vx.inference.postprocess import make_mask, mask_of
from nx46vx.inference.predict import predict, probability_volume
from nx46vx.inference.scoring.betti import betti_numbers
from nx46vx.model.neuron import neuron_logits

CUBE = np.ones((3, 3, 3), bool)
ALL_ON = MaskRule(
    strong=0.5, weak=1.0, per_volume=True, doubt_weight=0.5, max_doubt=0.95, max_disagreement=0.4, z_radius=1,
    xy_radius=1, slice_gap=1, slice_support=True, split_levels=2, split_min_size=30, tunnel_radius=2, hole_size=50,
    border=2, dust_min_size=20,
)  # fmt: skip


def some_mask(seed: int, shape: tuple[int, int, int] = (17, 22, 19)) -> np.ndarray:
    return smooth_noise(seed, shape) > 0.9


def some_prediction(seed: int) -> Prediction:
    rng = np.random.default_rng(seed)
    p = smooth_noise(seed, (24, 26, 28))
    return Prediction(p, rng.integers(0, 200, p.shape, np.uint8), rng.integers(0, 255, p.shape, np.uint8))


OFF = {
    "border": lambda m: clear_border(m, 0),
    "cavities": lambda m: fill_cavities(m, 0),
    "tunnels": lambda m: plug_tunnels(m, 0),
    "bridge": lambda m: bridge_slices(m, 0),
    "separation": lambda m: separate_sheets(m, smooth_noise(0, m.shape), 0, 1),
    "dust": lambda m: remove_dust(m, 0),
    "closing": lambda m: closing(m, 0, 0),
}
ON = {
    "border": lambda m: clear_border(m, 3),
    "cavities": lambda m: fill_cavities(m, 40),
    "bridge": lambda m: bridge_slices(m, 2),
    "support": drop_unsupported,
    "dust": lambda m: remove_dust(m, 30),
    "closing": lambda m: closing(m, 1, 2),
}
LINES = [(1, 1, 9), (9, 1, 1), (1, 7, 1), (1, 1, 1), (2, 3, 1)]


@pytest.mark.parametrize("name", OFF)
def test_off_means_unchanged_and_a_new_array(name: str) -> None:
    mask = some_mask(1)
    found = OFF[name](mask)
    np.testing.assert_array_equal(found, mask)
    assert found.dtype == bool and not np.shares_memory(found, mask)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(ON)), st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 10)] * 3))
def test_twice_is_once_and_the_input_is_left_alone(name: str, seed: int, shape: tuple[int, int, int]) -> None:
    if name == "closing":  # cut to the volume: the second time sees less than the first
        return
    mask = np.random.default_rng(seed).random(shape) < 0.4
    before = mask.copy()
    once = ON[name](mask)
    np.testing.assert_array_equal(ON[name](once), once)
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize("shape", LINES)
@pytest.mark.parametrize("full", [False, True])
def test_every_step_takes_single_lines_of_voxels(shape: tuple[int, int, int], full: bool) -> None:
    p = np.full(shape, 0.9 if full else 0.1, np.float32)
    p.flat[0] = 0.95
    found = make_mask(Prediction.certain(p), replace_all(0.5, 0.3, border=0, dust_min_size=1))
    assert found.sum() == (p.size if full else 1)


def replace_all(strong: float, weak: float, **steps: int) -> MaskParameters:
    return MaskParameters(
        **{"strong_th": strong, "weak_th": weak, "split_levels": 2, "tunnel_radius": 2, "hole_size": 9, "z_radius": 1,
           "xy_radius": 1, **steps}
    )  # fmt: skip


def test_the_border_is_zero_and_nothing_else_is_touched() -> None:
    mask = np.ones((9, 10, 11), bool)
    found = clear_border(mask, 3)
    assert found[3:-3, 3:-3, 3:-3].all() and found.sum() == 3 * 4 * 5
    assert not clear_border(np.ones((5, 20, 20)), 3).any()


@pytest.mark.parametrize("seed", range(3))
def test_cavities_are_what_scipy_fills_up_to_the_size(seed: int) -> None:
    mask = np.random.default_rng(seed).random((12, 13, 14)) < 0.93
    filled = ndimage.binary_fill_holes(mask, CUBE)  # 26-connected background
    np.testing.assert_array_equal(fill_cavities(mask, mask.size), filled)
    labels, _ = ndimage.label(filled & ~mask, CUBE)
    small = (np.bincount(labels.ravel()) <= 2)[labels] & (labels > 0)
    assert small.any() and (filled & ~mask & ~small).any()
    np.testing.assert_array_equal(fill_cavities(mask, 2), mask | small)


def sheet(shape: tuple[int, int, int] = (15, 30, 30), at: int = 6) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[at : at + 3] = True
    return mask


def test_a_hole_in_a_sheet_is_plugged_and_the_sheets_beside_stay_apart() -> None:
    mask = sheet(at=3) | sheet(at=8)  # two slices apart: a closing would join them
    mask[3:6, 10:13, 10:13] = False
    mask[8:11, 20:22, 15:18] = False
    assert betti_numbers(mask)[:2] == (2, 2)
    found = plug_tunnels(mask, 3)
    assert betti_numbers(found) == (2, 0, 0)
    assert (found >= mask).all() and found[4, 11, 11] and not found[6:8].any()


def test_a_tunnel_wider_than_the_radius_stays() -> None:
    mask = sheet()
    mask[6:9, 8:20, 8:20] = False
    assert betti_numbers(plug_tunnels(mask, 2)).loops == 1


@pytest.mark.parametrize("seed", range(4))
def test_plugs_close_loops_and_join_nothing(seed: int) -> None:
    mask = some_mask(seed)
    found = plug_tunnels(mask, 2)
    before, after = betti_numbers(mask), betti_numbers(found)
    assert (found >= mask).all()
    assert ndimage.label(found, CUBE)[1] == ndimage.label(mask, CUBE)[1]
    assert after.loops <= before.loops
    assert betti_numbers(mask).loops > 0


@pytest.mark.parametrize("gap", [1, 2, 3])
def test_bridging_slices_is_closing_along_z(gap: int) -> None:
    mask = np.random.default_rng(gap).random((14, 6, 7)) < 0.3
    padded = np.pad(mask, ((gap + 1, gap + 1), (0, 0), (0, 0)))
    expected = ndimage.binary_closing(padded, np.ones((gap + 1, 1, 1)))[gap + 1 : -gap - 1]
    np.testing.assert_array_equal(bridge_slices(mask, gap), expected)


def test_what_one_slice_alone_shows_is_dropped() -> None:
    mask = np.zeros((6, 12, 12), bool)
    mask[2, 1:4, 1:9] = True  # alone
    mask[1:5, 9, 2:6] = True  # four slices
    mask[0, 6, 6] = mask[1, 7, 7] = True  # supported over a corner
    found = drop_unsupported(mask)
    expected = mask.copy()
    expected[2, 1:4, 1:9] = False
    np.testing.assert_array_equal(found, expected)


def touching(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two wraps whose gap is closed in one place by a probability lower than theirs."""
    p = np.full((20, 40, 40), 0.05, np.float32)
    p[5:8], p[10:13] = 0.9, 0.85
    p[8:10, 15:22, 15:22] = 0.5
    p += np.random.default_rng(seed).normal(0, 0.005, p.shape).astype(np.float32)
    return p >= 0.3, p


def test_two_wraps_that_touch_are_taken_apart() -> None:
    mask, p = touching()
    assert ndimage.label(mask, CUBE)[1] == 1
    found = separate_sheets(mask, p, 3, 200)
    labels, count = ndimage.label(found, CUBE)
    assert count == 2 and labels[6, 5, 5] != labels[11, 5, 5]
    assert (found <= mask).all() and (mask & ~found).sum() < 150  # one layer of the contact
    np.testing.assert_array_equal(separate_sheets(found, p, 3, 200), found)


def test_one_sheet_with_a_weak_line_across_stays_one() -> None:
    p = np.full((15, 40, 40), 0.05, np.float32)
    p[6:9] = 0.9
    p[6:9, :, 19:21] = 0.5
    mask = p >= 0.3
    np.testing.assert_array_equal(separate_sheets(mask, p, 3, 200), mask)


def test_parts_below_the_size_are_no_sheets() -> None:
    mask, p = touching()
    np.testing.assert_array_equal(separate_sheets(mask, p, 3, 10**6), mask)


def test_growing_counts_steps_inside() -> None:
    inside = np.random.default_rng(3).random((7, 9, 8)) < 0.6
    seeds = np.zeros(inside.shape, np.int32)
    places = np.argwhere(inside)[[3, 90, 200]]
    seeds[tuple(places.T)] = [7, 2, 5]
    steps = {}
    for value in (2, 5, 7):  # breadth first, one dilation at a time
        reached, distance, count = seeds == value, np.where(seeds == value, 0, 999), 0
        while (wider := ndimage.binary_dilation(reached, CUBE) & inside).sum() > reached.sum():
            count += 1
            distance[wider & ~reached] = count
            reached = wider
        steps[value] = distance
    order = np.array([2, 5, 7])
    stacked = np.stack([steps[value] for value in order])
    expected = np.where(stacked.min(axis=0) < 999, order[stacked.argmin(axis=0)], 0) * inside
    np.testing.assert_array_equal(grow(seeds, inside), expected)


# doubt


def test_spread_is_the_weighted_deviation_and_the_minority() -> None:
    p = np.array([[0.2, 0.9], [0.6, 0.9], [0.7, 0.1]])
    w = [0.5, 0.3, 0.2]
    deviation, disagreement = spread(p, w, 0.5)
    expected = np.sqrt(np.average((p - np.average(p, axis=0, weights=w)) ** 2, axis=0, weights=w))
    np.testing.assert_array_equal(deviation, np.rint(expected * 510))
    np.testing.assert_array_equal(disagreement, [255, 102])


def test_seeds_have_to_be_sure() -> None:
    p = np.full((3, 3, 9), 0.8, np.float32)
    p[:, :, 4] = 0.0
    doubtful = np.zeros(p.shape, np.uint8)
    doubtful[:, :, :4] = 200
    prediction = Prediction(p, doubtful, np.zeros_like(doubtful))
    assert trusted(prediction, 255, 255) is None
    found = hysteresis(p, 0.5, 0.5, trusted=trusted(prediction, 100, 255))
    assert not found[:, :, :5].any() and found[:, :, 5:].all()


def test_the_maps_are_the_members_and_the_probability_is_unchanged() -> None:
    volume, _ = make_case((28, 30, 26), scroll=2, seed=3)
    ensemble = random_ensemble()
    found = predict(volume, ensemble, block=64, vote_at=0.4)
    np.testing.assert_array_equal(found.probability, probability_volume(volume, ensemble, block=64))
    names = ensemble.features
    ((_, x, g),) = iter_blocks(volume, measure_reference(volume), names, block=64)
    x, g = x.reshape(len(names), -1), g.reshape(len(names), -1)
    z, shares = [], []
    for spec, theta, share in ensemble.forms:  # the nine members and the joint fit
        rows = [names.index(name) for name in spec.view]
        z.append(neuron_logits(spec, theta, x[rows], g[rows]))
        shares.append(share)
    assert len(z) == 10
    deviation, disagreement = spread(1 / (1 + np.exp(-np.stack(z))), list(np.array(shares) / sum(shares)), 0.4)
    for seen, expected in ((found.deviation, deviation), (found.disagreement, disagreement)):
        off = np.abs(seen.ravel().astype(int) - expected)
        assert seen.std() > 5
        assert (off > 1).mean() < 1e-4  # rounding, and a vote within rounding of the threshold
    again = predict(volume, ensemble, block=23, vote_at=0.4, threads=3)
    np.testing.assert_array_equal(again.deviation, found.deviation)
    np.testing.assert_array_equal(again.disagreement, found.disagreement)


# thresholds of a volume


@pytest.mark.parametrize("share", [0.3, 1.0, 2.0])
def test_a_threshold_is_reached_by_the_share_it_says(share: float) -> None:
    prediction = Prediction.certain(smooth_noise(4, (30, 30, 30)))
    profile = VolumeProfile.of(prediction)
    threshold = np.float32(profile.threshold(share, 0.0))
    expected = share * float(prediction.probability.mean())
    reached = float((prediction.probability >= threshold).mean())
    below = float((prediction.probability >= threshold - np.float32(1 / BINS)).mean())
    assert reached <= expected + 1e-3
    assert below >= min(expected, 1.0) - 1e-3 or threshold == np.float32(1 / BINS)
    assert VolumeProfile.from_json(profile.to_json()).threshold(share, 0.0) == threshold


def test_a_brighter_volume_gets_a_higher_threshold_and_doubt_raises_it() -> None:
    p = smooth_noise(5, (24, 24, 24)) * np.float32(0.5)
    dim, bright = (VolumeProfile.of(Prediction.certain(q)) for q in (p, np.sqrt(p)))
    assert dim.threshold(1.0, 0.0) < bright.threshold(1.0, 0.0)
    doubtful = VolumeProfile.of(Prediction(p, np.full(p.shape, 60, np.uint8), np.zeros(p.shape, np.uint8)))
    assert doubtful.threshold(1.0, 1.0) > doubtful.threshold(1.0, 0.0) == dim.threshold(1.0, 0.0)


def test_the_bound_of_doubt_is_a_quantile_of_the_probable_surface() -> None:
    prediction = some_prediction(6)
    profile = VolumeProfile.of(prediction)
    likely = prediction.deviation[prediction.probability >= np.float32(profile.threshold(1.0, 0.0))]
    bound = profile.doubt_at(0.9)
    assert (likely <= bound).mean() >= 0.9 > (likely < bound).mean()
    assert profile.doubt_at(1.0) == 255


def test_equal_volumes_give_equal_masks_and_the_border_and_the_dust_hold() -> None:
    prediction = some_prediction(7)
    found = mask_of(prediction, ALL_ON)
    np.testing.assert_array_equal(found, mask_of(prediction, ALL_ON))
    assert found.any() and not clear_border(1 - found, 0)[2:-2, 2:-2, 2:-2].all()
    np.testing.assert_array_equal(found, clear_border(found, 2))
    np.testing.assert_array_equal(found, remove_dust(found, 20))


@pytest.mark.parametrize("bad", [{"strong": 0.0}, {"strong": 2.0}, {"border": -1}, {"per_volume": False}])
def test_impossible_rules_are_refused(bad: dict) -> None:
    with pytest.raises(UsageError):
        replace(ALL_ON, **bad)


def f1_of(rule: MaskRule, prediction: Prediction, label: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score((label == 1).ravel(), (mask_of(prediction, rule) == 1).ravel()))


@pytest.mark.parametrize("per_volume", [True, False])
def test_calibration_keeps_what_is_given_and_is_never_worse_than_equal_thresholds(per_volume: bool) -> None:
    prediction = some_prediction(8)
    noise = np.random.default_rng(0).normal(0, 0.1, prediction.probability.shape)
    label = (prediction.probability + noise > 0.85).astype(np.uint8)
    start = replace(ALL_ON, strong=0.5, weak=0.5, per_volume=per_volume, max_doubt=1.0, max_disagreement=0.5)
    both = calibrate_mask([(prediction, label)], start, strong=True, weak=True)
    assert both.tried > 10
    level = both.rule.strong
    equal = calibrate_mask([(prediction, label)], replace(start, strong=level, weak=level), strong=False, weak=False)
    assert both.f1 >= equal.f1 and equal.tried == 1
    assert 0 < both.f_half < 1 and both.f1 == pytest.approx(f1_of(both.rule, prediction, label))
    kept = calibrate_mask([(prediction, label)], start, strong=False, weak=True)
    assert kept.rule.strong == 0.5
    assert not per_volume or {both.rule.strong, both.rule.weak} <= set(SHARES)
