"""The yardstick computes the same features, and the benchmarks report what they say."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy.special import expit

from nx46vx.bench import children, features, features_gpu, inference
from nx46vx.bench.scipy_inference import scipy_probabilities
from nx46vx.bench.scipy_pool import clear_voxels, gradient, scipy_feature, scipy_pool
from nx46vx.data.synthetic import make_case
from nx46vx.errors import EnvironmentFault
from nx46vx.features.extractors import compute_pool, standardise
from nx46vx.features.pool import feature_names
from nx46vx.features.reference import measure_reference
from nx46vx.runtime.device import Gpu
from tests.fake_cupy import FakeCupy


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "QUICK", features.Sizes(compared=24, volume=24, repetitions=2, cases=5))
    monkeypatch.setattr(inference, "_QUICK_EDGE", 24)
    monkeypatch.setattr(inference, "_QUICK_COMPARED_EDGE", 26)


def test_the_yardstick_computes_the_pool() -> None:
    volume, _ = make_case((24, 26, 28), scroll=1, seed=1)
    reference = measure_reference(volume)
    v = standardise(volume, reference)
    expected = scipy_pool(v.astype(np.float64), reference)
    clear = clear_voxels(v, reference)
    assert clear.mean() > 0.9
    for one, other in zip(compute_pool(v, reference, feature_names()), expected, strict=True):
        assert np.abs(one - other)[clear].max() <= 1e-5 * other.std()
    name = feature_names()[4]
    assert np.array_equal(scipy_feature(name, v.astype(np.float64), reference), expected[4])


def test_features_are_measured_against_scipy(small: None) -> None:
    found = features.measure(quick=True)
    assert found["deviation"] <= 1e-5
    assert found["clear_share"] > 0.9
    assert [b / a for a, b in zip(found["compared_s"], found["scipy_s"], strict=True)] == found["ratio"]
    assert len(found["ratio"]) == len(found["warm_start_s"]) == 2
    assert 0.05 < found["volume_peak_gib"] < 2.5
    assert found["case_s"] > 0


GPU = Gpu(0, "0", "H200", 141 << 30, 140 << 30, "90")


def test_features_on_a_gpu_are_measured_beside_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", FakeCupy())
    told = features_gpu.measure(features_gpu.Sizes(volume=32, repetitions=2), GPU)
    assert told["same_bits"] and told["gpu"] == "H200" and told["cupy"] == "fake"
    assert len(told["case_s"]) == len(told["processor_s"]) == 2 and min(told["case_gpu_s"]) > 0
    assert told["held_gib"] > 0


def test_features_on_a_gpu_are_refused_where_it_does_not_compute_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(EnvironmentFault) as refused:
        features_gpu.measure(features_gpu.QUICK, GPU)
    assert "cupy" in str(refused.value.found).lower() and "H200" in str(refused.value.where)


def test_inference_is_measured_in_a_process_of_its_own(small: None) -> None:
    found = inference.measure(quick=True)
    assert found["members"] == 9
    assert found["voxels_per_s"] == [24**3 / seconds for seconds in found["seconds"]]
    assert 0.05 < found["peak_gib"] < 2.5
    assert (found["compared_edge"], len(found["ratio_vs_scipy"])) == (26, 3)


def test_probabilities_are_compared_with_scipys_at_equal_values() -> None:
    found = inference.compared(edge=32, repetitions=2)
    assert found["deviation"] <= 1e-5 and found["comparable_share"] > 0.8
    for ours, ratio in (("compared_s", "ratio_vs_scipy"), ("compared_one_core_s", "ratio_vs_scipy_one_core")):
        assert found[ratio] == [b / a for a, b in zip(found[ours], found["scipy_s"], strict=True)]


def test_the_yardstick_has_the_probabilities_that_the_ensemble_defines() -> None:
    """From the yardstick's features, by the ensemble's own definition; where nothing was scanned they are 0."""
    volume, _ = make_case((20, 22, 24), scroll=2, seed=2)
    volume[:3] = 0
    ensemble = inference.random_ensemble(seed=3)
    reference, names = measure_reference(volume), ensemble.features
    x = scipy_pool(standardise(volume, reference).astype(np.float64), reference, names)
    g = np.stack([np.sqrt(sum(part**2 for part in gradient(field))) for field in x])
    z = ensemble.logits(names, x.reshape(len(names), -1), g.reshape(len(names), -1))
    found = scipy_probabilities(volume, ensemble, np.float64)
    expected = np.where(volume.ravel() == 0, 0, expit(z)).reshape(volume.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert (found[:3] == 0).all() and found[3:].std() > 0.05


def test_a_deviation_from_scipy_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = inference.probability_volume
    monkeypatch.setattr(inference, "probability_volume", lambda *args, **how: real(*args, **how) + np.float32(1e-3))
    assert inference.compared(edge=20, repetitions=1)["deviation"] > 5e-4


def test_a_child_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="TypeError"):
        children.in_child("nx46vx.bench.inference", "run", edge="no number", repetitions=1)


@pytest.mark.slow
def test_a_competition_volume_takes_little_memory() -> None:
    found = children.in_child("nx46vx.bench.inference", "run", edge=320, repetitions=0)
    assert found["peak_bytes"] < 2.5e9
    found = children.in_child("nx46vx.bench.features", "sampled_volume", edge=320)
    assert found["peak_bytes"] < 2.5e9
