"""What a run directory says of itself, read without touching it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nx46vx.paths import RunPaths
from nx46vx.pipeline.planshape import fit_of, load_plan
from nx46vx.pipeline.session import settings_of
from nx46vx.pipeline.standing import SHOWN, finished_report
from nx46vx.runtime.sink import NullSink
from nx46vx.settings import Settings
from trainables.task import open_store, state_of


def status(root: Path) -> dict[str, Any]:
    """State (``planned``, ``unfinished``, ``complete``), candidates done, iterations, paths.

    Raises:
        UsageError: it is no run directory.
        IntegrityError: its configuration or plan is damaged.
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
    _progress(value, root, settings)
    report = finished_report(root)
    if report is not None:
        value |= {
            "state": "complete", "submission": str(paths.submission), "report": str(paths.report_md),
            "holdout": {figure: report["holdout"][figure] for figure in SHOWN},
        }  # fmt: skip
    return value


def _progress(value: dict[str, Any], root: Path, settings: Settings) -> None:
    """Fill in how far the fit is, from the plan and the store; an open-ended run has no total."""
    paths = RunPaths(root)
    plan = load_plan(paths.plan)
    open_ended = settings.epochs.supervised_epochs == 0
    if plan:
        value["candidates_total"] = len(plan["candidates"])
        value["iterations_total"] = None if open_ended else len(plan["candidates"]) * settings.iterations
    if (fit := fit_of(plan, paths.plan)) is not None:
        store = open_store(fit, root, 0)
        done = [store.latest(candidate.candidate_id, sink=NullSink()) for candidate in fit.candidates]
        iterations = [state_of(checkpoint).iteration for checkpoint in done if checkpoint is not None]
        value["iterations_done"] = sum(iterations)
        epochs = max(iterations, default=0) // fit.max_iter if open_ended else settings.epochs.supervised_epochs
        value["candidates_done"] = sum(iteration >= max(epochs, 1) * fit.max_iter for iteration in iterations)
        value["state"] = "unfinished"
