"""The governor and the progress of one session, as its configuration and its past say."""

from __future__ import annotations

import time
from pathlib import Path

from nx46vx.errors import NX46Error
from nx46vx.paths import RunPaths, cache_root
from nx46vx.pipeline.decisions import Decisions
from nx46vx.runtime.atomic import write_json
from nx46vx.runtime.budget import ACCELERATIONS, Governor, Work, require_budget
from nx46vx.runtime.clock import now, session_start
from nx46vx.runtime.costs import CostBook
from nx46vx.runtime.progress import PHASES, Progress, weights_from
from nx46vx.runtime.record import MALFORMED, read_record
from nx46vx.runtime.sink import EventSink
from nx46vx.runtime.stop import StopFlag
from nx46vx.settings import Settings

#: Seconds that segmenting and packaging take at the very least, before anything was measured.
LEAST_PACKAGING = 5.0


def check_budget(settings: Settings, costs: CostBook) -> None:
    """Look before anything is touched.

    Raises:
        UsageError: the budget is too small to package anything.
    """
    packaging = Work(0, settings.mask.calibration_volumes).seconds(costs) or LEAST_PACKAGING
    require_budget(settings.budget.hours * 3600, now() - _started(settings), packaging, costs)


def make_governor(settings: Settings, costs: CostBook, sink: EventSink, stop: StopFlag) -> Governor:
    """The governor of this session."""
    budget, work = settings.budget.hours * 3600, Work(0, settings.mask.calibration_volumes)
    started = _started(settings)
    return Governor(
        budget=budget, started=started, work=work, costs=costs, clock=now, sink=sink, stop=stop,
        accelerations=_accelerations(settings),
    )  # fmt: skip


def _started(settings: Settings) -> float:
    """When the session began, on the clock of ``now``."""
    start = settings.budget.session_start
    if isinstance(start, float | int):
        return now() - (time.time() - start)
    return session_start({} if start == "process" else None)


def _accelerations(settings: Settings) -> list[str]:
    """What there is in this run to accelerate."""
    useful = {
        "more_trials_in_flight": settings.resources.executor == "ray",
        "no_further_growth": settings.growth.enabled,
        "optional_phases_off": settings.student.enabled == "auto" or settings.mask.search.trials > 0,
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
    value, shares = _shown(paths.progress)
    return Progress(weights, floor=value, earlier=shares)


def remember_phases(settings: Settings, seconds: dict[str, float]) -> None:
    """Keep a complete run's seconds per phase, for the weights of later runs."""
    write_json(_phase_file(settings), {phase: max(seconds.get(phase, 0.0), 1e-3) for phase in PHASES})


def _shown(path: Path) -> tuple[float, dict[str, float]]:
    """Value and shares that an earlier session showed last."""
    try:
        shown = read_record(path)
        shares = {phase: min(max(0.0 + shown["shares"][phase], 0.0), 1.0) for phase in PHASES}
        return min(max(0.0 + shown["global_progress_reel"], 0.0), 100.0), shares
    except (OSError, NX46Error, *MALFORMED):
        return 0.0, {}


def _phase_file(settings: Settings) -> Path:
    return cache_root(settings.features.cache_dir) / "phase_seconds.json"


def _past_phases(path: Path) -> dict[str, float] | None:
    try:
        return {phase: 0.0 + seconds for phase, seconds in read_record(path).items()}
    except (OSError, NX46Error, *MALFORMED):
        return None
