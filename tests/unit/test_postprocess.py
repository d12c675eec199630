"""Masks from probabilities, against SciPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from nx46vx.errors import NX46Error, UsageError
from nx46vx.inference.masks.closing import closing
from nx46vx.inference.masks.doubt import Prediction
from nx46vx.inference.masks.dust import remove_dust
from nx46vx.inference.masks.hysteresis import hysteresis
from nx46vx.inference.masks.parameters import MaskParameters
from nx46vx.inference.postprocess import make_mask

CUBE = np.ones((3, 3, 3), dtype=bool)


def smooth_noise(seed: int, shape: tuple[int, int, int] = (17, 22, 19), sigma: float = 1.0) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return (1 / (1 + np.exp(-4 * noise / noise.std()))).astype(np.float32)


def classic(strong_th: float, weak_th: float, z_radius: int, xy_radius: int, dust_min_size: int) -> MaskParameters:
    return MaskParameters(
        strong_th=strong_th, weak_th=weak_th, z_radius=z_radius, xy_radius=xy_radius, dust_min_size=dust_min_size
    )


def naive_closing(mask: np.ndarray, z_radius: int, xy_radius: int) -> np.ndarray:
    z, y, x = np.mgrid[-z_radius : z_radius + 1, -xy_radius : xy_radius + 1, -xy_radius : xy_radius + 1]
    zz, rr = max(z_radius, 1) ** 2, max(xy_radius, 1) ** 2
    element = z * z * rr + (y * y + x * x) * zz <= zz * rr
    margin = 2 * max(z_radius, xy_radius) + 1
    padded = np.pad(mask, margin)
    return ndimage.binary_closing(padded, element)[(slice(margin, -margin),) * 3]


@pytest.mark.parametrize("seed", range(4))
def test_hysteresis_is_binary_propagation_from_the_strong_voxels(seed: int) -> None:
    p = smooth_noise(seed)
    strong, weak = 0.9995, 0.95
    expected = ndimage.binary_propagation(p >= np.float32(strong), CUBE, mask=p >= np.float32(weak))
    found = hysteresis(p, strong, weak)
    assert found.dtype == bool
    assert 0 < expected.sum() < (p >= weak).sum(), "the case has to contain weak components to refuse"
    np.testing.assert_array_equal(found, expected)


def test_hysteresis_connects_through_corners_and_includes_the_thresholds_themselves() -> None:
    p = np.zeros((3, 3, 3), np.float32)
    p[0, 0, 0], p[1, 1, 1], p[2, 2, 2] = 0.9, 0.3, 0.29
    found = hysteresis(p, 0.9, 0.3)
    assert found[0, 0, 0] and found[1, 1, 1] and found.sum() == 2


def test_equal_thresholds_are_plain_thresholding() -> None:
    p = smooth_noise(9)
    np.testing.assert_array_equal(hysteresis(p, 0.7, 0.7), p >= np.float32(0.7))


@pytest.mark.parametrize(("z_radius", "xy_radius"), [(0, 0), (1, 1), (0, 2), (3, 0), (3, 2), (2, 1), (2, 5), (5, 5)])
def test_closing_equals_scipys_on_a_padded_volume(z_radius: int, xy_radius: int) -> None:
    mask = smooth_noise(3) > 0.9
    found = closing(mask, z_radius, xy_radius)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, naive_closing(mask, z_radius, xy_radius))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 9)] * 3), st.integers(0, 4), st.integers(0, 4))
def test_closing_is_exact_extensive_and_idempotent_whatever_the_shape(seed, shape, z_radius, xy_radius) -> None:
    mask = np.random.default_rng(seed).random(shape) < 0.2
    found = closing(mask, z_radius, xy_radius)
    np.testing.assert_array_equal(found, naive_closing(mask, z_radius, xy_radius))
    assert (found >= mask).all()
    np.testing.assert_array_equal(closing(found, z_radius, xy_radius) >= found, True)


def test_closing_keeps_foreground_at_every_face() -> None:
    mask = np.zeros((9, 9, 9), bool)
    mask[[0, -1]] = mask[:, [0, -1]] = mask[:, :, [0, -1]] = True
    assert (closing(mask, 2, 2) >= mask).all()
    full = np.ones((4, 4, 4), bool)
    np.testing.assert_array_equal(closing(full, 3, 3), full)


def test_closing_fills_a_gap_and_leaves_a_wide_one() -> None:
    mask = np.zeros((3, 3, 20), bool)
    mask[:, :, [2, 4, 10, 18]] = True
    found = closing(mask, 1, 1)
    assert found[1, 1, 3] and not found[1, 1, 14]


@pytest.mark.parametrize("min_size", [0, 1, 2, 5, 30, 10_000])
def test_dust_is_what_scipy_counts_below_the_size(min_size: int) -> None:
    mask = smooth_noise(5, sigma=0.7) > 0.93
    labels, _ = ndimage.label(mask, CUBE)
    sizes = np.bincount(labels.ravel())
    expected = mask & (sizes[labels] >= min_size)
    np.testing.assert_array_equal(remove_dust(mask, min_size), expected)


def test_a_component_of_exactly_the_size_stays() -> None:
    mask = np.zeros((2, 3, 8), np.uint8)
    mask[0, 0, :4] = mask[1, 2, 5:8] = 1
    found = remove_dust(mask, 4)
    assert found.sum() == 4 and found[0, 0, :4].all()


def test_many_components_across_slabs_keep_their_identity() -> None:
    """Wide volumes are looked up in several slabs; a component that crosses them is one component."""
    mask = np.zeros((5, 1100, 1100), bool)
    mask[:, 7, 7] = True  # five voxels, one per plane
    mask[0, ::50, 100::50] = True  # single voxels
    found = remove_dust(mask, 5)
    assert found.sum() == 5 and found[:, 7, 7].all()
    p = np.where(mask, np.float32(0.5), np.float32(0))
    p[4, 7, 7] = 0.9
    np.testing.assert_array_equal(hysteresis(p, 0.8, 0.4), found)


def test_the_mask_is_the_three_steps_in_order() -> None:
    p = smooth_noise(11)
    parameters = MaskParameters(strong_th=0.98, weak_th=0.8, z_radius=1, xy_radius=2, dust_min_size=20)
    strong = p >= np.float32(0.98)
    grown = ndimage.binary_propagation(strong, CUBE, mask=p >= np.float32(0.8))
    closed = naive_closing(grown, 1, 2)
    labels, _ = ndimage.label(closed, CUBE)
    expected = closed & (np.bincount(labels.ravel())[labels] >= 20)
    found = make_mask(Prediction.certain(p), parameters)
    assert found.dtype == np.uint8 and found.shape == p.shape and found.any()
    np.testing.assert_array_equal(found, expected.astype(np.uint8))


def test_a_map_below_the_strong_threshold_gives_an_empty_mask() -> None:
    p = np.full((6, 5, 4), 0.6, np.float32)
    found = make_mask(Prediction.certain(p), classic(0.7, 0.3, 1, 1, 0))
    assert found.dtype == np.uint8 and found.shape == p.shape and not found.any()


def test_the_input_is_left_alone_and_may_be_read_only() -> None:
    p = smooth_noise(2)
    before = p.copy()
    p.setflags(write=False)
    make_mask(Prediction.certain(p), classic(0.9, 0.5, 2, 2, 10))
    mask = p > 0.9
    kept = mask.copy()
    for changed in (closing(mask, 0, 0), remove_dust(mask, 0)):
        changed[...] = True
    np.testing.assert_array_equal(p, before)
    np.testing.assert_array_equal(mask, kept)


def test_nan_is_named_with_its_place() -> None:
    p = smooth_noise(1)
    p[4, 3, 2] = np.nan
    with pytest.raises(NX46Error, match=r"NaN.*\(4, 3, 2\).*1 NaN"):
        make_mask(Prediction.certain(p), classic(0.9, 0.5, 1, 1, 10))


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.float32), np.zeros((4, 4, 4), np.uint8)])
def test_what_is_no_volume_of_floats_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(NX46Error):
        hysteresis(bad, 0.5, 0.5)


@pytest.mark.parametrize(
    "values", [(0.3, 0.8, 1, 1, 0), (float("nan"), 0.1, 1, 1, 0), (0.8, 0.3, -1, 1, 0), (0.8, 0.3, 1, 1, -5)]
)
def test_impossible_parameters_are_refused(values) -> None:
    with pytest.raises(UsageError):
        classic(*values)
