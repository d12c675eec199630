"""Stages two and three: the features are cached, the fit is frozen, the whole grid is searched, epoch by epoch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Executor as Mapper
from dataclasses import dataclass

from nx46vx.features.cache import FeatureCache
from nx46vx.features.pool import feature_names
from nx46vx.logs import say
from nx46vx.model.blocks import LaneRequest
from nx46vx.model.candidates import Grid
from nx46vx.model.fitplan import FitPlan
from nx46vx.model.neuron import prepare_neuron
from nx46vx.model.samples import FitData, Samples
from nx46vx.model.views import draw_views, relevance_gram
from nx46vx.pipeline.building import builders
from nx46vx.pipeline.dataset import Cases
from nx46vx.pipeline.decisions import Decisions
from nx46vx.pipeline.growing import Grower
from nx46vx.pipeline.latest import announce_resume, note_latest
from nx46vx.pipeline.planfile import frozen_fit, identity_of, keep_feature_digests, write_plan
from nx46vx.pipeline.retraining import keep_what_fits
from nx46vx.pipeline.session import Session
from nx46vx.pipeline.watching import TrainWatch
from nx46vx.runtime.checkpoint import Checkpoint
from nx46vx.runtime.gpu_phases import PhaseUse
from nx46vx.runtime.heartbeat import heartbeat
from nx46vx.runtime.progress import open_ended_targets
from nx46vx.runtime.sink import trace_array
from search.executor import Executor, SearchJob
from search.resources import Resources
from search.source import CandidateSource, Records
from search.tally import Tally
from trainables.task import read_record, state_of


@dataclass(frozen=True)
class FitResult:
    """The merged table of all candidates, and what the next stages read; not ``complete`` when time ran out."""

    plan: FitPlan
    records: Records
    data: FitData
    holdout: list[Samples]
    complete: bool


def load_samples(
    session: Session, cases: Cases, mapper: Mapper, use: PhaseUse | None = None, *, executor: Executor | None = None,
    resources: Resources | None = None,
) -> tuple[FitData, list[Samples], tuple[str, ...]]:  # fmt: skip
    """Build or map the samples of every pair; training and validation data, hold-out samples, and their keys.

    ``mapper`` maps over threads; where much is missing, ``executor`` is asked for processes. ``resources`` name the
    device that computes what is to be built, where it can. ``use`` is told what it did, or that there was nothing to
    build. Between two cases the time governor may end it.

    Raises (besides ``FeatureCache.build``'s):
        EnvironmentFault: ``features.device`` is ``cuda`` and no GPU can.
        IncompatibleError: ``strict_numeric`` is set, and these are not the samples that the fit was frozen on.
    """
    requests = cases.requests(session)
    covered: list[str] = []
    store = session.settings.features.store
    cache = FeatureCache(session.cache_dir, sink=session.log, store=store, io=session.io)
    missing = [request for request in requests if not cache.has(request.key)]
    built = {request.case.case_id for request in missing}

    def done(samples: Samples) -> None:
        if samples.case_id in built:
            trace_array(session.log, "features", samples.features, case_id=samples.case_id)
        trace_array(session.log, "labels", samples.y, case_id=samples.case_id)
        covered.append(samples.case_id)
        session.progress.set("train_data", len(covered) / len(requests))
        session.log.emit(
            "TRAIN_COVERAGE_PROGRESS", case_id=samples.case_id, pairs_done=len(covered), pairs_total=len(requests),
            train_pair_coverage_pct_effective=100.0 * len(covered) / cases.coverage.discovered,
        )  # fmt: skip
        if missing:
            session.governor.check()

    with heartbeat(session.log, "features"), builders(session, missing, mapper, executor, resources, use) as by:
        samples = cache.build(
            requests, executor=by.mapper, threads=by.threads, on_done=done, sampling=by.sampling
        )  # fmt: skip
    keep_feature_digests(session, cases, {one.key: own.digest for one, own in zip(requests, samples, strict=True)})
    session.log.emit(
        "TRAIN_COVERAGE_FINAL", pairs=len(covered),
        train_pair_coverage_pct_effective=100.0 * len(covered) / cases.coverage.discovered,
        coverage_gap_reason=cases.coverage.reason, coverage_gap_is_justified=cases.coverage.justified,
    )  # fmt: skip
    by_role: dict[str, list[Samples]] = {"train": [], "validation": [], "holdout": []}
    for request, sample in zip(requests, samples, strict=True):
        by_role[request.role].append(sample)
    data = FitData(feature_names(), by_role["train"], by_role["validation"])
    say(f"features: {data.train_samples} training and {data.validation_samples} validation samples")
    return data, by_role["holdout"], tuple(request.key for request in requests)


def freeze(session: Session, cases: Cases, data: FitData, keys: tuple[str, ...]) -> FitPlan:
    """The fit of this run: read from the plan, or drawn, measured and written there before the first iteration."""
    existing = frozen_fit(session, cases)
    if existing is not None:
        return existing
    settings = session.settings
    neurons = range(settings.grid.meta_neurons)
    grid = Grid.from_settings(settings.grid)
    with heartbeat(session.log, "freeze"):
        views = draw_views(
            relevance_gram(data), data.pool, seed=settings.seed, width=settings.grid.features_per_neuron,
            meta_neurons=neurons,
        )  # fmt: skip
        trained, validated = len(data.train), len(data.train) + len(data.validation)
        plan = FitPlan(
            run_id=session.run_id,
            seed=settings.seed,
            pool=data.pool,
            train_keys=keys[:trained],
            validation_keys=keys[trained:validated],
            l1=grid.l1,
            l2=grid.l2,
            max_iter=settings.grid.max_iter,
            method=settings.solver.method,
            block=settings.solver.block_iterations,
            identity=identity_of(session, cases),
            neurons=tuple(prepare_neuron(data, settings.seed, k, views[k]) for k in neurons),
        )
    keep_what_fits(session, plan)
    write_plan(session, cases, plan)
    for spec in plan.neurons:
        session.log.emit("META_NEURON", meta_neuron=spec.meta_neuron, view=list(spec.view), digest=spec.digest)
    return plan


def search(
    session: Session, cases: Cases, data: FitData, plan: FitPlan, resources: Resources, executor: Executor,
    watch: TrainWatch, tally: Tally,
) -> tuple[FitPlan, Records, bool]:  # fmt: skip
    """Run every candidate through all epochs; ``tally`` is added to.

    Returns the plan (with grown neurons), the merged table, and whether it is complete; when time ran out, the table
    holds every candidate that has figures.
    """
    decisions = Decisions(session.paths.decisions)
    grower = Grower(session, cases, data, plan, decisions)
    settings, epoch = session.settings.epochs, 0
    while True:
        until = (epoch + 1) * plan.max_iter
        records = _epoch(session, grower, until, resources, executor, watch, tally, growing=epoch == 0)
        if records is None:
            return grower.plan, _partial(session, grower.plan), False
        best = decisions.get("epoch_best", epoch)
        if best is None:  # else an earlier session was here, and the records have gone further since
            best = min(float(record["objective"]) for record in records.values())
            decisions.put("epoch_best", epoch, best)
        session.log.emit(
            "PROGRESS_UPDATE", stage="train_supervised", substage="epoch_done", file=None, index=epoch + 1,
            total=settings.supervised_epochs or None, candidates=len(records), best_objective=best,
        )  # fmt: skip
        epoch += 1
        target = settings.supervised_epochs
        if target and epoch >= target:
            break
        if not target and open_ended_targets(
            [float(decisions.get("epoch_best", e)) for e in range(epoch)],
            settings.convergence_min_delta, settings.convergence_patience,
        )[1]:  # fmt: skip
            break
    session.progress.set("train_fit", 1.0)
    return grower.plan, records, True


def _epoch(
    session: Session, grower: Grower, until: int, resources: Resources, executor: Executor, watch: TrainWatch,
    tally: Tally, *, growing: bool,
) -> Records | None:  # fmt: skip
    """Bring every candidate to ``until``; the merged table, or None when the governor stopped it."""
    found = _valid_checkpoints(session, grower.plan)
    if until == grower.plan.max_iter:
        announce_resume(session, grower.plan, found)
    finished, pending = _sorted_out(grower.plan, found, until)
    watch.begin(lambda: grower.plan, finished, pending, until)
    source = CandidateSource(
        (request.candidate for request in pending), finished, grower if growing else lambda records: None
    )
    if not pending and source.next_round():
        _, pending = _sorted_out(grower.plan, _valid_checkpoints(session, grower.plan), until)
    started, total = time.monotonic(), len(finished) + len(pending)
    say(f"search: {len(finished)} of {total} candidates are done up to iteration {until}")

    def on_progress(done: int, total: int, in_flight: int) -> None:
        session.costs.add("candidate", source.last_seconds)
        watch.told_in_flight = in_flight
        session.log.emit(
            "PROGRESS_UPDATE", stage="train_supervised", substage="hyperparam_search", file=None, index=done,
            total=total, in_flight=in_flight, until=until,
        )  # fmt: skip
        if done % 15 == 0 or done == total:
            say(f"search: {done} of {total} candidates done, {time.monotonic() - started:.1f} s")

    job = SearchJob(
        plan=grower.plan, run=session.paths.root, cache=session.cache_dir, source=source, expected=tuple(pending),
        until=until, fence=session.fence, resources=resources, sink=session.log,
        should_stop=lambda: session.governor.stopping, may_start=lambda: session.governor.allows("candidate"),
        on_progress=on_progress, on_report=watch.report, keeping=session.keeping,
        accelerated=lambda: "more_trials_in_flight" in session.governor.actions,
        node_cache=session.settings.resources.node_cache_dir, tally=tally,
    )  # fmt: skip
    with heartbeat(session.log, "train_supervised"):
        if pending and not session.governor.stopping:
            executor.run(job)
    session.costs.save()
    found = _valid_checkpoints(session, grower.plan)
    note_latest(session, found)
    finished, pending = _sorted_out(grower.plan, found, until)
    if not pending and source.next_round():  # the round ended while nothing more was begun: growth is still asked for
        finished, pending = _sorted_out(grower.plan, _valid_checkpoints(session, grower.plan), until)
    watch.begin(lambda: grower.plan, finished, pending, until)
    if pending and not session.governor.draining:
        raise RuntimeError(f"{len(pending)} candidates did not finish")
    return None if pending or grower.undecided else finished


def _partial(session: Session, plan: FitPlan) -> Records:
    """Whatever candidates have figures, finished or not."""
    found = _valid_checkpoints(session, plan)
    return {
        candidate.candidate_id: read_record(plan, candidate, found[candidate.candidate_id])
        for candidate in plan.candidates
        if candidate.candidate_id in found and "objective" in found[candidate.candidate_id].manifest["best_metrics"]
    }


def _valid_checkpoints(session: Session, plan: FitPlan) -> dict[str, Checkpoint]:
    """The newest valid checkpoint of each candidate that has one: from the store alone."""
    store = session.store(plan)
    found = {one.candidate_id: store.latest(one.candidate_id, sink=session.log) for one in plan.candidates}
    return {name: checkpoint for name, checkpoint in found.items() if checkpoint is not None}


def _sorted_out(plan: FitPlan, found: Mapping[str, Checkpoint], until: int) -> tuple[Records, list[LaneRequest]]:
    """The records of candidates that reached ``until``, and where the others go on."""
    finished: Records = {}
    pending = []
    for candidate in plan.candidates:
        checkpoint = found.get(candidate.candidate_id)
        if checkpoint is None:
            pending.append(plan.start(candidate, until))
            continue
        record = read_record(plan, candidate, checkpoint)
        if record["iter"] >= until:
            finished[candidate.candidate_id] = record
        else:
            pending.append(LaneRequest(candidate, state_of(checkpoint), until))
    return finished, pending
