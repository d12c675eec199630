"""Which checkpoint is the newest valid one of a run, and where a session goes on from it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from nx46vx.model.fitplan import FitPlan
from nx46vx.pipeline.counts import first_unfinished
from nx46vx.pipeline.session import Session
from nx46vx.runtime.atomic import write_json
from nx46vx.runtime.checkpoint import Checkpoint


def note_latest(session: Session, checkpoints: Mapping[str, Checkpoint]) -> dict[str, Any] | None:
    """Write ``LATEST_VALID_CKPT``, file and event, from checkpoints that were validated; None if there is none.

    The file is for people: a session always looks for itself.
    """
    if not checkpoints:
        return None
    newest = max(checkpoints.values(), key=lambda one: (one.manifest["fence"], one.manifest["ts_ns"], one.path))
    value = {
        name: newest.manifest[name]
        for name in ("run_id", "owner", "number", "kind", "ts_ns", "epoch", "candidate_index", "candidate_total",
                     "iter", "max_iter", "sha512_payload")
    } | {"path": f"{newest.path.parent.name}/{newest.path.name}", "valid_candidates": len(checkpoints)}  # fmt: skip
    write_json(session.paths.latest_valid, value)
    told = {name: item for name, item in value.items() if name not in ("run_id", "ts_ns")}
    session.log.emit("LATEST_VALID_CKPT", checkpoint_ts_ns=value["ts_ns"], **told)
    return value


def announce_resume(session: Session, plan: FitPlan, checkpoints: Mapping[str, Checkpoint]) -> None:
    """Say where this session goes on, if an earlier one left checkpoints: ``RESUME_OK``, and that it is exact."""
    latest = note_latest(session, checkpoints)
    if latest is None:
        return
    done = {name: int(one.manifest["model_state"]["iterations"]) for name, one in checkpoints.items()}
    epoch, index, iteration = first_unfinished(plan, done)
    session.log.emit(
        "RESUME_OK", resume_from_ts_ns=latest["ts_ns"], checkpoint=latest["path"], epoch=epoch, candidate_index=index,
        next_iter=iteration + 1, iterations_committed=sum(done.values()), candidates_begun=len(done),
    )  # fmt: skip
    store = session.store(plan)
    differing = sorted({name for one in checkpoints.values() for name in store.identity_differences(one.manifest)})
    if not differing and not session.differing:
        session.log.emit(
            "RESUME_EXACT_OK", source_ts_ns=latest["ts_ns"], target_ts_ns=time.time_ns(), checkpoint=latest["path"]
        )
