"""The feature pool equals SciPy filter by filter, is the same by blocks and ways, and turns with the volume."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import scipy.ndimage as ndi
from hypothesis import given, settings
from hypothesis import strategies as st

from nx46vx.errors import UsageError
from nx46vx.features import backend as backend_module
from nx46vx.features.arrays import Arrays
from nx46vx.features.backend import Backend, backend, compiled
from nx46vx.features.blocks import iter_blocks, sample_features
from nx46vx.features.extractors import compute_pool, standardise
from nx46vx.features.once import once
from nx46vx.features.pool import FEATURES, HALO, NORMAL_SCALE, PLANARITY_EPSILON, feature_names
from nx46vx.features.reference import VolumeReference, measure_reference
from nx46vx.features.smoothing import half_kernel, smooth
from nx46vx.features.symmetric_eig import COMPONENTS, eigenvalues, principal_eigenvector
from tests.fake_cupy import Device, FakeCupy

NAMES = feature_names()


def sheets(shape: tuple[int, int, int], *, axis: tuple[float, float] = (-120.0, -40.0), seed: int = 0) -> np.ndarray:
    """Sheets wound around an axis along z at (y, x) = ``axis``; their inner face is sharp, their outer one soft."""
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij")
    r = np.hypot(y - axis[0], x - axis[1]) + 1.5 * np.sin(z / 9 + y / 14)
    t = np.mod(r, 22) - 11
    sheet = 1 / (1 + np.exp(-(t + 5) / 0.4)) / (1 + np.exp((t - 5) / 1.8))
    noise = ndi.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 0.8)
    return np.clip(60 + 90 * sheet + 20 * noise, 1, 255).astype(np.uint8)


def gradient_magnitude(feature: np.ndarray) -> np.ndarray:
    """Length of the gradient by central differences, reflected at the borders, in float32."""
    wide, total = np.pad(feature, 1, mode="edge"), np.zeros_like(feature)
    for axis in range(3):
        inner = [slice(1, -1)] * 3
        inner[axis] = slice(2, None)
        ahead = wide[tuple(inner)]
        inner[axis] = slice(None, -2)
        part = (ahead - wide[tuple(inner)]) * np.float32(0.5)
        total = total + part * part
    return np.sqrt(total)


def whole(volume: np.ndarray, reference: VolumeReference, how: Backend) -> tuple[np.ndarray, np.ndarray]:
    """Features and gradients of a volume as one block."""
    ((_, x, g),) = iter_blocks(volume, reference, NAMES, block=max(volume.shape), how=how)
    return x, g


@pytest.fixture(params=["arrays", "compiled"])
def how(request: pytest.FixtureRequest) -> Backend:
    if request.param == "arrays":
        return Arrays()
    found, reason = compiled()
    assert found is not None, reason
    return found


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    return sheets((44, 50, 47))


@pytest.fixture(scope="module")
def reference(volume: np.ndarray) -> VolumeReference:
    return measure_reference(volume)


@pytest.fixture(scope="module")
def pool(volume: np.ndarray, reference: VolumeReference) -> np.ndarray:
    return compute_pool(standardise(volume, reference), reference, NAMES)


@pytest.fixture(scope="module")
def compiled_pool(volume: np.ndarray, reference: VolumeReference) -> np.ndarray:
    found, reason = compiled()
    assert found is not None, reason
    return whole(volume, reference, found)[0]


def scipy_feature(name: str, v: np.ndarray, reference: VolumeReference) -> tuple[np.ndarray, np.ndarray]:
    """One feature computed alone in float64 with SciPy and LAPACK, and where it is well defined."""
    family, scale = name.rsplit("_s", 1)
    s = int(scale)

    def smooth(a: np.ndarray, sigma: int) -> np.ndarray:
        return ndi.gaussian_filter(a.astype(np.float64), sigma, mode="reflect", truncate=3.0)

    def gradient(a: np.ndarray) -> list[np.ndarray]:
        return [ndi.correlate1d(a, [-0.5, 0, 0.5], axis=k, mode="reflect") for k in range(3)]

    def tensor(rho: int) -> tuple[np.ndarray, np.ndarray]:
        g = gradient(smooth(v, 1))
        j = np.stack([np.stack([smooth(g[a] * g[b], rho) for b in range(3)], -1) for a in range(3)], -1)
        return np.linalg.eigh(j)

    everywhere = np.ones(v.shape, bool)
    if family == "gauss":
        return smooth(v, s), everywhere
    if family == "gradmag":
        return np.sqrt(sum(g * g for g in gradient(smooth(v, s)))), everywhere
    if family == "log":
        kernel = {1: [1, -2, 1]}.get(s, [0.25, 0, -0.5, 0, 0.25])
        return s * s * sum(ndi.correlate1d(smooth(v, s), kernel, axis=k, mode="reflect") for k in range(3)), everywhere
    if family == "planarity":
        l3, l2, l1 = np.moveaxis(tensor(s)[0], -1, 0)
        return (l1 - l2) / (l1 + l2 + l3 + PLANARITY_EPSILON), everywhere
    values, vectors = tensor(NORMAL_SCALE)
    n = np.moveaxis(vectors[..., -1], -1, 0)
    cosine = np.tensordot(np.array(reference.direction), n, 1)
    clear = (values[..., 2] - values[..., 1] > 0.05 * values[..., 2]) & (np.abs(cosine) > 1e-3)
    n = n * np.sign(cosine)

    def displaced(distance: float) -> np.ndarray:
        return ndi.map_coordinates(smooth(v, s), np.indices(v.shape) + distance * n, order=1, mode="reflect")

    if family in ("ridge", "bend2", "bend4"):
        steps = {"ridge": 3, "bend2": 2, "bend4": 4}[family]
        return displaced(steps) + displaced(-steps) - 2 * smooth(v, s), clear
    sign = reference.sign_skew
    if family in ("step2", "step4"):
        steps = sign * int(family[-1])
        return displaced(steps) - displaced(-steps), clear
    if family == "face":
        return (displaced(-sign) - displaced(-3 * sign)) / 2, clear
    along = sum(g * part for g, part in zip(gradient(smooth(v, s)), n, strict=True))
    return sign * along, clear


@pytest.mark.parametrize("name", NAMES)
def test_each_feature_equals_scipy_filter_by_filter(
    name: str, volume: np.ndarray, reference: VolumeReference, pool: np.ndarray, compiled_pool: np.ndarray
) -> None:
    expected, clear = scipy_feature(name, standardise(volume, reference), reference)
    assert clear.mean() > 0.9
    for found in (pool, compiled_pool):
        assert np.abs(found[NAMES.index(name)] - expected)[clear].max() <= 1e-5 * expected.std()


@pytest.mark.parametrize(
    "shape", [(1, 1, 40), (2, 5, 17), (3, 2, 16), (40, 3, 31), (5, 33, 64), (7, 7, 7)], ids=lambda shape: str(shape)
)
def test_compiled_code_and_arrays_agree_bit_for_bit(shape: tuple[int, int, int]) -> None:
    """In volumes smaller than the filters, too, which are then reflected over and over."""
    volume = np.random.default_rng(2).integers(1, 255, shape).astype(np.uint8)
    ways: list[Backend] = [Arrays(), backend()]
    assert [way.name for way in ways] == ["arrays", "compiled"]
    references = [measure_reference(volume, how=way) for way in ways]
    assert references[0] == references[1]
    index = np.random.default_rng(3).choice(volume.size, min(volume.size, 5), replace=False)
    found = [
        (*whole(volume, references[0], way), sample_features(volume, references[0], NAMES, index, block=32, how=way))
        for way in ways
    ]
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one, other)


def test_each_feature_is_the_same_when_it_is_the_only_one() -> None:
    volume = np.random.default_rng(4).integers(1, 255, (6, 9, 33)).astype(np.uint8)
    reference = measure_reference(volume)
    x, g = whole(volume, reference, Arrays())
    for row, name in enumerate(NAMES):
        ((_, some, slopes),) = iter_blocks(volume, reference, [name], block=64, how=backend())
        assert np.array_equal(some[0], x[row]), name
        assert np.array_equal(slopes[0], g[row]), name


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 60)),
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True),
    st.integers(4, 40), st.integers(1, 3), st.integers(0, 2**31),
)  # fmt: skip
def test_any_features_of_any_volume_have_one_value(
    shape: tuple[int, int, int], names: list[str], block: int, threads: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    volume = ndi.uniform_filter(rng.integers(0, 255, shape).astype(np.uint8), 2)
    reference = VolumeReference(90.0, 40.0, (0.48, -0.6, 0.64), int(rng.choice([-1, 1])))
    ((_, x, g),) = iter_blocks(volume, reference, names, block=60, how=Arrays())
    for window, some, slopes in iter_blocks(volume, reference, names, block=block, threads=threads, how=backend()):
        assert np.array_equal(some, x[(slice(None), *window)])
        assert np.array_equal(slopes, g[(slice(None), *window)])


@pytest.mark.parametrize("sigma", [1, 2, 4])
@pytest.mark.parametrize("shape", [(3, 5, 8), (30, 31, 29)], ids=["small", "large"])
def test_smoothing_is_scipys_gaussian_filter(sigma: int, shape: tuple[int, int, int]) -> None:
    v = np.random.default_rng(sigma).standard_normal(shape)
    found = smooth(v, sigma, tuple(slice(0, n) for n in shape), np.float64)
    assert np.allclose(found, ndi.gaussian_filter(v, sigma, mode="reflect", truncate=3.0), rtol=0, atol=1e-14)
    weights = half_kernel(sigma, np.float64)
    assert weights[0] + 2 * weights[1:].sum() == pytest.approx(1, abs=1e-15)


def test_features_asked_for_alone_are_those_of_the_whole_pool(
    how: Backend, volume: np.ndarray, reference: VolumeReference, pool: np.ndarray
) -> None:
    names = ("signed_s2", "gauss_s4")
    some = compute_pool(standardise(volume, reference), reference, names)
    assert np.array_equal(some, pool[[NAMES.index(name) for name in names]])
    ((_, x, _),) = iter_blocks(volume, reference, names, block=64, how=how)
    assert np.array_equal(x, some)


def test_a_feature_that_is_not_in_the_pool_is_refused(volume: np.ndarray, reference: VolumeReference) -> None:
    with pytest.raises(UsageError, match="entropy_s3"):
        compute_pool(standardise(volume, reference), reference, ["gauss_s1", "entropy_s3"])


@pytest.mark.parametrize(("block", "threads"), [(HALO + 3, 1), (32, 3)])
def test_blocks_have_the_bits_of_the_whole_volume(
    block: int, threads: int, how: Backend, volume: np.ndarray, reference: VolumeReference, pool: np.ndarray
) -> None:
    features, gradients = np.full_like(pool, np.nan), np.full_like(pool, np.nan)
    for window, x, g in iter_blocks(volume, reference, NAMES, block=block, threads=threads, how=how):
        assert np.isnan(features[(0, *window)]).all(), "blocks overlap"
        features[(slice(None), *window)], gradients[(slice(None), *window)] = x, g
    assert np.array_equal(features, pool)
    assert np.array_equal(gradients, np.stack([gradient_magnitude(feature) for feature in pool]))


@pytest.mark.parametrize("count", [60, 90_000], ids=["few", "nearly all"])
def test_single_voxels_have_the_bits_of_the_whole_volume(
    count: int, how: Backend, volume: np.ndarray, reference: VolumeReference, pool: np.ndarray
) -> None:
    index = np.random.default_rng(1).choice(volume.size, count, replace=False)
    index[:3] = 0, volume.size - 1, volume.shape[2] - 1  # corners of the volume
    expected = np.concatenate([pool, np.stack([gradient_magnitude(feature) for feature in pool])])
    for threads in (1, 2):
        found = sample_features(volume, reference, NAMES, index, block=29, threads=threads, how=how)
        assert np.array_equal(found, expected.reshape(len(expected), -1)[:, index])


def test_blocks_without_samples_are_skipped(volume: np.ndarray, reference: VolumeReference) -> None:
    where = np.zeros(volume.shape, bool)
    where[40, 3, 3] = True
    for wanted in (where, np.flatnonzero(where)):
        blocks = list(iter_blocks(volume, reference, ["gauss_s1"], block=32, gradients=False, where=wanted))
        assert [window for window, _, _ in blocks] == [(slice(32, 44), slice(0, 32), slice(0, 32))]
        assert blocks[0][1].shape == (1, 12, 32, 32)
        assert blocks[0][2].shape == (0, 12, 32, 32)


def test_gradients_are_those_of_central_differences(how: Backend) -> None:
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in (3, 9, 40)), indexing="ij")
    before, here, after = 2 * z - 3 * y + 6 * x
    found = how.slopes(before[None], here[None], after[None])
    assert found.shape == (1, 7, 38)
    assert np.allclose(found, 7)


@pytest.mark.parametrize("width", [5, 16, 40])
def test_a_quadratic_form_is_what_it_says(how: Backend, width: int) -> None:
    rng = np.random.default_rng(width)
    planes = rng.standard_normal((3, 4, 6, width + 2)).astype(np.float32)
    terms = rng.standard_normal((4, 4)).astype(np.float32)
    found = how.quadratic(*planes, terms, -0.7)
    expected = np.full((4, width), -0.7)
    for feature, (shift, a, b, c) in enumerate(terms.astype(np.float64)):
        g = np.stack(np.gradient(planes[:, feature].astype(np.float64), axis=(0, 1, 2)))[:, 1, 1:-1, 1:-1]
        s = planes[1, feature, 1:-1, 1:-1] - shift
        expected += a * s * s + b * s + c * np.sqrt((g * g).sum(axis=0))
    assert found.shape == (4, width)
    assert np.abs(found - expected).max() < 1e-4


def test_without_a_compiler_arrays_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError("no LLVM here")

    monkeypatch.setattr(backend_module.importlib, "import_module", broken)
    found, reason = backend_module.compiled.__wrapped__()
    assert found is None
    assert "OSError: no LLVM here" in reason


def test_code_that_gives_other_bits_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(Arrays):
        def slopes(self, before: Any, here: Any, after: Any) -> Any:
            return np.nextafter(super().slopes(before, here, after), np.float32(0))

    monkeypatch.setattr(backend_module.importlib, "import_module", lambda _: types.SimpleNamespace(Compiled=Wrong))
    found, reason = backend_module.compiled.__wrapped__()
    assert found is None
    assert "other bits" in reason


NARROW = """
import sys
from nx46vx.features import jit
jit.host = lambda: jit.Machine(sys.argv[1], "", int(sys.argv[2]))
from nx46vx.features.backend import compiled
print(compiled()[1])
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names of x86-64 processors")
@pytest.mark.parametrize(("processor", "width"), [("x86-64", 4), ("haswell", 8)])
def test_older_processors_give_the_same_bits(processor: str, width: int) -> None:
    """Code for them, run here: shorter vectors, no fused operations, no rounding instruction."""
    said = subprocess.run(
        [sys.executable, "-c", NARROW, processor, str(width)], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert said.stdout.strip() == "it gives the arrays' bits"


def test_the_pool_is_computed_where_the_array_lives(
    volume: np.ndarray, reference: VolumeReference, pool: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU's arrays the same source runs, and nothing is fetched in between."""
    monkeypatch.setitem(sys.modules, "cupy", FakeCupy())
    found = compute_pool(Device(standardise(volume, reference)), reference, NAMES)
    assert isinstance(found, Device)
    assert np.array_equal(found.array, pool)


@pytest.mark.parametrize("plane", [(0, 1), (1, 2), (0, 2)])
@pytest.mark.parametrize("name", ["signed_s2", "step4_s1", "face_s2", "bend2_s1", "ridge_s2", "planarity_s4", "log_s2"])
def test_features_turn_with_the_volume(plane: tuple[int, int], name: str) -> None:
    volume = sheets((40, 44, 48), axis=(-60.0, 10.0))
    plain, turned = measure_reference(volume), measure_reference(np.rot90(volume, 1, plane).copy())
    expected = compute_pool(standardise(volume, plain), plain, [name])[0]
    found = compute_pool(standardise(np.rot90(volume, 1, plane).copy(), turned), turned, [name])[0]
    difference = np.abs(np.rot90(found, -1, plane) - expected)
    assert (difference <= 1e-3 * expected.std()).mean() > 0.995  # but where n is perpendicular to the direction


@pytest.mark.parametrize("axis", [(-120.0, -40.0), (190.0, 20.0), (30.0, -150.0)])
def test_the_sharper_face_is_found_wherever_the_centre_lies(axis: tuple[float, float]) -> None:
    """The inner face is the sharper one: along the outward normal, its derivative is the steep rise."""
    volume = sheets((40, 48, 48), axis=axis, seed=3)
    reference = measure_reference(volume)
    outward = np.array([0, 24 - axis[0], 24 - axis[1]]) / np.hypot(24 - axis[0], 24 - axis[1])
    towards = np.dot(reference.direction, outward)
    assert abs(towards) > 0.9
    assert reference.sign_skew == np.sign(towards)


def test_large_volumes_are_measured_through_windows() -> None:
    volume = sheets((20, 230, 230), axis=(-200.0, -90.0))
    windows = measure_reference(volume)
    assert np.dot(windows.direction, (0, 315, 205)) > 0.97 * np.hypot(315, 205)
    assert windows.sign_skew == 1


@pytest.mark.parametrize("value", [0, 7])
def test_constant_volumes_give_finite_features(value: int, how: Backend) -> None:
    volume = np.full((9, 8, 27), value, np.uint8)
    reference = measure_reference(volume, how=how)
    assert (reference.median, reference.scale) == (float(value), 1.0)
    assert not any(part.any() for part in whole(volume, reference, how))


def test_reference_grey_values_ignore_zero_and_are_exact() -> None:
    volume = np.zeros((10, 10, 11), np.uint8)
    volume[..., 1:] = np.random.default_rng(0).integers(20, 220, (10, 10, 10))
    q10, q50, q90 = np.quantile(volume[volume > 0], (0.1, 0.5, 0.9), method="inverted_cdf")
    reference = measure_reference(volume)
    assert reference.median == q50
    assert reference.scale == pytest.approx((q90 - q10) / 2.5631031310892007)


def test_measuring_twice_gives_equal_references(volume: np.ndarray, reference: VolumeReference) -> None:
    assert measure_reference(volume.copy()) == reference
    assert dataclasses.astuple(reference)[2] == reference.direction


def matrices(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Symmetric matrices with the given eigenvalues ``(n, 3)``, randomly turned."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), 3, 3)))
    return np.einsum("nij,nj,nkj->nik", q, values, q)


@pytest.mark.parametrize("size", [1e-30, 1e-8, 1.0, 1e12])
def test_eigenvalues_and_vectors_equal_lapack(size: float) -> None:
    values = np.random.default_rng(0).standard_normal((500, 3)) * size
    a = matrices(values)
    parts = tuple(a[:, i, j].copy() for i, j in COMPONENTS)
    eigen = eigenvalues(parts)
    assert np.allclose(np.stack(eigen[:3], 1), np.linalg.eigvalsh(a)[:, ::-1], rtol=0, atol=1e-7 * size)
    vector = np.stack(principal_eigenvector(parts, eigen), 1)
    gap = np.diff(np.sort(values, axis=1))[:, 1] > 1e-2 * size
    expected = np.linalg.eigh(a)[1][:, :, 2]
    assert np.allclose(np.abs(np.sum(vector * expected, 1))[gap], 1, atol=1e-10)


@pytest.mark.parametrize("values", [(0, 0, 0), (2, 2, 2), (3, 3, 1), (3, 1, 1), (0, 0, -4), (5, 0, 0)])
def test_degenerate_matrices_give_a_unit_eigenvector_of_the_largest_eigenvalue(values: tuple[int, int, int]) -> None:
    a = np.concatenate([matrices(np.tile(np.array(values, float), (50, 1))), [np.diag(values)]])
    parts = tuple(a[:, i, j].copy() for i, j in COMPONENTS)
    eigen = eigenvalues(parts)
    vector = np.stack(principal_eigenvector(parts, eigen), 1)
    assert np.allclose(np.stack(eigen[:3], 1), values, atol=1e-6)
    assert np.allclose(np.linalg.norm(vector, axis=1), 1)
    assert np.allclose(np.einsum("nij,nj->ni", a, vector), max(values) * vector, atol=1e-6)


def test_the_pool_is_documented_and_its_names_are_unique() -> None:
    assert len(set(NAMES)) == len(NAMES) == len(FEATURES) <= 24
    assert all(spec.description and spec.name == f"{spec.family}_s{spec.scale}" for spec in FEATURES)


def test_what_several_threads_want_at_once_is_made_once() -> None:
    made: list[int] = []

    @once
    def slow(number: int) -> int:
        made.append(number)
        time.sleep(0.05)
        return 2 * number

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(slow, [3, 3, 4, 3])) == [6, 6, 8, 6]
    assert sorted(made) == [3, 4]
