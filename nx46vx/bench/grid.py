"""``nx46vx bench grid``: the wall time of the whole search, through Ray, against what one would use instead."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from nx46vx.bench.designs import Design
from nx46vx.bench.engine import NEURONS
from nx46vx.bench.frame import Figure, Outcome
from nx46vx.bench.lanes import spread_out
from nx46vx.bench.solvers import need_peers, search_seconds
from nx46vx.bench.stage import Stage, peak_memory
from nx46vx.pipeline.run import make_executor
from nx46vx.settings import ResourceSettings, Settings
from search.resources import plan_resources

GIB = 1 << 30


@dataclass(frozen=True)
class Sizes:
    """``plain_trials`` and ``searched``: candidates that plain Ray Tune and scikit-learn's search really run; their
    times are scaled to the whole grid. 0: left out."""

    samples: int = 400_000
    validation: int = 50_000
    plain_trials: int = 27
    searched: int = 15
    neurons: int = NEURONS
    repetitions: int = 3


QUICK = Sizes(plain_trials=4, searched=0, repetitions=1)
#: The earlier runs' own size: 629 training volumes x 40,000 samples.
FULL = Sizes(samples=25_160_000, validation=1_000_000, plain_trials=0, searched=0, repetitions=1)


def measure(sizes: Sizes, folder: Path | None = None) -> Outcome:
    """135 candidates x 120 iterations as Ray Tune trials, then the same by others, on one cache of random samples.

    Tune's overhead is the wall time of the search less Ray's start and the time in which the engine was busy.
    """
    place = Path(tempfile.mkdtemp(prefix="nx46vx-grid-", dir=folder))
    try:
        started = time.perf_counter()
        stage = Stage.make(place, sizes.samples, sizes.validation, sizes.neurons)
        made = time.perf_counter() - started
        return Outcome("grid", _figures(stage, sizes), _facts(stage, sizes, made))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _facts(stage: Stage, sizes: Sizes, made: float) -> dict[str, object]:
    return {
        "samples": sizes.samples, "lanes": len(stage.plan.candidates), "iterations": stage.plan.max_iter,
        "cases": len(stage.plan.train_keys), "making_the_cache_s": round(made, 1),
        "plain_trials": sizes.plain_trials, "grid_search_candidates": sizes.searched,
    }  # fmt: skip


def _figures(stage: Stage, sizes: Sizes) -> list[Figure]:
    columns: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        columns.setdefault(name, []).append(value)

    lanes, cells = len(stage.plan.candidates), stage.plan.max_iter * sizes.samples
    for _ in range(sizes.repetitions):
        stats = _ours(stage)
        note("wall", stats["search_seconds"])
        note("busy", stats["busy_seconds"])
        note("ray", stats["ray_init_seconds"])
        note("overhead", stats["search_seconds"] - stats["ray_init_seconds"] - stats["busy_seconds"])
        note("memory", stats["peak_bytes"] / GIB)
        if sizes.plain_trials:
            note("plain", _plain(stage, sizes.plain_trials))
        if sizes.searched:
            note("searched", _searched(stage, sizes.searched))
    small = sizes.samples < 1_000_000
    figures = [
        Figure("search_seconds", "whole search, Ray's start included", tuple(columns["wall"]), "s"),
        Figure("ray_init_seconds", "Ray's start", tuple(columns["ray"]), "s"),
        Figure("engine_busy_seconds", "engine busy", tuple(columns["busy"]), "s", at_most=None if small else 420.0),
        Figure(
            "tune_overhead_seconds", "Tune's overhead", tuple(columns["overhead"]), "s",
            at_most=10.0 if small else None,
        ),
        Figure(
            "tune_overhead_share", "Tune's overhead, share of the search",
            tuple(a / b for a, b in zip(columns["overhead"], columns["wall"], strict=True)),
            at_most=None if small else 0.1,
        ),
        Figure(
            "engine_ns_per_sample_lane_iter", "engine, figures at every tenth iteration included",
            tuple(1e9 * busy / (lanes * cells) for busy in columns["busy"]), "ns",
        ),
        Figure("peak_memory_gib", "most memory, all processes", tuple(columns["memory"]), "GiB", at_most=6.0),
    ]  # fmt: skip
    for name, says in (
        ("plain", "plain Ray Tune, one self-computing process per candidate"),
        ("searched", "GridSearchCV(n_jobs=2) over SAGA"),
    ):
        if name in columns:
            figures.append(Figure(f"{name}_seconds", says, tuple(columns[name]), "s"))
            both = zip(columns[name], columns["wall"], strict=True)
            figures.append(Figure(f"ratio_vs_{name}", f"{says}, against ours", tuple(a / b for a, b in both)))
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


def _plain(stage: Stage, trials: int) -> float:
    """Seconds of plain Ray Tune for the whole grid, from some of its candidates."""
    from search.plain import plain_search_seconds

    chosen = spread_out(stage.plan.candidates, trials)
    seconds = plain_search_seconds(chosen, stage.root, stage.cache, at_once=2)
    return seconds * len(stage.plan.candidates) / len(chosen)


def _searched(stage: Stage, candidates: int) -> float:
    """Seconds of scikit-learn's grid search for the whole grid, from one meta-neuron's candidates."""
    need_peers()
    design = Design.of(stage.plan.spec(0), stage.data(), stage.plan.seed)
    chosen = stage.plan.candidates[:candidates]
    seconds = search_seconds(design, [(one.l1, one.l2) for one in chosen])
    return seconds * len(stage.plan.candidates) / len(chosen)
