"""The feature pool against SciPy filter by filter, side by side; a whole volume; the warm start of the cache."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nx46vx.bench.children import in_child
from nx46vx.bench.scipy_pool import clear_voxels, scipy_pool
from nx46vx.data.cases import Case
from nx46vx.data.synthetic import make_case
from nx46vx.features.blocks import iter_blocks, sample_features
from nx46vx.features.cache import FeatureCache
from nx46vx.features.entry import write_entry
from nx46vx.features.extractors import standardise
from nx46vx.features.pool import feature_names
from nx46vx.features.reference import measure_reference
from nx46vx.features.request import SampleRequest
from nx46vx.features.sampling import case_seed, sample_balanced
from nx46vx.features.spread import usable_cpus
from nx46vx.runtime.sink import NullSink

#: Edge of the blocks, and samples of a case, as the shipped configurations have them.
BLOCK, SAMPLES = 160, 40_000
GIB = 1 << 30


@dataclass(frozen=True)
class Sizes:
    """``compared`` and ``volume``: edges of the volumes computed both ways, and by this program alone."""

    compared: int = 96
    volume: int = 320
    repetitions: int = 3
    cases: int = 786


QUICK = Sizes(compared=48, volume=128, repetitions=2, cases=200)


#: What is promised on two cores.
BOUNDS = {
    "ratio_all_cores": ("at_least", 5.0),
    "deviation": ("at_most", 1e-5),
    "case_peak_gib": ("at_most", 2.5),
    "warm_start_s": ("at_most", 1.0),
}


def measure(quick: bool) -> dict[str, Any]:
    """Seconds, ratios (SciPy's time over ours, round by round), largest deviation over spread, memory, warm start.

    Numbers that were measured several times are lists. The deviation is from SciPy in float64; SciPy is timed in
    float32, which is its faster way, on one thread as it always is.
    """
    sizes = QUICK if quick else Sizes()
    return {**_compared(sizes), **_volume(sizes), **_warm_start(sizes)}


def _compared(sizes: Sizes) -> dict[str, Any]:
    """All features at all voxels of a volume, theirs and ours in turn."""
    edge = sizes.compared
    volume, _ = make_case((edge, edge, edge), scroll=1, seed=1)
    reference = measure_reference(volume)
    v = standardise(volume, reference)
    ours, shared, theirs = [], [], []
    for _ in range(sizes.repetitions):
        seconds, found = _timed(lambda: _pool(volume, 1))
        ours.append(seconds)
        shared.append(_timed(lambda: _pool(volume, usable_cpus()))[0])
        theirs.append(_timed(lambda: scipy_pool(v, reference))[0])
    exact, clear = scipy_pool(v.astype(np.float64), reference), clear_voxels(v, reference)
    deviations = {
        name: float(np.abs(one - other)[clear].max() / other.std())
        for name, one, other in zip(feature_names(), found, exact, strict=True)
    }
    return {
        "compared_edge": edge,
        "compared_s": ours,
        "compared_all_cores_s": shared,
        "scipy_s": theirs,
        "ratio": [b / a for a, b in zip(ours, theirs, strict=True)],
        "ratio_all_cores": [b / a for a, b in zip(shared, theirs, strict=True)],
        "deviation": max(deviations.values()),
        "deviation_of": max(deviations, key=lambda name: deviations[name]),
        "clear_share": float(clear.mean()),
    }


def _pool(volume: np.ndarray, threads: int) -> np.ndarray:
    """All features of a volume that is one block, the reference measured first."""
    reference = measure_reference(volume, threads=threads)
    (found,) = iter_blocks(
        volume, reference, feature_names(), block=max(volume.shape), gradients=False, threads=threads
    )  # fmt: skip
    return found[1]


def _volume(sizes: Sizes) -> dict[str, Any]:
    """One whole volume in a process of its own: every voxel, and the samples of a training case."""
    dense = in_child(__name__, "dense_volume", edge=sizes.volume)
    sampled = in_child(__name__, "sampled_volume", edge=sizes.volume)
    return {
        "volume_edge": sizes.volume,
        "volume_s": dense["seconds"],
        "volume_processor_s": dense["processor_s"],
        "volume_voxels_per_s": sizes.volume**3 / dense["seconds"],
        "volume_peak_gib": dense["peak_bytes"] / GIB,
        "case_s": sampled["seconds"],
        "case_processor_s": sampled["processor_s"],
        "case_peak_gib": sampled["peak_bytes"] / GIB,
    }


def dense_volume(edge: int) -> dict[str, Any]:
    """Seconds for all features and gradients of every voxel of a volume, block by block, on all processors."""
    volume, _ = make_case((edge, edge, edge), scroll=1, seed=1)
    _warm_up()

    def work() -> None:
        reference = measure_reference(volume, threads=usable_cpus())
        for found in iter_blocks(volume, reference, feature_names(), block=BLOCK, threads=usable_cpus()):
            del found  # a consumer has one block in memory, not two

    return _both_clocks(work)


def sampled_volume(edge: int) -> dict[str, Any]:
    """Seconds for the features and gradients of a training case's samples, on one processor."""
    volume, label = make_case((edge, edge, edge), scroll=1, seed=1)
    index = sample_balanced(label, SAMPLES, case_seed(0, "bench", "balanced"))
    _warm_up()
    return _both_clocks(
        lambda: sample_features(volume, measure_reference(volume), feature_names(), index, block=BLOCK)
    )  # fmt: skip


def _both_clocks(work: Callable[[], Any]) -> dict[str, Any]:
    """Seconds, and seconds of all processors together, which say more on a busy machine."""
    started = time.process_time()
    seconds, _ = _timed(work)
    return {"seconds": seconds, "processor_s": time.process_time() - started}


def _warm_up() -> None:
    """Compile what there is to compile, which happens once in a process."""
    small = np.random.default_rng(0).integers(1, 255, (20, 24, 40)).astype(np.uint8)
    reference = measure_reference(small)
    for _ in iter_blocks(small, reference, feature_names(), block=64):
        pass
    sample_features(small, reference, feature_names(), np.arange(40), block=64)


def _warm_start(sizes: Sizes) -> dict[str, Any]:
    """A cache with all its entries: seconds until everything is mapped; an entry's size must not matter."""
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(Path(folder), sink=NullSink())
        requests = [_request(number) for number in range(sizes.cases)]
        for number, request in enumerate(requests):
            _write(cache, request, SAMPLES if number == 0 else 16)
        with ThreadPoolExecutor(1) as executor:
            seconds = [_timed(lambda: cache.build(requests, executor=executor))[0] for _ in range(sizes.repetitions)]
        large, small = (min(_timed(partial(cache.open, one.key))[0] for _ in range(50)) for one in requests[:2])
    return {
        "warm_start_cases": sizes.cases,
        "warm_start_s": seconds,
        "open_large_over_small": large / small,
    }


def _request(number: int) -> SampleRequest:
    case = Case(f"case{number}", Path("image"), Path("label"), (320, 320, 320), f"i{number}", f"l{number}", None)
    return SampleRequest(case, role="train", seed=0, limit=SAMPLES, block=BLOCK)


def _write(cache: FeatureCache, request: SampleRequest, samples: int) -> None:
    arrays: dict[str, np.ndarray] = {
        "features": np.zeros((2 * len(feature_names()), samples), np.float32),
        "y": np.zeros(samples, np.uint8),
        "index": np.arange(samples),
        "group": np.zeros(samples, np.int32),
    }
    write_entry(
        cache.path(request.key), arrays, case_id=request.case.case_id, counts=(1, 1), facts=request.facts
    )  # fmt: skip


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found
