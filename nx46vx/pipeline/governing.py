"""The governor and the progress of one session, as its configuration and its past say."""

from __future__ import annotations

import time
from pathlib import Path

import orjson

from nx46vx.paths import RunPaths, cache_root
from nx46vx.pipeline.decisions import Decisions
from nx46vx.runtime.atomic import write_json
from nx46vx.runtime.budget import ACCELERATIONS, Governor, Work, require_budget
from nx46vx.runtime.clock import now, session_start
from nx46vx.runtime.costs import CostBook
from nx46vx.runtime.progress import PHASES, Progress, weights_from
from nx46vx.runtime.sink import EventSink
from nx46vx.runtime.stop import StopFlag
from nx46vx.settings import Settings

#: Seconds that segmenting and packaging take at the very least, before anything was measured.
LEAST_PACKAGING = 5.0


def make_governor(settings: Settings, costs: CostBook, sink: EventSink, stop: StopFlag) -> Governor:
    """The governor of this session.

    Raises:
        UsageError: the budget is too small to package anything.
    """
    budget = settings.budget.hours * 3600
    start = settings.budget.session_start
    started = now() - (time.time() - start) if isinstance(start, float | int) else session_start(
        {} if start == "process" else None
    )  # fmt: skip
    work = Work(0, settings.mask.calibration_volumes)
    require_budget(budget, now() - started, work.seconds(costs) or LEAST_PACKAGING, costs)
    return Governor(
        budget=budget, started=started, work=work, costs=costs, clock=now, sink=sink, stop=stop,
        accelerations=_accelerations(settings),
    )  # fmt: skip


def _accelerations(settings: Settings) -> list[str]:
    """What there is in this run to accelerate."""
    useful = {
        "more_trials_in_flight": settings.resources.executor == "ray",
        "no_further_growth": settings.growth.enabled,
        "optional_phases_off": settings.student.enabled == "auto",
        "test_time_augmentation_off": settings.student.enabled is not False and settings.student.tta == "auto",
        "prefetch": True,
    }
    return [action for action in ACCELERATIONS if useful.get(action, False)]


def make_progress(settings: Settings, paths: RunPaths) -> Progress:
    """Progress with the run's weights: fixed at its start, from what earlier runs on this machine measured."""
    decisions = Decisions(paths.decisions)
    weights = decisions.get("progress", "weights")
    if weights is None:
        weights = weights_from(_past_phases(_phase_file(settings)))
        decisions.put("progress", "weights", weights)
    return Progress(weights, floor=_shown(paths.progress))


def remember_phases(settings: Settings, seconds: dict[str, float]) -> None:
    """Keep a complete run's seconds per phase, for the weights of later runs."""
    write_json(_phase_file(settings), {phase: max(seconds.get(phase, 0.0), 1e-3) for phase in PHASES})


def _shown(path: Path) -> float:
    try:
        return float(orjson.loads(path.read_bytes())["global_progress_reel"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0.0


def _phase_file(settings: Settings) -> Path:
    return cache_root(settings.features.cache_dir) / "phase_seconds.json"


def _past_phases(path: Path) -> dict[str, float] | None:
    try:
        value = orjson.loads(path.read_bytes())
        return {str(phase): float(seconds) for phase, seconds in value.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None
