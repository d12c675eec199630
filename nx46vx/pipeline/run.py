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
from nx46vx.errors import StoppedError
from nx46vx.logs import Screen, say
from nx46vx.pipeline.choose import choose
from nx46vx.pipeline.dataset import find_cases
from nx46vx.pipeline.deliver import finish, hand_in, package, report
from nx46vx.pipeline.fit import FitResult, freeze, load_samples, search
from nx46vx.pipeline.fuse import fuse_student
from nx46vx.pipeline.governing import remember_phases
from nx46vx.pipeline.planfile import write_plan
from nx46vx.pipeline.segment import segment
from nx46vx.pipeline.session import Session, open_session
from nx46vx.pipeline.standing import check_run, finished_report
from nx46vx.pipeline.student import Trained, train_student
from nx46vx.pipeline.watching import Monitor, TrainWatch
from nx46vx.runtime.budget import State, Work
from nx46vx.runtime.numeric import numeric_environment
from nx46vx.runtime.stop import StopFlag
from nx46vx.settings import Settings, result_keys
from search.executor import Executor
from search.resources import Resources, plan_resources, usable_cpus


def run(
    settings: Settings, root: Path, *, fresh: bool = False, retrain: bool = False, executor: Executor | None = None
) -> dict[str, Any]:
    """Start, continue or recall a run; returns its report.

    ``retrain``: where the run was made otherwise, retrain what does not fit and keep the rest, instead of refusing.
    ``executor`` overrides the configured one. Raises ``NX46Error`` and its kinds; whatever was committed stays.
    """
    differing = check_run(root, settings, fresh=fresh, retrain=retrain)
    finished = finished_report(root)
    if finished is not None and not differing:
        return finished
    stop = StopFlag()
    with stop.on_signals(), open_session(root, settings, stop, fresh=fresh, differing=differing) as session:
        resources = plan_resources(settings.resources)
        _boot(session, resources)
        owned = executor is None
        executor = executor or make_executor(settings)
        watch = TrainWatch()
        monitor = Monitor(session, watch, Screen())
        try:
            with monitor.running(settings.budget.heartbeat_seconds):
                fit, value = _stages(session, resources, executor, watch)
            return finish(session, fit, value)
        finally:
            session.costs.save()
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


def _stages(
    session: Session, resources: Resources, executor: Executor, watch: TrainWatch
) -> tuple[FitResult, dict[str, Any]]:
    seconds: dict[str, float] = {}
    governor = session.governor

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        started = time.monotonic()
        session.log.emit("STAGE_START", stage=name)
        yield
        seconds[name] = time.monotonic() - started
        session.log.emit("STAGE_END", stage=name, seconds=seconds[name])

    with ThreadPoolExecutor(workers(session.settings)) as mapper:
        with stage("discovery"):
            cases = find_cases(session, mapper)
            governor.work = Work(len(cases.dataset.test), session.settings.mask.calibration_volumes)
            if not session.paths.plan.exists():
                write_plan(session, cases, None)
        governor.check()
        with stage("features"):
            data, holdout, keys = load_samples(session, cases, mapper)
    governor.check()
    with stage("freeze"):
        plan = freeze(session, cases, data, keys)
    with stage("train_supervised"):
        plan, records, complete = search(session, cases, data, plan, resources, executor, watch)
    trained = Trained(complete)
    if complete and session.settings.student.enabled:
        with stage("student"):
            trained = train_student(session, cases, plan, resources, watch)
        complete = trained.complete
    fit = FitResult(plan, records, data, holdout, complete)
    if not complete:
        _flush(session, fit)
    with stage("ensemble"):
        choice = choose(session, cases, fit)
    refine = None
    if trained.specs:
        with stage("student_fusion"):
            refine = fuse_student(session, cases, fit, choice, trained)
    session.costs.add("ensemble", seconds["ensemble"])
    with stage("segment"):
        segmented = segment(session, cases, choice.ensemble, counts=complete, refine=refine)
    with stage("package"):
        started = time.monotonic()
        submission = package(session, cases, segmented["foreground"])
        session.costs.add("package", time.monotonic() - started)
        if complete:
            session.progress.set("package", 1.0)
    value = report(session, cases, fit, choice, segmented, submission, seconds)
    session.log.emit(
        "GLOBAL_STATS", candidates=len(records), meta_neurons=len(plan.neurons), complete=complete,
        iterations=sum(int(record["iter"]) for record in records.values()), seconds=seconds,
        engine_seconds=sum(float(record["seconds"]) for record in records.values()),
        train_pair_coverage_pct_effective=cases.coverage.pct, coverage_gap_reason=cases.coverage.reason,
        coverage_gap_is_justified=cases.coverage.justified, reduced=session.settings.reduced,
    )  # fmt: skip
    governor.report("RUNTIME_BUDGET_FINAL", complete=complete)
    if not complete:
        hand_in(session, value)
        raise StoppedError(
            f"stopped by {governor.reason}", where=session.paths.root,
            found=f"{value['candidates_complete']} of {value['candidates_planned']} candidates complete; "
            f"{session.paths.submission.name} holds the best ensemble so far",
            fix="run the same command again to continue",
        )  # fmt: skip
    remember_phases(
        session.settings,
        {
            "discovery": seconds["discovery"], "load": seconds["freeze"], "train_data": seconds["features"],
            "train_fit": seconds["train_supervised"], "segment": seconds["ensemble"] + seconds["segment"],
            "package": seconds["package"],
        },
    )  # fmt: skip
    return fit, value


def _flush(session: Session, fit: FitResult) -> None:
    """The search was stopped: everything is in the store already; say so, and go on to a partial submission.

    Raises:
        StoppedError: there is nothing to hand in yet, or no time for it.
    """
    governor, started = session.governor, time.monotonic()
    governor.enter(State.FLUSH)
    session.log.emit("PRETIMEOUT_FLUSH", candidates_with_figures=len(fit.records), reason=governor.reason)
    session.log.sync()
    session.costs.add("flush", time.monotonic() - started)
    if not fit.records or not governor.may_package():
        governor.report("RUNTIME_BUDGET_FINAL", complete=False)
        raise StoppedError(
            f"stopped by {governor.reason}", where=session.paths.root,
            found="no candidate has figures yet" if not fit.records else "no time to package",
            fix="run the same command again to continue",
        )  # fmt: skip
    governor.enter(State.PACKAGE)


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
            "most_in_flight": resources.most_in_flight,
            "gpus_per_trial": resources.gpus_per_trial,
        },
        numeric_environment=numeric_environment(resources.device.name),
    )
    session.log.emit("PHASE_WEIGHT_CALIBRATION", weights=dict(session.progress.weights))
    marked = " REDUCED" if session.settings.reduced else ""
    say(f"nx46vx {__version__}{marked}, session {session.fence} on {session.paths.root}, {resources.device.name}")
