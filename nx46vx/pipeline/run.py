"""The whole job in one function: every stage in order, resumable after any of them."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil

from nx46vx import __version__
from nx46vx.errors import NX46Error, StoppedError
from nx46vx.logs import say
from nx46vx.paths import RunPaths
from nx46vx.pipeline.building import workers
from nx46vx.pipeline.choose import choose, write_ensemble
from nx46vx.pipeline.clustering import Machines, check_machines, find_machines
from nx46vx.pipeline.dataset import find_cases
from nx46vx.pipeline.deliver import finish, hand_in, package, report
from nx46vx.pipeline.fit import FitResult, freeze, load_samples, search
from nx46vx.pipeline.fuse import Refinement, fuse_student
from nx46vx.pipeline.governing import check_budget, remember_phases
from nx46vx.pipeline.masking import choose_rule
from nx46vx.pipeline.planfile import write_plan
from nx46vx.pipeline.profiling import Profiler, short
from nx46vx.pipeline.screen import make_screen
from nx46vx.pipeline.segment import segment
from nx46vx.pipeline.session import Session, open_session
from nx46vx.pipeline.standing import check_run, finished_report
from nx46vx.pipeline.student import Trained, train_student
from nx46vx.pipeline.watching import Monitor, TrainWatch
from nx46vx.runtime.budget import State, Work
from nx46vx.runtime.costs import CostBook
from nx46vx.runtime.gpu_phases import GpuLedger, PhaseUse
from nx46vx.runtime.numeric import numeric_environment
from nx46vx.runtime.stop import StopFlag
from nx46vx.settings import Settings, result_keys
from search.executor import Executor
from search.resources import Resources, usable_cpus
from search.student import own_device


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
    check_budget(settings, CostBook(RunPaths(root).costs))
    stop, asked = StopFlag(), settings.resources
    with stop.on_signals(), contextlib.ExitStack() as owned:
        machines, device = Machines(), None
        if executor is None and asked.executor == "ray" and asked.ray_address is not None:
            executor = owned.enter_context(contextlib.closing(make_executor(settings)))
            executor.connect()
            machines = find_machines(asked)
            device = machines.resources(asked).device.label
        session = owned.enter_context(
            open_session(root, settings, stop, fresh=fresh, differing=differing, device=device)
        )  # fmt: skip
        resources, profiler = machines.resources(asked), Profiler(session)
        _boot(session, resources)
        if machines.nodes:
            check_machines(session, machines.nodes)
        ledger = GpuLedger(
            session.log, resources.device, wanted=asked.device != "cpu", share=asked.gpus_per_trial != "auto"
        )
        ledger.announce()
        if executor is None:
            executor = owned.enter_context(contextlib.closing(make_executor(settings)))
        watch = TrainWatch()
        monitor = Monitor(session, watch, make_screen(), memory=profiler.peaks.read)
        try:
            with monitor.running(settings.budget.heartbeat_seconds):
                fit, value = _stages(session, resources, executor, watch, profiler, ledger)
            return finish(session, fit, value)
        finally:
            with contextlib.suppress(NX46Error):  # another error may be on its way, which the log has its part in
                session.governor.finish(complete=False)
            with contextlib.suppress(NX46Error):
                profiler.finish(complete=False)
            session.costs.save()


def make_executor(settings: Settings) -> Executor:
    """The executor that the configuration names."""
    if settings.resources.executor == "inline":
        from search.inline import InlineExecutor

        return InlineExecutor()
    from search.cluster import prepare_environment

    prepare_environment(settings.resources.ray_address)
    from search.tune_runner import TuneExecutor

    return TuneExecutor(settings.resources.ray_address)


def _stages(
    session: Session, resources: Resources, executor: Executor, watch: TrainWatch, profiler: Profiler,
    ledger: GpuLedger,
) -> tuple[FitResult, dict[str, Any]]:  # fmt: skip
    seconds, governor = profiler.phases, session.governor

    @contextmanager
    def stage(name: str) -> Iterator[PhaseUse]:
        started = time.monotonic()
        session.log.emit("STAGE_START", stage=name)
        try:
            with ledger.phase(name) as use:
                yield use
        finally:
            seconds[name] = time.monotonic() - started
        if name.startswith("student"):
            session.progress.left_out += seconds[name]
        session.log.emit("STAGE_END", stage=name, seconds=seconds[name])

    with ThreadPoolExecutor(workers(session.settings)) as mapper:
        with stage("discovery"):
            cases = find_cases(session, mapper)
            governor.work = Work(len(cases.dataset.test), session.settings.mask.calibration_volumes)
            if not session.paths.plan.exists():
                write_plan(session, cases, None)
        governor.check()
        with stage("features") as use:
            data, holdout, keys = load_samples(session, cases, mapper, use, executor=executor, resources=resources)
    governor.check()
    with stage("freeze"):
        plan = freeze(session, cases, data, keys)
    profiler.plan, profiler.samples, profiler.test_cases = plan, data.train_samples, len(cases.dataset.test)
    with stage("train_supervised") as use:
        plan, records, complete = search(session, cases, data, plan, resources, executor, watch, profiler.tally)
        use.on_gpu(profiler.tally.gpu_seconds)
        if not profiler.tally.lane_iterations:
            use.nothing_to_do()
    searched, trained = complete, Trained(complete)
    if complete and session.settings.student.enabled:
        with stage("student") as use:
            use.reason = _student_on_cpu(resources)
            trained = train_student(session, cases, plan, resources, watch)
            use.on_gpu(sum(watch.student_gpu_seconds.values()))
            if not watch.student_steps:
                use.nothing_to_do()
        complete = trained.complete
    fit = FitResult(plan, records, data, holdout, complete)
    if not complete:
        _flush(session, fit)
    with stage("ensemble"):
        choice = choose(session, cases, fit)
    refine = None
    if trained.specs:
        with stage("student_fusion") as use:
            use.reason = _student_on_cpu(resources)
            refine = fuse_student(session, cases, fit, choice, trained, use)
    session.costs.add("ensemble", seconds["ensemble"])
    with stage("mask_rule") as use, _student_counted(use, refine):
        chosen = choose_rule(session, cases, choice, refine, search=complete)
    if chosen.undecided:
        complete = False
        fit = replace(fit, complete=False)
        write_ensemble(session, choice.ensemble, complete=False)
        _flush(session, fit)
    with stage("segment") as use, _student_counted(use, refine):
        if all(session.paths.mask(case.case_id).exists() for case in cases.dataset.test):
            use.nothing_to_do()
        segmented = segment(session, cases, choice.ensemble, chosen, counts=complete, refine=refine)
    with stage("package"):
        started = time.monotonic()
        submission = package(session, cases, segmented["foreground"])
        session.costs.add("package", time.monotonic() - started)
    profiler.plan = plan
    measured = {"gpu": ledger.figures(), "profile": short(profiler.finish(complete=complete))}
    value = report(session, cases, fit, choice, segmented, submission, seconds, measured)
    session.log.emit(
        "GLOBAL_STATS", candidates=len(records), meta_neurons=len(plan.neurons), complete=complete,
        iterations=sum(int(record["iter"]) for record in records.values()), seconds=seconds,
        engine_seconds=sum(float(record["seconds"]) for record in records.values()),
        train_pair_coverage_pct_effective=cases.coverage.pct, coverage_gap_reason=cases.coverage.reason,
        coverage_gap_is_justified=cases.coverage.justified, reduced=session.settings.reduced, **ledger.figures(),
    )  # fmt: skip
    governor.finish(complete=complete)
    if not complete:
        hand_in(session, value)
        raise StoppedError(
            f"stopped by {governor.reason}", where=session.paths.root,
            found=f"{value['candidates_complete']} of {value['candidates_planned']} candidates complete"
            f"{', the student is not' if searched else ''}; "
            f"{session.paths.submission.name} holds the best ensemble so far",
            fix="run the same command again to continue",
        )  # fmt: skip
    session.progress.set("package", 1.0)
    if session.fence == 1:  # a resumed session did only a part of some phases
        remember_phases(session.settings, session.progress.phase_seconds())
    return fit, value


@contextmanager
def _student_counted(use: PhaseUse, refine: Refinement | None) -> Iterator[None]:
    """What a GPU works for the student inside counts as the phase's."""
    worked = refine.gpu_seconds if refine is not None else 0.0
    yield
    use.on_gpu(refine.gpu_seconds - worked if refine is not None else 0.0)


def _student_on_cpu(resources: Resources) -> str:
    """Why no GPU works for the student, if that is so although the search has some."""
    device = own_device(resources)
    return f"the student works on this machine, whose device is the CPU: {device.reason}" if not device.count else ""


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
            "gpus": [asdict(gpu) for gpu in resources.device.gpus],
        },
        resources={
            "engines": resources.engines,
            "engine_threads": resources.engine_threads,
            "trials_in_flight": resources.trials_in_flight,
            "most_in_flight": resources.most_in_flight,
            "gpus_per_trial": resources.gpus_per_trial,
        },
        numeric_environment=numeric_environment(session.device),
    )
    session.log.emit("PHASE_WEIGHT_CALIBRATION", weights=dict(session.progress.weights))
    marked = " REDUCED" if session.settings.reduced else ""
    say(f"nx46vx {__version__}{marked}, session {session.fence} on {session.paths.root}, {resources.device.name}")
