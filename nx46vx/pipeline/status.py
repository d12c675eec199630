"""What a run directory says of itself, read without touching it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from nx46vx.model.fitplan import FitPlan
from nx46vx.paths import RunPaths
from nx46vx.pipeline.session import finished_report, settings_of
from nx46vx.runtime.sink import NullSink
from trainables.task import open_store, state_of


def status(root: Path) -> dict[str, Any]:
    """State (``planned``, ``unfinished``, ``complete``), candidates done, iterations, paths.

    Raises:
        UsageError: it is no run directory.
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
    plan = orjson.loads(paths.plan.read_bytes()) if paths.plan.exists() else {}
    if plan:
        value["candidates_total"] = len(plan["candidates"])
        value["iterations_total"] = len(plan["candidates"]) * settings.iterations
    if plan.get("fit"):
        fit = FitPlan.from_json(plan["fit"])
        store = open_store(fit, root, 0)
        done = [store.latest(candidate.candidate_id, sink=NullSink()) for candidate in fit.candidates]
        iterations = [state_of(checkpoint).iteration for checkpoint in done if checkpoint is not None]
        value["iterations_done"] = sum(iterations)
        value["candidates_done"] = sum(iteration >= settings.iterations for iteration in iterations)
        value["state"] = "unfinished"
    report = finished_report(root)
    if report is not None:
        value |= {
            "state": "complete", "submission": str(paths.submission), "report": str(paths.report_md),
            "holdout": {k: report["holdout"][k] for k in (
                "ensemble_f_half", "intensity_f_half", "ensemble_average_precision", "best_member_average_precision",
            )},
        }  # fmt: skip
    return value
