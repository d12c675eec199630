"""Features on a GPU: the processor's bits or none, blocks that memory holds, and the processor where it fails."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nx46vx.data.synthetic import make_case
from nx46vx.features import gpu_check, gpu_smoothing
from nx46vx.features.blocks import sample_features
from nx46vx.features.gpu import CHUNK_VOXEL_BYTES, Gpu
from nx46vx.features.gpu_check import open_gpu
from nx46vx.features.gpu_sampling import SHARE, SMALLEST, VOXEL_BYTES, GpuSampling, block_edges, needed_bytes
from nx46vx.features.gpu_smoothing import FusedSmoothing
from nx46vx.features.pool import feature_names
from nx46vx.features.reference import VolumeReference, measure_reference
from nx46vx.features.smoothing import smooth
from tests.fake_cupy import COMPILER, Device, FakeCupy, RawKernel

NAMES = feature_names()
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check's volume, an eighth of what it is."""
    monkeypatch.setattr(gpu_check, "EDGE", 24)
    monkeypatch.setattr(gpu_check, "BLOCK", 20)


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    return make_case((112, 40, 42), scroll=2, seed=3)[0]


@pytest.fixture(scope="module")
def reference(volume: np.ndarray) -> VolumeReference:
    return measure_reference(volume)


@pytest.fixture(scope="module")
def index(volume: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).choice(volume.size, 300, replace=False)


@pytest.fixture(scope="module")
def expected(volume: np.ndarray, reference: VolumeReference, index: np.ndarray) -> np.ndarray:
    return sample_features(volume, reference, NAMES, index, block=64)


def install(monkeypatch: pytest.MonkeyPatch, cupy: Any) -> Any:
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return cupy


def test_a_gpu_with_the_processors_bits_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = install(monkeypatch, FakeCupy())
    gpu, said = open_gpu(0)
    assert gpu is not None and "bit for bit" in said
    assert cupy.puts and cupy.released and gpu.seconds == 0.0


def test_a_gpu_that_takes_one_process_is_left_to_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = install(monkeypatch, FakeCupy())
    cupy.compute_mode = 3
    gpu, said = open_gpu(0)
    assert gpu is None and "one process at a time" in said and not cupy.puts


def test_where_its_kernels_fail_it_is_used_without_them(monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    install(monkeypatch, FakeCupy(kernels=False))
    gpu, said = open_gpu(0)
    assert gpu is not None and gpu.smooth is smooth
    assert "bit for bit, with slower smoothing: GPU 0 cannot compute features: AttributeError" in said


@needs_compiler
@pytest.mark.parametrize(("taken", "number"), [("f4", "f4"), ("f4", "f8"), ("f8", "f8")])
@pytest.mark.parametrize("shape", [(9, 70, 66), (40, 5, 3), (2, 1, 130)])
def test_the_kernels_source_gives_the_bits_of_the_arrays(taken: str, number: str, shape: tuple[int, int, int]) -> None:
    """Translated by a C compiler, thread by thread; also where axes are shorter than the kernel is long."""
    array = np.random.default_rng(0).standard_normal(shape).astype(taken)
    whole = slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])
    inner = slice(1, shape[0]), slice(0, shape[1]), slice(shape[2] // 3, shape[2] - 1)
    fused = FusedSmoothing(FakeCupy())
    for sigma, window in itertools.product((1, 2, 4), (whole, inner)):
        found = fused(Device(array), sigma, window, np.dtype(number).type)
        expected = smooth(array, sigma, window, np.dtype(number).type)
        assert found.array.dtype == expected.dtype and np.array_equal(found.array, expected)


@needs_compiler
def test_each_pass_is_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    monkeypatch.setattr(RawKernel, "__call__", lambda _, grid, block, arguments: launched.append(grid[0] * block[0]))
    FusedSmoothing(FakeCupy())(Device(np.zeros((32, 64, 128), np.float32)), 2, (slice(0, 32),) * 3, np.float32)
    assert launched == [32 * 64 * 128, 32 * 32 * 128, 32 * 32 * 32]


def test_arrays_beyond_its_indices_are_smoothed_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_smoothing, "_MOST", 1000)
    array = np.random.default_rng(0).standard_normal((12, 12, 12)).astype(np.float32)
    found = FusedSmoothing(FakeCupy(kernels=False))(array, 1, (slice(0, 12),) * 3, np.float32)
    assert np.array_equal(found, smooth(array, 1, (slice(0, 12),) * 3, np.float32))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs CUDA's compiler")
@pytest.mark.parametrize("number", [np.float32, np.float64])
def test_cudas_compiler_takes_the_source_and_fuses_no_operation(tmp_path: Path, number: type) -> None:
    (tmp_path / "along.cu").write_text(gpu_smoothing.source(np.float32, number))
    subprocess.run(["nvcc", "-ptx", "along.cu", "-o", "along.ptx"], cwd=tmp_path, check=True)
    code = (tmp_path / "along.ptx").read_text()
    assert "mul.rn.f" in code and "add.rn.f" in code and "fma" not in code


def test_without_cupy_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None)
    gpu, reason = open_gpu(0)
    assert gpu is None and "CuPy cannot be used" in reason


def test_a_driver_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(FakeCupy):
        def entered(self, index: int) -> None:
            raise RuntimeError(f"cudaErrorInvalidDevice: {index}\nmore")

    install(monkeypatch, Refusing())
    assert open_gpu(3) == (None, "CuPy cannot use GPU 3: RuntimeError: cudaErrorInvalidDevice: 3")


def test_a_gpu_that_runs_no_kernel_is_named(monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    install(monkeypatch, FakeCupy(room=10))
    gpu, reason = open_gpu(0)
    assert gpu is None and reason.startswith("GPU 0 cannot compute features: OutOfMemoryError: Out of memory")


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [(lambda found: np.nextafter(found, np.float32(np.inf)), "rounding"), (lambda found: found * 1.01, "wrong values")],
)
def test_other_bits_are_not_used_and_it_is_said_how_far_off_they_are(
    monkeypatch: pytest.MonkeyPatch, small: None, spoil: Any, kind: str
) -> None:
    install(monkeypatch, FakeCupy(spoil=lambda found: spoil(found).astype(np.float32)))
    gpu, reason = open_gpu(0)
    assert gpu is None
    assert f"({kind}: " in reason and "of its spread" in reason


def test_values_that_are_no_numbers_are_wrong(monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    install(monkeypatch, FakeCupy(spoil=lambda found: np.full_like(found, np.nan)))
    gpu, reason = open_gpu(0)
    assert gpu is None and "wrong values" in reason


class Asked:
    """Sampling on a fake GPU, and what it said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **how: Any) -> None:
        self.cupy = install(monkeypatch, FakeCupy(**how))
        self.said: list[str] = []
        self.sampling = GpuSampling(Gpu(0), self.said.append)


def test_a_volume_that_fits_is_one_block(
    monkeypatch: pytest.MonkeyPatch, volume: np.ndarray, reference: VolumeReference, index: np.ndarray,
    expected: np.ndarray,
) -> None:  # fmt: skip
    asked = Asked(monkeypatch)
    found = asked.sampling(volume, reference, NAMES, index, block=64)
    assert np.array_equal(found, expected)
    assert len(asked.cupy.puts) == 1 and asked.cupy.puts[0] > 0.9 * volume.size
    assert (asked.sampling.on_gpu, asked.sampling.on_cpu, asked.said) == (1, 0, [])
    assert asked.sampling.gpu.seconds == 2.0  # the block, and its voxels


def test_dense_samples_come_from_the_gpu_too(
    monkeypatch: pytest.MonkeyPatch, volume: np.ndarray, reference: VolumeReference
) -> None:
    asked, every = Asked(monkeypatch), np.arange(0, volume.size, 3)
    expected = sample_features(volume, reference, NAMES, every, block=64)
    assert np.array_equal(asked.sampling(volume, reference, NAMES, every, block=64), expected)
    assert asked.sampling.on_gpu == 1


def test_where_memory_ends_smaller_blocks_follow(
    monkeypatch: pytest.MonkeyPatch, volume: np.ndarray, reference: VolumeReference, index: np.ndarray,
    expected: np.ndarray,
) -> None:  # fmt: skip
    asked = Asked(monkeypatch, room=volume.size * 4 // 5)
    for _ in range(2):
        assert np.array_equal(asked.sampling(volume, reference, NAMES, index, block=64), expected)
    assert (asked.sampling.on_gpu, asked.sampling.on_cpu, asked.said) == (2, 0, [])
    assert asked.sampling.shrunk >= 1  # the second volume begins with what the first one found
    assert sum(size > asked.cupy.room for size in asked.cupy.puts) == asked.sampling.shrunk
    assert asked.cupy.released == asked.sampling.shrunk


def test_where_no_block_fits_the_processor_computes_the_whole_volume_and_all_after_it(
    monkeypatch: pytest.MonkeyPatch, volume: np.ndarray, reference: VolumeReference, index: np.ndarray,
    expected: np.ndarray,
) -> None:  # fmt: skip
    asked = Asked(monkeypatch)
    asked.sampling(volume, reference, NAMES, index, block=64)
    asked.cupy.room = 1000
    for _ in range(2):
        assert np.array_equal(asked.sampling(volume, reference, NAMES, index, block=64), expected)
    (said,) = asked.said
    assert "not even blocks of 32^3 voxels fit" in said and "1 volumes were computed there before" in said
    assert (asked.sampling.on_gpu, asked.sampling.on_cpu) == (1, 2)
    assert asked.sampling.reason in said


def test_any_other_fault_leaves_the_volume_to_the_processor(
    monkeypatch: pytest.MonkeyPatch, volume: np.ndarray, reference: VolumeReference, index: np.ndarray,
    expected: np.ndarray,
) -> None:  # fmt: skip
    def fault(_: np.ndarray) -> np.ndarray:
        raise RuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")

    asked = Asked(monkeypatch, spoil=fault)
    assert np.array_equal(asked.sampling(volume, reference, NAMES, index, block=64), expected)
    assert len(asked.said) == 1 and "cudaErrorIllegalAddress" in asked.said[0]


def test_threads_take_turns_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch, volume: np.ndarray, reference: VolumeReference, index: np.ndarray,
    expected: np.ndarray,
) -> None:  # fmt: skip
    asked, inside, most = Asked(monkeypatch), threading.Semaphore(1), []

    def alone(found: np.ndarray) -> np.ndarray:
        most.append(inside.acquire(blocking=False))
        time.sleep(0.02)
        inside.release()
        return found

    asked.cupy.spoil = alone
    with ThreadPoolExecutor(3) as pool:
        found = list(
            pool.map(lambda _: asked.sampling(volume, reference, NAMES, index[:60], block=64), range(3))
        )  # fmt: skip
    assert all(np.array_equal(one, expected[:, :60]) for one in found)
    assert most == [True] * 3


def test_blocks_follow_the_free_memory() -> None:
    shape = (320, 320, 320)
    edges = list(block_edges(shape))
    assert edges[0] == 320 and edges[-1] == SMALLEST and edges == sorted(edges, reverse=True)
    needed = [needed_bytes(shape, edge) for edge in edges]
    assert needed == sorted(needed, reverse=True)
    assert needed[0] < SHARE * (15 << 30)  # a whole volume fits a T4
    assert needed[-1] < SHARE * (1 << 30)
    assert next(block_edges((300, 320, 331))) ** 3 >= 300 * 320 * 331


def test_a_block_takes_no_more_memory_than_is_reckoned(
    monkeypatch: pytest.MonkeyPatch, reference: VolumeReference
) -> None:
    """Arrays of the stand-in are counted as NumPy's are, and are as large as CuPy's."""
    install(monkeypatch, FakeCupy())
    volume = np.random.default_rng(0).integers(1, 255, (72, 72, 72)).astype(np.uint8)
    gpu, whole = Gpu(0, fused=False), (slice(0, 72), slice(0, 72), slice(0, 72))
    places = np.random.default_rng(0).integers(0, 72, (3, 100_000))
    tracemalloc.start()
    try:
        block = gpu.block(volume, whole, reference, NAMES)
        block.points(*places[:, :1])
        fields = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        kept = tracemalloc.get_traced_memory()[0]
        block.points(*places)
        pointwise = tracemalloc.get_traced_memory()[1] - kept
    finally:
        tracemalloc.stop()
    assert 0.5 * VOXEL_BYTES < fields / volume.size < 0.8 * VOXEL_BYTES
    assert 0.4 * CHUNK_VOXEL_BYTES < pointwise / 100_000 < 0.8 * CHUNK_VOXEL_BYTES


def test_little_free_memory_means_small_blocks_from_the_start(
    monkeypatch: pytest.MonkeyPatch, volume: np.ndarray, reference: VolumeReference, index: np.ndarray,
    expected: np.ndarray,
) -> None:  # fmt: skip
    asked = Asked(monkeypatch, free=int(needed_bytes(volume.shape, 46) / SHARE) + 1)
    assert np.array_equal(asked.sampling(volume, reference, NAMES, index, block=64), expected)
    assert len(asked.cupy.puts) > 1 and asked.sampling.shrunk == 0
