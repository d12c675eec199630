"""``nx46vx bench grid``: the wall time of the whole search, through Ray, against what one would use instead."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nx46vx.bench.engine import NEURONS
from nx46vx.bench.frame import Figure, Outcome, ratios
from nx46vx.bench.rivals import SERIAL_SAMPLES, GridSearch, plain_seconds, serial_nanoseconds
from nx46vx.bench.stage import Stage, peak_memory
from nx46vx.pipeline.run import make_executor
from nx46vx.settings import ResourceSettings, Settings
from search.resources import plan_resources, usable_cpus

GIB = 1 << 30


@dataclass(frozen=True)
class Sizes:
    """``plain_trials``, ``searched``, ``searched_by_default``: candidates that plain Ray Tune and scikit-learn's search
    (with the passes that they need, with its own settings) really run, scaled to the whole grid. 0: left out."""

    samples: int = 400_000
    validation: int = 50_000
    plain_trials: int = 27
    searched: int = 15
    searched_by_default: int = 4
    neurons: int = NEURONS
    repetitions: int = 3


QUICK = Sizes(plain_trials=4, searched=4, searched_by_default=2, repetitions=1)
#: The earlier runs' own size: 629 training volumes x 40,000 samples.
FULL = Sizes(samples=25_160_000, validation=1_000_000, plain_trials=0, searched=0, searched_by_default=0, repetitions=1)


def measure(sizes: Sizes, folder: Path | None = None) -> Outcome:
    """135 candidates x 120 iterations as Ray Tune trials, then the same by others, on one cache of random samples.

    Tune's overhead is the wall time of the search less Ray's start and the time in which the engine was busy.
    """
    place = Path(tempfile.mkdtemp(prefix="nx46vx-grid-", dir=folder))
    try:
        started = time.perf_counter()
        stage = Stage.make(place, sizes.samples, sizes.validation, sizes.neurons)
        made = time.perf_counter() - started
        searched = sizes.searched or sizes.searched_by_default
        peer = GridSearch(stage, sizes.searched, sizes.searched_by_default) if searched else None
        return Outcome("grid", _figures(stage, sizes, peer), _facts(stage, sizes, made, peer))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _facts(stage: Stage, sizes: Sizes, made: float, peer: GridSearch | None) -> dict[str, object]:
    return {
        "samples": sizes.samples, "lanes": len(stage.plan.candidates), "iterations": stage.plan.max_iter,
        "cases": len(stage.plan.train_keys), "threads": usable_cpus(), "making_the_cache_s": round(made, 1),
        "plain_trials": sizes.plain_trials, "grid_search_candidates": sizes.searched,
        "grid_search_passes": peer.passes if peer is not None else [],
        "grid_search_candidates_by_default": sizes.searched_by_default,
    }  # fmt: skip


def _figures(stage: Stage, sizes: Sizes, peer: GridSearch | None) -> list[Figure]:
    columns: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        columns.setdefault(name, []).append(value)

    cells = len(stage.plan.candidates) * stage.plan.max_iter * sizes.samples
    for _ in range(sizes.repetitions):
        stats = _ours(stage)
        note("wall", stats["search_seconds"])
        note("busy", stats["busy_seconds"])
        note("ray", stats["ray_init_seconds"])
        note("overhead", stats["search_seconds"] - stats["ray_init_seconds"] - stats["busy_seconds"])
        note("memory", stats["peak_bytes"] / GIB)
        note("serial_ns", serial_nanoseconds(stage))
        if sizes.plain_trials:
            note("plain", plain_seconds(stage, sizes.plain_trials))
        if peer is not None and sizes.searched:
            note("searched", peer.seconds())
        if peer is not None and sizes.searched_by_default:
            note("searched_by_default", peer.default_seconds())
    columns["serial"] = [1e-9 * ns * cells for ns in columns["serial_ns"]]
    return [*_own_figures(columns, cells, sizes), *_compared_figures(columns)]


def _own_figures(columns: Mapping[str, list[float]], cells: int, sizes: Sizes) -> list[Figure]:
    """``cells``: samples x lanes x iterations."""
    small = sizes.samples < 1_000_000
    return [
        Figure("search_seconds", "whole search, Ray's start included", tuple(columns["wall"]), "s"),
        Figure("ray_init_seconds", "Ray's start", tuple(columns["ray"]), "s"),
        Figure("engine_busy_seconds", "engine busy", tuple(columns["busy"]), "s", at_most=None if small else 420.0),
        Figure(
            "tune_overhead_seconds", "Tune's overhead", tuple(columns["overhead"]), "s",
            at_most=10.0 if small else None,
        ),
        Figure(
            "tune_overhead_share", "Tune's overhead, share of the search", ratios(columns["overhead"], columns["wall"]),
            at_most=None if small else 0.1,
        ),
        Figure(
            "engine_ns_per_sample_lane_iter", "engine, figures at every tenth iteration included",
            tuple(1e9 * busy / cells for busy in columns["busy"]), "ns",
        ),
        Figure("peak_memory_gib", "most memory, all processes", tuple(columns["memory"]), "GiB", at_most=6.0),
    ]  # fmt: skip


def _compared_figures(columns: Mapping[str, list[float]]) -> list[Figure]:
    figures = [
        Figure(
            "serial_twin_ns_per_sample_iter", f"serial pattern, on {SERIAL_SAMPLES:,} samples at most",
            tuple(columns["serial_ns"]), "ns",
        ),
        Figure("serial_hours", "serial pattern, whole grid", tuple(s / 3600 for s in columns["serial"]), "h"),
        Figure("ratio_vs_serial", "serial pattern, against ours", ratios(columns["serial"], columns["wall"])),
    ]  # fmt: skip
    for name, says in (
        ("plain", "plain Ray Tune, one self-computing process per candidate"),
        ("searched", "GridSearchCV(n_jobs=2), SAGA to our objective + 0.1 %"),
        ("searched_by_default", "GridSearchCV(n_jobs=2), SAGA's default settings"),
    ):
        if name in columns:
            figures.append(Figure(f"{name}_seconds", says, tuple(columns[name]), "s"))
            against = ratios(columns[name], columns["wall"])
            figures.append(Figure(f"ratio_vs_{name}", f"{says}, against ours", against))
    return figures


def _ours(stage: Stage) -> dict[str, float]:
    """One search from the start, in a Ray of its own."""
    for leftover in ("checkpoints", "events", "ray"):
        shutil.rmtree(stage.root / leftover, ignore_errors=True)
    resources = plan_resources(ResourceSettings(device="cpu"))
    executor = make_executor(Settings())
    try:
        with peak_memory() as peak:
            stats = stage.search(executor, resources)
            return {**stats, "peak_bytes": peak()}
    finally:
        executor.close()
