"""What log and checkpoints cost a full-size run on the CPU: as shares of engine and features, and of the engine alone.

Real tasks of some candidates run from start to end against an engine that only plays back blocks it computed before.
What they spend in their log and in their store is timed call by call and scaled to the whole grid.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nx46vx.bench.features import sampled_volume
from nx46vx.bench.frame import Figure, in_turn
from nx46vx.bench.lanes import NEURONS, iterations_ns, learnable_data, neurons_of, plan_of, spread_out
from nx46vx.events import EventLog, seal_run
from nx46vx.model.blocks import BlockResult, LaneRequest
from nx46vx.model.candidates import Candidate
from nx46vx.model.factory import build_engine
from nx46vx.model.fitplan import FitPlan
from nx46vx.model.passes import Passes
from nx46vx.model.samples import FitData
from nx46vx.paths import RunPaths
from nx46vx.runtime.checkpoint import Checkpoint, CheckpointStore
from nx46vx.runtime.digest import canonical_json
from nx46vx.runtime.numeric import numeric_environment
from search.resources import usable_cpus
from trainables.task import CandidateTask

#: Training samples of a full-size run, the cases they come from, and the edge of a case in voxels.
FULL_SAMPLES, FULL_CASES, FULL_EDGE = 25_200_000, 629, 320


@dataclass
class Spent:
    """Seconds in opening, closing and sealing logs; in emitting events; in the store, syncing the log included."""

    opening: float = 0.0
    emitting: float = 0.0
    store: float = 0.0
    events: int = 0


@dataclass
class TimedLog:
    """A log whose events are timed and counted. What makes a block's fields is timed with them."""

    log: EventLog
    spent: Spent

    def emit(self, event: str, /, **fields: Any) -> None:
        started = time.perf_counter()
        self.log.emit(event, **fields)
        self.spent.emitting += time.perf_counter() - started

    def emit_many(self, event: str, rows: Iterable[Mapping[str, Any]]) -> None:
        started = time.perf_counter()
        self.log.emit_many(event, rows)
        self.spent.emitting += time.perf_counter() - started

    def sync(self) -> Mapping[str, Any]:
        return self.log.sync()


class TimedStore(CheckpointStore):
    """A store whose commits are timed, without the events that they emit."""

    spent: Spent

    def commit(self, *arguments: Any, **options: Any) -> Checkpoint:
        started, emitted = time.perf_counter(), self.spent.emitting
        checkpoint = super().commit(*arguments, **options)
        self.spent.store += time.perf_counter() - started - (self.spent.emitting - emitted)
        return checkpoint


@dataclass
class Playback:
    """An engine that has computed everything before."""

    blocks: Mapping[tuple[Candidate, str], BlockResult] = field(default_factory=dict)

    def advance(self, request: LaneRequest) -> list[BlockResult]:
        return [self.blocks[request.candidate, request.state.digest]]


def overheads(folder: Path, candidates: int, repetitions: int, *, calibration: int, edge: int) -> list[Figure]:
    """Costs of the log and of checkpoints in one root and in two. ``candidates`` are run in each repetition; beside
    them the whole grid iterates over ``calibration`` samples, so that a busy spell hits both. A case's features are
    timed at this ``edge`` and scaled by voxels. A run does more than that: it reads, predicts, writes."""
    small, larger = learnable_data(4096, 1024), learnable_data(calibration, 1024)
    plan = plan_of(small, neurons_of(small, NEURONS), "bench")
    chosen = spread_out(plan.candidates, candidates)
    engine = _recorded(plan, small, chosen)
    timed = plan_of(larger, neurons_of(larger, NEURONS), "bench")
    passes = Passes(larger, seed=timed.seed, threads=usable_cpus())
    for spec in timed.neurons:
        passes.add(spec)
    lanes = len(plan.candidates)
    cells = FULL_SAMPLES * lanes * plan.max_iter
    spent: dict[str, list[Spent]] = {"one": [], "two": []}

    def run(name: str, mirror: bool) -> float:
        found = _run(folder / "run", plan, chosen, engine, mirror=mirror)
        spent[name].append(found)
        return found.store

    sides = {
        "engine": lambda: iterations_ns(passes, timed, timed.candidates, 3),
        "one": lambda: run("one", False),
        "two": lambda: run("two", True),
    }
    cell_ns = in_turn(sides, repetitions)["engine"]
    passes.close()
    one, two = spent["one"][1:], spent["two"][1:]
    engine_s = [1e-9 * cells * each for each in cell_ns]
    features_s = FULL_CASES * (FULL_EDGE / edge) ** 3 * sampled_volume(edge)["seconds"] / usable_cpus()
    scale = lanes / len(chosen)
    log_s = [scale * (each.opening + each.emitting) for each in one]
    one_s, two_s = ([scale * each.store for each in all_of] for all_of in (one, two))

    def shares(seconds: list[float], beside: float = features_s) -> tuple[float, ...]:
        return tuple(100 * part / (whole + beside) for part, whole in zip(seconds, engine_s, strict=True))

    return [
        Figure("fit_us_per_event", "event inside a fit, its fields included",
               tuple(1e6 * each.emitting / each.events for each in one), "us", at_most=10.0),
        Figure("engine_ns_per_sample_lane_iter", "engine, short calibration", cell_ns, "ns"),
        Figure("full_run_engine_s", "engine, full-size run", tuple(engine_s), "s"),
        Figure("full_run_log_s", "log, full-size run", tuple(log_s), "s"),
        Figure("full_run_checkpoints_s", "checkpoints, full-size run", tuple(one_s), "s"),
        Figure("full_run_checkpoints_two_roots_s", "checkpoints in two roots, full-size run", tuple(two_s), "s"),
        Figure("full_run_features_s", "features, full-size run", (features_s,), "s"),
        Figure("log_share_pct", "log, share of engine and features", shares(log_s), "%", at_most=1.0),
        Figure("checkpoints_share_pct", "checkpoints, share of engine and features", shares(one_s), "%", at_most=1.0),
        Figure("checkpoints_two_roots_share_pct", "checkpoints in two roots, likewise", shares(two_s), "%"),
        Figure("log_engine_share_pct", "log, share of the engine alone", shares(log_s, 0.0), "%"),
        Figure("checkpoints_engine_share_pct", "checkpoints, share of the engine alone", shares(one_s, 0.0), "%"),
    ]  # fmt: skip


def _recorded(plan: FitPlan, data: FitData, candidates: list[Candidate]) -> Playback:
    """Fit some candidates on few samples and keep every block."""
    engine = build_engine(plan, data)
    blocks: dict[tuple[Candidate, str], BlockResult] = {}
    requests = [plan.start(candidate, plan.max_iter) for candidate in candidates]
    engine.expect(requests)
    for request in requests:
        state = request.state
        while state.iteration < plan.max_iter:
            for block in engine.advance(LaneRequest(request.candidate, state, plan.max_iter)):
                blocks[block.candidate, block.before] = block
                state = block.state
    engine.close()
    return Playback(blocks)


def _run(run: Path, plan: FitPlan, candidates: list[Candidate], engine: Playback, *, mirror: bool) -> Spent:
    """The candidates one after the other, from a new log and store to the sealed log."""
    paths, spent = RunPaths(run), Spent()
    identity = {**plan.identity, "numeric_environment": canonical_json(numeric_environment("cpu")).decode()}
    for candidate in candidates:
        owner = candidate.candidate_id
        store = TimedStore(
            paths.checkpoints, mirror=run / "second" if mirror else None, run_id=plan.run_id, identity=identity, fence=1
        )
        store.spent = spent
        started = time.perf_counter()
        store.claim(owner)
        spent.store += time.perf_counter() - started
        started = time.perf_counter()
        log = EventLog(paths.events, owner, run_id=plan.run_id, fence=1)
        spent.opening += time.perf_counter() - started
        task = CandidateTask(candidate, plan, store, TimedLog(log, spent), plan.max_iter)
        while not task.done:
            task.advance(engine)
        spent.events += log.count
        started = time.perf_counter()
        log.close()
        spent.opening += time.perf_counter() - started
    started = time.perf_counter()
    seal_run(paths.events)
    spent.opening += time.perf_counter() - started
    shutil.rmtree(run)
    return spent
