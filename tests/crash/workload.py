"""A small fit over the event log and the store: iterations, events, checkpoints; stopped anywhere, it is continued."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nx46vx.events.reader import iter_events
from nx46vx.events.seal import seal_run
from nx46vx.events.verify import Problem, verify_checkpoints_sealed, verify_log
from nx46vx.events.writer import EventLog
from nx46vx.runtime.checkpoint import CheckpointStore
from nx46vx.runtime.files import Files

EVENTS, CHECKPOINTS, MIRROR = Path("/run/events"), Path("/run/checkpoints"), Path("/second")
OWNER = "k0_a"
LAST, EVERY = 12, 2  # six checkpoints: the fourth is the first to be written over a retired one
SEGMENT_BYTES = 2200


@dataclass
class Acknowledged:
    """What the workload was told is safe; outlives the crash."""

    checkpoint: int = 0
    lines: int = 0
    history: list[tuple[int, int]] = field(default_factory=list)


def store_on(files: Files, fence: int, roots: int = 2) -> CheckpointStore:
    mirror = MIRROR if roots == 2 else None
    return CheckpointStore(CHECKPOINTS, mirror=mirror, run_id="r", identity={"grid": "g"}, fence=fence, files=files)


def work(files: Files, fence: int, told: Acknowledged, roots: int = 2) -> tuple[bytes, list[float]]:
    """Run to the end from wherever the disk says we are; returns the final state's bytes and the losses logged."""
    store = store_on(files, fence, roots)
    store.claim(OWNER)
    found = store.latest(OWNER)
    log = EventLog(
        EVENTS, OWNER, run_id="r", fence=fence, files=files, segment_bytes=SEGMENT_BYTES, background_sync_s=None
    )
    start, state = 0, np.linspace(0.1, 0.9, 8)
    if found is not None:
        log.supersede(found.anchor["count"], "resumed from its checkpoint")
        start, state = found.manifest["iter"], found.arrays()["state"]
        assert found.manifest["model_state"]["iter"] == start
    for iteration in range(start + 1, LAST + 1):
        state = 3.7 * state * (1.0 - state)
        log.emit("fit_prox_iter", candidate_id=OWNER, iter=iteration, loss=float(state.sum()))
        if iteration % EVERY == 0:
            cursor = {"epoch": 0, "candidate_index": 0, "candidate_total": 1, "iter": iteration, "max_iter": LAST}
            done = store.commit(
                OWNER, cursor=cursor, model_state={"iter": iteration}, arrays={"state": state}, metrics={},
                data_cursor={}, sink=log, kind="full" if iteration == LAST else "light",
            )  # fmt: skip
            told.checkpoint, told.lines = done.number, done.anchor["count"]
            told.history.append((done.number, done.anchor["count"]))
    log.seal()
    store.tidy()
    seal_run(EVENTS, store.manifest_digests(), files=files)
    losses = {
        event["iter"]: event["loss"]
        for event in iter_events(EVENTS, event="fit_prox_iter", superseded=False, files=files)
    }
    return state.tobytes(), [losses[iteration] for iteration in range(1, LAST + 1)]


def problems_of(files: Files, fence: int, roots: int = 2) -> list[Problem]:
    """What verification says of the run as it lies there."""
    store = store_on(files, fence, roots)
    problems = verify_log(EVENTS, store.anchors(), files=files)
    return problems + verify_checkpoints_sealed(EVENTS, store.manifest_digests(), files=files)
