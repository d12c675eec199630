"""What a run directory says of itself, read without touching it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from nx46vx.errors import IntegrityError
from nx46vx.model.fitplan import FitPlan
from nx46vx.paths import RunPaths
from nx46vx.pipeline.session import settings_of
from nx46vx.pipeline.standing import finished_report
from nx46vx.runtime.sink import NullSink
from nx46vx.settings import Settings
from trainables.task import open_store, state_of


def status(root: Path) -> dict[str, Any]:
    """State (``planned``, ``unfinished``, ``complete``), candidates done, iterations, paths.

    Raises:
        UsageError: it is no run directory.
        IntegrityError: its plan is damaged.
    """
    settings = settings_of(root)
    paths = RunPaths(root)
    value: dict[str, Any] = {
        "run": str(root),
        "state": "planned",
        "reduced": settings.reduced,
        "candidates_done": 0,
        "candidates_total": None,
        "iterations_done": 0,
        "iterations_total": None,
        "submission": None,
        "report": None,
    }
    try:
        _progress(value, root, settings)
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            "the plan cannot be read", where=paths.plan, found=f"{type(error).__name__}: {error}",
            fix="restore plan.json from a copy",
        ) from error  # fmt: skip
    report = finished_report(root)
    if report is not None:
        value |= {
            "state": "complete", "submission": str(paths.submission), "report": str(paths.report_md),
            "holdout": {k: report["holdout"][k] for k in (
                "ensemble_f_half", "intensity_f_half", "ensemble_average_precision", "best_member_average_precision",
            )},
        }  # fmt: skip
    return value


def _progress(value: dict[str, Any], root: Path, settings: Settings) -> None:
    """Fill in how far the fit is, from the plan and the store; an open-ended run has no total."""
    paths = RunPaths(root)
    plan = orjson.loads(paths.plan.read_bytes()) if paths.plan.exists() else {}
    open_ended = settings.epochs.supervised_epochs == 0
    if plan:
        value["candidates_total"] = len(plan["candidates"])
        value["iterations_total"] = None if open_ended else len(plan["candidates"]) * settings.iterations
    if plan.get("fit"):
        fit = FitPlan.from_json(plan["fit"])
        store = open_store(fit, root, 0)
        done = [store.latest(candidate.candidate_id, sink=NullSink()) for candidate in fit.candidates]
        iterations = [state_of(checkpoint).iteration for checkpoint in done if checkpoint is not None]
        value["iterations_done"] = sum(iterations)
        epochs = max(iterations, default=0) // fit.max_iter if open_ended else settings.epochs.supervised_epochs
        value["candidates_done"] = sum(iteration >= max(epochs, 1) * fit.max_iter for iteration in iterations)
        value["state"] = "unfinished"
