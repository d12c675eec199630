"""A pass over a cache of which nothing is in memory: seconds against the disk's own rate, and how much stays in memory.

The cache need not be larger than this machine's memory: its pages are dropped before each measurement, so that every
byte comes from the disk, and what a process keeps is held down by the product's own bound on mapped features, set far
below the cache's size. That the system could have kept all pages changes neither.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nx46vx.bench.children import in_child
from nx46vx.bench.frame import Figure, in_turn, ratios
from nx46vx.bench.lanes import NEURONS
from nx46vx.bench.stage import PER_CASE, Stage
from nx46vx.features.cache import FeatureCache
from nx46vx.model.candidates import TILE
from nx46vx.model.fitplan import load_fit_plan, open_fit_data
from nx46vx.model.kernel_passes import KernelPasses
from nx46vx.model.neuron import bootstrap
from nx46vx.runtime.sink import NullSink
from search.resources import usable_cpus

GIB = 1 << 30
#: What a pass needs beside features: labels, sums of every chunk, each thread's scratch.
WORKING_BYTES = 32 << 20


def cold_figures(samples: int, resident_bytes: int, repetitions: int, folder: Path | None) -> list[Figure]:
    """Write a cache of so many samples below ``folder``; then, in turn, read its files and pass over it.

    ``resident_bytes``: the most mapped features that a process may keep between passes.
    """
    place = Path(tempfile.mkdtemp(prefix="nx46vx-scaling-", dir=folder))
    try:
        stage = Stage.make(place, samples, 20_000, NEURONS)
        files = [FeatureCache(stage.cache, sink=NullSink()).path(key) / "features.npy" for key in stage.plan.train_keys]
        told: list[Mapping[str, Any]] = []

        def cold() -> float:
            told.append(
                in_child(__name__, "cold_pass", root=str(stage.root), cache=str(stage.cache),
                         files=[str(file) for file in files], resident_bytes=resident_bytes)
            )  # fmt: skip
            return float(told[-1]["seconds"])

        found = in_turn({"disk": lambda: _read_seconds(files), "pass": cold}, repetitions, warm_up=False)
        return _figures(sum(file.stat().st_size for file in files), resident_bytes, found, told)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _figures(
    size: int, resident_bytes: int, found: Mapping[str, tuple[float, ...]], told: list[Mapping[str, Any]]
) -> list[Figure]:
    """``size``: bytes of the cache's features."""
    shares = ratios(found["pass"], found["disk"])
    per_case = PER_CASE * size // max(1, told[0]["samples"])
    bound = resident_bytes + told[0]["threads"] * per_case + WORKING_BYTES
    return [
        Figure("disk_mb_per_s", "the disk, files read in turn", tuple(1e-6 * size / s for s in found["disk"]), "MB/s"),
        Figure("cold_pass_s", "a pass over a cache that is on disk only", found["pass"], "s"),
        Figure("cold_pass_over_reading", "that pass against reading", shares, at_most=1.2),
        Figure("cold_cache_gib", "features in that cache", (size / GIB,), "GiB"),
        Figure(
            "cold_pass_memory_gib", "most memory of passes over it, beyond what the process had before",
            tuple((one["peak_bytes"] - one["before_bytes"]) / GIB for one in told), "GiB", at_most=bound / GIB,
        ),
        Figure(
            "cold_cache_over_memory", "the cache against that memory",
            tuple(size / (one["peak_bytes"] - one["before_bytes"]) for one in told),
        ),
        Figure("cold_process_gib", "most memory of the process", tuple(one["peak_bytes"] / GIB for one in told), "GiB"),
    ]  # fmt: skip


def cold_pass(root: str, cache: str, files: list[str], resident_bytes: int) -> dict[str, Any]:
    """For a process of its own: seconds of a pass of the whole grid's lanes over features that were forgotten before;
    another pass follows, so that what the first one kept counts too. With it, what the process held before both."""
    plan = load_fit_plan(Path(root))
    data = open_fit_data(plan, Path(cache), NullSink())
    threads = usable_cpus()
    passes = KernelPasses(data, threads=threads, resident_bytes=resident_bytes)
    try:
        for spec in plan.neurons:
            passes.add(spec, bootstrap(data, plan.seed, spec.meta_neuron))
        thetas = {spec.meta_neuron: np.zeros((spec.columns, TILE)) for spec in plan.neurons}
        _forget([Path(file) for file in files])
        before = _resident_bytes()
        started = time.perf_counter()
        passes.gradients(thetas)
        seconds = time.perf_counter() - started
        passes.gradients(thetas)
    finally:
        passes.close()
    return {"seconds": seconds, "before_bytes": before, "threads": threads, "samples": data.train_samples}


def _resident_bytes() -> int:
    """This process's memory by the measure of ``in_child``'s ``peak_bytes``."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))


def _forget(files: list[Path]) -> None:
    """Have the system drop what it keeps of files in memory; what a process has mapped stays."""
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
