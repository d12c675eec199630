"""Candidate families against definitions and volumes whose values are known, and turned with their volume."""

from __future__ import annotations

import numpy as np
import pytest

from nx46vx.bench.families import CANDIDATES, candidate_names, hessian_eigenvalues, sample_candidates
from nx46vx.bench.pool_samples import ROTATIONS
from nx46vx.data.synthetic import make_case
from nx46vx.features.extractors import standardise
from nx46vx.features.reference import VolumeReference, measure_reference

BY_NAME = {one.family: one for one in CANDIDATES}
ALONG_X = VolumeReference(0.0, 1.0, (0.0, 0.0, 1.0), 1)
INNER = (slice(14, 18),) * 3


def values(family: str, v: np.ndarray) -> dict[str, np.ndarray]:
    one = BY_NAME[family]
    return dict(zip(one.names, one.compute(v.astype(np.float32), ALONG_X), strict=True))


def along_x(profile: np.ndarray) -> np.ndarray:
    return np.broadcast_to(profile, (32, 32, profile.size)).astype(np.float32)


def test_a_ramp_is_flat_for_band_passes_and_second_derivatives() -> None:
    ramp = along_x(np.arange(64) * 0.1)
    middle = (slice(10, 20), slice(10, 20), slice(28, 36))
    for family in ("dog", "hessian"):
        for name, found in values(family, ramp).items():
            assert np.abs(found[middle]).max() < 2e-3, name
    slope = values("interslice", ramp)
    assert slope["interslice_slope"][middle] == pytest.approx(0.4, abs=1e-4)
    assert np.abs(slope["interslice_curvature"][middle]).max() < 1e-4


def test_the_local_frequency_of_a_wave_is_the_waves() -> None:
    """Central differences see sin(2 pi f) for 2 pi f."""
    for f in (1 / 16, 1 / 10):
        found = values("frequency", along_x(5 * np.cos(2 * np.pi * f * np.arange(96))))["frequency_cycles"]
        assert found[10:20, 10:20, 40:56].mean() == pytest.approx(np.sin(2 * np.pi * f) / (2 * np.pi), rel=0.05)


def test_hessian_eigenvalues_of_a_smoothed_bright_plane() -> None:
    """Of exp(-x^2 / 2 w^2) the smoothed second derivative is known; the other two eigenvalues are 0."""
    x, s, w = np.arange(32) - 16.0, 2, 2.0
    found = hessian_eigenvalues(along_x(np.exp(-(x**2) / (2 * w * w))), s)
    expected = -s * s * (w / np.hypot(w, s)) / (w * w + s * s)
    assert found[:, 16, 16, 16] == pytest.approx([expected, 0, 0], abs=2e-3)
    noise = np.random.default_rng(0).standard_normal((12, 12, 12))
    sizes = np.abs(hessian_eigenvalues(noise, 1))
    assert (np.diff(sizes, axis=0) <= 0).all()


def test_sheetness_tells_a_bright_plane_from_a_dark_one_a_line_and_a_blob() -> None:
    z, y, x = np.indices((32, 32, 32)) - 16.0
    shapes = {"plane": x * x, "line": x * x + y * y, "blob": x * x + y * y + z * z}
    found = {name: values("sheetness", 3 * np.exp(-r / 8))["sheetness_s2"][16, 16, 16] for name, r in shapes.items()}
    assert found["plane"] > 0.8 > 0.2 > found["line"] > found["blob"] - 1e-9
    assert found["blob"] < 0.01
    assert values("sheetness", -3 * np.exp(-shapes["plane"] / 8))["sheetness_s2"][16, 16, 16] == 0


def test_coherence_and_texture_of_a_plane() -> None:
    plane = along_x(np.sin(np.arange(32) / 2))
    found = values("coherence", plane)
    assert found["coherence_s2"][INNER].min() > 0.99
    assert np.abs(found["coherence_linear_s2"][INNER]).max() < 1e-6
    assert values("texture", plane)["texture_ratio"][INNER].min() > 4


def test_rank_entropy_variance_and_contrast_by_their_definitions() -> None:
    v = np.random.default_rng(3).standard_normal((19, 19, 19)).astype(np.float32)
    cube = v[7:12, 7:12, 7:12]
    assert values("rank", v)["rank_r2"][9, 9, 9] == pytest.approx((cube < v[9, 9, 9]).sum() / 125)
    counts = np.histogram(np.clip(cube, -2.99, 2.99), bins=np.arange(-3, 3.1, 0.5))[0]
    shares = counts[counts > 0] / 125
    assert values("entropy", v)["entropy_r2"][9, 9, 9] == pytest.approx(-(shares * np.log(shares)).sum(), rel=1e-5)
    offsets = np.arange(-9, 10.0)
    line = np.where(np.abs(offsets) <= 6, np.exp(-(offsets**2) / 8), 0)
    weight = np.einsum("i,j,k->ijk", line, line, line) / line.sum() ** 3
    mean = (weight * v).sum()
    expected = np.log((weight * (v - mean) ** 2).sum() + 1e-3)
    assert values("variance", v)["variance_s2"][9, 9, 9] == pytest.approx(expected, rel=1e-4)
    step = along_x(np.where(np.arange(32) < 16, -1.0, 1.0))
    assert values("contrast", step)["contrast_r4"][16, 16, 20] < values("contrast", step)["contrast_r4"][16, 16, 17]
    assert np.abs(values("contrast", np.full((20, 20, 20), 2.0))["contrast_r4"]).max() < 1e-2


def test_candidates_turn_with_their_volume() -> None:
    volume, _ = make_case((26, 28, 30), scroll=3, seed=3)
    index = np.random.default_rng(0).choice(volume.size, 400, replace=False)

    def sampled(turned: np.ndarray, at: np.ndarray) -> np.ndarray:
        reference = measure_reference(turned)
        return sample_candidates(standardise(turned, reference), reference, at)

    upright = sampled(volume, index)
    assert upright.shape == (2 * len(candidate_names()), 400) and np.isfinite(upright).all()
    for rotation in ROTATIONS[1:4]:
        turned = sampled(rotation.turn(volume), rotation.moved(index, volume.shape))
        off = np.sqrt(np.mean((turned - upright) ** 2, axis=1)) / upright.std(axis=1)
        assert off.max() < 0.01
