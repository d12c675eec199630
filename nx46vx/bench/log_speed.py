"""How fast the event log is written and verified."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from nx46vx.bench.frame import Figure, in_turn, ratios
from nx46vx.bench.naive import NaiveLog
from nx46vx.errors import IntegrityError
from nx46vx.events import EventLog, verify_log
from nx46vx.model.blocks import KPI_EVERY
from nx46vx.model.solver import ITERATION_FIELDS
from search.resources import usable_cpus

OWNER = "k003-l1_0.001-l2_0.01"


def iteration_events(first: int, count: int) -> Iterator[dict[str, Any]]:
    """Fields of ``fit_prox_iter`` events like those a candidate's task emits."""
    rng = np.random.default_rng(first)
    for number, row in enumerate(rng.random((count, len(ITERATION_FIELDS))).tolist(), first):
        fields = dict(zip(ITERATION_FIELDS, row, strict=True))
        yield {
            "candidate_id": OWNER, "stage": "train_supervised", "substage": "fit_prox_iter", "file": None,
            "epoch": number // 120, "iter": number % 120 + 1, "index": number % 120 + 1, "total": 120,
            **fields, "active_weights": number % 19, "restart": 0,
        }  # fmt: skip


def written_speed(folder: Path, events: int, naive_events: int, repetitions: int) -> list[Figure]:
    """Events per second into one log, block by block as a fit emits them, until all of them are durable; the same until
    every segment is packed and sealed as well, which the log does when the program is less busy; and the naive log."""
    blocks = [list(iteration_events(first, KPI_EVERY)) for first in range(0, 1000, KPI_EVERY)]
    place = folder / "written"
    sealed: list[float] = []

    def ours() -> float:
        started = time.perf_counter()
        with EventLog(place, OWNER, run_id="bench") as log:
            for number in range(events // KPI_EVERY):
                log.emit_many("PROGRESS_UPDATE", blocks[number % len(blocks)])
            log.sync()
            seconds = time.perf_counter() - started
            count = log.count
            log.seal()
        sealed.append(count / (time.perf_counter() - started))
        shutil.rmtree(place)
        return count / seconds

    def naive() -> float:
        place.mkdir()
        log = NaiveLog(place / "log.jsonl")
        started = time.perf_counter()
        for number in range(naive_events // KPI_EVERY):
            for fields in blocks[number % len(blocks)]:
                log.emit("PROGRESS_UPDATE", fields)
        seconds = time.perf_counter() - started
        shutil.rmtree(place)
        return log.count / seconds

    found = in_turn({"ours": ours, "naive": naive}, repetitions)
    return [
        Figure("log_events_per_s", "events written", found["ours"], "1/s", at_least=150_000),
        Figure("log_us_per_event", "one event written", tuple(1e6 / speed for speed in found["ours"]), "us"),
        Figure("log_sealed_events_per_s", "events written, packed and sealed", tuple(sealed[1:]), "1/s"),
        Figure("log_naive_events_per_s", "events written, naive log", found["naive"], "1/s"),
        Figure("log_ratio_vs_naive", "event log against naive log", ratios(found["ours"], found["naive"])),
    ]


def verified_speed(folder: Path, events: int, writers: int, repetitions: int) -> list[Figure]:
    """Events per second that ``verify_log`` checks, over a few sealed writers: in this process, and in as many as there
    are cores (which are running already)."""
    place = folder / "verified"
    for writer in range(writers):
        with EventLog(place, f"w{writer}", run_id="bench") as log:
            log.emit_many("PROGRESS_UPDATE", iteration_events(writer, events // writers))
            log.seal()
    total = events // writers * writers + writers

    def verified(executor: ProcessPoolExecutor | None) -> float:
        started = time.perf_counter()
        problems = verify_log(place, executor=executor)
        if problems:
            raise IntegrityError("the log that was just written does not verify", where=place, found=problems[0])
        return total / (time.perf_counter() - started)

    with ProcessPoolExecutor(usable_cpus(), multiprocessing.get_context("spawn")) as processes:
        sides = {"one": lambda: verified(None), "all": lambda: verified(processes)}
        found = in_turn(sides, repetitions)
    shutil.rmtree(place)
    return [
        Figure("verify_events_per_s", "events verified", found["all"], "1/s", at_least=300_000),
        Figure("verify_one_process_events_per_s", "events verified, one process", found["one"], "1/s"),
    ]
