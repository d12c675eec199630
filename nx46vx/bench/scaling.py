"""``nx46vx bench scaling``: how time grows with samples, lanes and iterations; a pass over samples on disk.

Growth is told as an exponent: the slope of log(time) over log(size), 1 being proportional.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nx46vx.bench.frame import Figure, Outcome, in_turn, ratios
from nx46vx.bench.lanes import NEURONS, iterations_ns, learnable_data, neurons_of, plan_of
from nx46vx.bench.stage import Stage
from nx46vx.features.cache import FeatureCache
from nx46vx.model.candidates import TILE
from nx46vx.model.fitplan import FitPlan
from nx46vx.model.kernel_passes import KernelPasses
from nx46vx.model.neuron import bootstrap
from nx46vx.model.passes import Passes
from nx46vx.model.samples import FitData
from nx46vx.runtime.digest import digest_array
from nx46vx.runtime.sink import NullSink
from search.resources import usable_cpus

#: Cases of every size that is compared, so that bootstraps draw the same ones.
CASES = 25


@dataclass(frozen=True)
class Sizes:
    samples: tuple[int, ...] = (100_000, 1_000_000, 25_000_000)
    neurons: tuple[int, ...] = (1, 3, 9, 20)
    iterations: tuple[int, ...] = (120, 240, 480)
    cold_samples: int = 4_000_000
    repetitions: int = 3


QUICK = Sizes(samples=(100_000, 1_000_000, 5_000_000), neurons=(1, 3, 9, 20), cold_samples=2_000_000)


def measure(sizes: Sizes, folder: Path | None = None) -> Outcome:
    """Seconds of a pass of the whole grid by samples, of a pass by lanes, of a lone tile by iterations; and a pass over
    a cache of which nothing is in memory, against reading its files from the same disk."""
    figures = [
        *_growth("samples", "samples", sizes.samples, sizes.repetitions, _pass_seconds),
        *_growth("lanes", "lanes", sizes.neurons, sizes.repetitions, lambda n: _pass_seconds(400_000, n), per=15),
        *_growth("iterations", "iterations", sizes.iterations, sizes.repetitions, _iterations_seconds),
        *_cold(sizes, folder),
    ]
    told = {"samples": list(sizes.samples), "lanes": [15 * n for n in sizes.neurons], "cases": CASES,
            "iterations": list(sizes.iterations), "cold_samples": sizes.cold_samples}  # fmt: skip
    return Outcome("scaling", figures, told)


def exponent(sizes: tuple[int, ...], seconds: list[float]) -> float:
    """Slope of a straight line through log(seconds) over log(sizes)."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def _growth(
    name: str, says: str, sizes: tuple[int, ...], repetitions: int, seconds: Callable[[int], Callable[[], float]],
    per: int = 1,
) -> list[Figure]:  # fmt: skip
    """One side for each size, in turn; the exponent of each round."""
    found = in_turn({str(size): seconds(size) for size in sizes}, repetitions)
    rounds = [exponent(sizes, list(one)) for one in zip(*found.values(), strict=True)]
    first, last = sizes[0] * per, sizes[-1] * per
    return [
        Figure(f"{name}_exponent", f"growth of time with {says}, {first:,} to {last:,}", tuple(rounds), at_most=1.05),
        Figure(f"{name}_largest_s", f"time at {last:,} {says}", found[str(sizes[-1])], "s"),
    ]


def _pass_seconds(samples: int, neurons: int = NEURONS) -> Callable[[], float]:
    """Seconds of one iteration of all lanes; a case's samples may stand in memory once and be met several times."""
    size = samples // CASES
    one, other = (learnable_data(size, 1024, seed=seed) for seed in (0, 1))
    cases = [(one, other)[number % 2].train[0] for number in range(CASES)]
    data = FitData(one.pool, cases, one.validation)
    passes, plan = _known(data, one, neurons)
    lanes = len(plan.candidates)
    return lambda: 1e-9 * iterations_ns(passes, plan, plan.candidates, 2) * data.train_samples * lanes


def _iterations_seconds(iterations: int) -> Callable[[], float]:
    """Seconds of so many iterations of one meta-neuron's lanes."""
    one = learnable_data(50_000, 1024)
    passes, plan = _known(one, one, 1)
    cells = one.train_samples * len(plan.candidates) * iterations
    return lambda: 1e-9 * iterations_ns(passes, plan, plan.candidates, iterations) * cells


def _known(data: FitData, sample: FitData, neurons: int) -> tuple[Passes, FitPlan]:
    """Passes over ``data`` that know meta-neurons measured on ``sample`` (what they are worth does not matter here)."""
    specs = [
        replace(spec, weights_digest=digest_array(bootstrap(data, 0, spec.meta_neuron)))
        for spec in neurons_of(sample, neurons)
    ]
    passes = Passes(data, seed=0, threads=usable_cpus())
    for spec in specs:
        passes.add(spec)
    return passes, plan_of(data, specs, "bench")


def _cold(sizes: Sizes, folder: Path | None) -> list[Figure]:
    place = Path(tempfile.mkdtemp(prefix="nx46vx-scaling-", dir=folder))
    try:
        stage = Stage.make(place, sizes.cold_samples, 20_000, NEURONS)
        files = [FeatureCache(stage.cache, sink=NullSink()).path(key) / "features.npy" for key in stage.plan.train_keys]
        size = sum(file.stat().st_size for file in files)
        sides = {"disk": lambda: _read_seconds(files), "pass": lambda: _cold_pass_seconds(stage, files)}
        found = in_turn(sides, sizes.repetitions, warm_up=False)
        rates = tuple(1e-6 * size / seconds for seconds in found["disk"])
        shares = ratios(found["pass"], found["disk"])
        return [
            Figure("disk_mb_per_s", "the disk, files read in turn", rates, "MB/s"),
            Figure("cold_pass_s", "a pass over a cache that is on disk only", found["pass"], "s"),
            Figure("cold_pass_over_reading", "that pass against reading", shares, at_most=1.2),
        ]
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _forget(files: list[Path]) -> None:
    """Have the system drop what it keeps of files in memory."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def _read_seconds(files: list[Path]) -> float:
    _forget(files)
    started, buffer = time.perf_counter(), bytearray(8 << 20)
    for file in files:
        with open(file, "rb", buffering=0) as source:
            while source.readinto(buffer):
                pass
    return time.perf_counter() - started


def _cold_pass_seconds(stage: Stage, files: list[Path]) -> float:
    """The second of two passes: before it, everything is let go and forgotten."""
    data = stage.data()
    passes = KernelPasses(data, threads=usable_cpus(), resident_bytes=0)
    for spec in stage.plan.neurons:
        passes.add(spec, bootstrap(data, stage.plan.seed, spec.meta_neuron))
    thetas = {spec.meta_neuron: np.zeros((spec.columns, TILE)) for spec in stage.plan.neurons}
    try:
        passes.gradients(thetas)
        _forget(files)
        started = time.perf_counter()
        passes.gradients(thetas)
        return time.perf_counter() - started
    finally:
        passes.close()
