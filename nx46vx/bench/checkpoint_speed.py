"""What one durable checkpoint of a candidate costs, in one root and in two."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from nx46vx.bench.frame import Figure, in_turn, ratios
from nx46vx.bench.log_speed import OWNER, iteration_events
from nx46vx.bench.naive import naive_checkpoint
from nx46vx.events import EventLog
from nx46vx.model.blocks import KPI_EVERY
from nx46vx.model.state import LaneState
from nx46vx.runtime.checkpoint import CheckpointStore
from nx46vx.runtime.digest import digest_json

_METRICS = {"train_loss": 0.41, "fit_objective": 0.43, "optimality_gap": 0.003, "objective": 0.12, "seconds": 1.5}
_CURSOR = {"epoch": 0, "candidate_index": 52, "candidate_total": 135, "iter": 10, "max_iter": 120}


def checkpoint_speed(folder: Path, commits: int, repetitions: int) -> list[Figure]:
    """Milliseconds per commit, the events of its block waiting to be made durable with it; and of the naive pattern,
    which keeps one state, in one place, without a log, and does not sync the folder."""
    rng = np.random.default_rng(0)
    state = LaneState(rng.standard_normal(19), rng.standard_normal(19), 5.5, 10, 1)
    block = list(iteration_events(0, KPI_EVERY))
    place = folder / "commits"

    def ours(mirror: bool) -> Callable[[], float]:
        def side() -> float:
            store = CheckpointStore(
                place / "first", mirror=place / "second" if mirror else None, run_id="bench",
                identity={name: digest_json(name) for name in ("config", "data", "grid", "features")},
            )  # fmt: skip
            store.claim(OWNER)
            seconds = 0.0
            with EventLog(place / "events", OWNER, run_id="bench") as log:
                for _ in range(commits):
                    log.emit_many("PROGRESS_UPDATE", block)
                    started = time.perf_counter()
                    store.commit(
                        OWNER, cursor=_CURSOR, model_state={"iterations": 10}, arrays=state.arrays(),
                        metrics=_METRICS, data_cursor={"files": 10, "offset": 0}, sink=log,
                    )  # fmt: skip
                    seconds += time.perf_counter() - started
            shutil.rmtree(place)
            return 1000 * seconds / commits

        return side

    def naive() -> float:
        place.mkdir()
        started = time.perf_counter()
        for _ in range(commits):
            naive_checkpoint(place, state.arrays(), {**_CURSOR, **_METRICS})
        seconds = time.perf_counter() - started
        shutil.rmtree(place)
        return 1000 * seconds / commits

    found = in_turn({"one": ours(False), "two": ours(True), "naive": naive}, repetitions)
    return [
        Figure("commit_ms", "durable checkpoint, one root", found["one"], "ms"),
        Figure("commit_two_roots_ms", "durable checkpoint, two roots", found["two"], "ms"),
        Figure("commit_naive_ms", "naive checkpoint", found["naive"], "ms"),
        Figure("commit_ratio_vs_naive", "naive against one root", ratios(found["naive"], found["one"])),
    ]
