"""The whole job in one function: every stage in order, resumable after any of them."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from nx46vx import __version__
from nx46vx.logs import say
from nx46vx.pipeline.choose import choose
from nx46vx.pipeline.dataset import find_cases
from nx46vx.pipeline.deliver import finish, package, report
from nx46vx.pipeline.fit import FitResult, freeze, load_samples, search
from nx46vx.pipeline.planfile import write_plan
from nx46vx.pipeline.segment import segment
from nx46vx.pipeline.session import Session, check_directory, finished_report, open_session
from nx46vx.runtime.numeric import numeric_environment
from nx46vx.runtime.stop import StopFlag
from nx46vx.settings import Settings, result_keys
from search.executor import Executor
from search.resources import Resources, plan_resources, usable_cpus


def run(settings: Settings, root: Path, *, fresh: bool = False, executor: Executor | None = None) -> dict[str, Any]:
    """Start, continue or recall a run; returns its report.

    ``executor`` overrides the configured one. Raises ``NX46Error`` and its kinds; whatever was committed stays.
    """
    check_directory(root, settings, fresh=fresh)
    finished = finished_report(root)
    if finished is not None:
        return finished
    stop = StopFlag()
    with stop.on_signals(), open_session(root, settings, stop, fresh=fresh) as session:
        resources = plan_resources(settings.resources)
        _boot(session, resources)
        owned = executor is None
        executor = executor or make_executor(settings)
        try:
            return _stages(session, resources, executor)
        finally:
            if owned:
                executor.close()


def make_executor(settings: Settings) -> Executor:
    """The executor that the configuration names."""
    if settings.resources.executor == "inline":
        from search.inline import InlineExecutor

        return InlineExecutor()
    from search.cluster import prepare_environment

    prepare_environment(settings.resources.ray_address)
    from search.tune_runner import TuneExecutor

    return TuneExecutor(settings.resources.ray_address)


def workers(settings: Settings) -> int:
    """How many cases are computed at once."""
    return usable_cpus() if settings.features.workers == "auto" else settings.features.workers


def _stages(session: Session, resources: Resources, executor: Executor) -> dict[str, Any]:
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        session.stop.check()
        started = time.monotonic()
        session.log.emit("STAGE_START", stage=name)
        yield
        seconds[name] = time.monotonic() - started
        session.log.emit("STAGE_END", stage=name, seconds=seconds[name])

    with ThreadPoolExecutor(workers(session.settings)) as mapper:
        with stage("discovery"):
            cases = find_cases(session, mapper)
            if not session.paths.plan.exists():
                write_plan(session, cases, None)
        with stage("features"):
            data, holdout, keys = load_samples(session, cases, mapper)
    with stage("freeze"):
        plan = freeze(session, cases, data, keys)
    with stage("train_supervised"):
        plan, records = search(session, cases, data, plan, resources, executor)
        fit = FitResult(plan, records, data, holdout)
    with stage("ensemble"):
        choice = choose(session, cases, fit)
    with stage("segment"):
        segmented = segment(session, cases, choice.ensemble)
    with stage("package"):
        submission = package(session, cases, segmented["foreground"])
    value = report(session, cases, fit, choice, segmented, submission, seconds)
    session.log.emit(
        "GLOBAL_STATS", candidates=len(records), meta_neurons=len(plan.neurons),
        iterations=sum(int(record["iter"]) for record in records.values()), seconds=seconds,
        engine_seconds=sum(float(record["seconds"]) for record in records.values()),
        train_pair_coverage_pct_effective=cases.coverage.pct, coverage_gap_reason=cases.coverage.reason,
        coverage_gap_is_justified=cases.coverage.justified, reduced=session.settings.reduced,
    )  # fmt: skip
    return finish(session, fit, value)


def _boot(session: Session, resources: Resources) -> None:
    memory = psutil.virtual_memory()
    session.log.emit(
        "BOOT",
        version=__version__,
        pid=os.getpid(),
        session=session.fence,
        reduced=session.settings.reduced,
        config=result_keys(session.settings),
        hardware={
            "host": platform.node(),
            "cpus": usable_cpus(),
            "memory_bytes": memory.total,
            "memory_available_bytes": memory.available,
            "device": resources.device.name,
            "device_reason": resources.device.reason,
        },
        resources={
            "engines": resources.engines,
            "engine_threads": resources.engine_threads,
            "trials_in_flight": resources.trials_in_flight,
            "gpus_per_trial": resources.gpus_per_trial,
        },
        numeric_environment=numeric_environment(resources.device.name),
    )
    marked = " REDUCED" if session.settings.reduced else ""
    say(f"nx46vx {__version__}{marked}, session {session.fence} on {session.paths.root}, {resources.device.name}")
