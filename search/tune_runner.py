"""The executor on Ray Tune: one trial per candidate, engines as actors, a fresh tuner in each session.

What a session is to do comes from our own plan and store; nothing is read back from Ray's files.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from nx46vx.errors import NX46Error
from nx46vx.model.blocks import start_request
from nx46vx.model.candidates import Candidate
from nx46vx.model.fitplan import load_fit_plan
from nx46vx.model.neuron import NeuronSpec
from nx46vx.paths import RunPaths
from search.case_tasks import CaseTasks, room_here
from search.cluster import ray_session
from search.engines import Engines
from search.executor import SearchJob
from search.resources import Resources
from search.source import CandidateSource
from search.tally import Tally, engine_fields, kernels
from search.tensorboard import TensorBoardFiles
from search.tune_parts import RETRIES, NotSaved, failure_in, named, tune_storage
from trainables.task import Spent, TaskFactory, open_store, read_record
from trainables.tune_adapter import CandidateTrial


class SourceSearcher(NotSaved, Searcher):
    """Hands the source's candidates to Tune, and the results back."""

    def __init__(self, source: CandidateSource, job: SearchJob, tally: Tally) -> None:
        super().__init__(metric="objective", mode="min")
        self._source, self._job, self._tally = source, job, tally
        self._live: dict[str, Candidate] = {}
        self._handed_back: set[Candidate] = set()
        self.failure: NX46Error | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        over = self._job.should_stop() or not self._job.may_start()
        if not over and len(self._live) >= self._job.in_flight():
            return None  # later
        candidate = None if over else self._source.next()
        if candidate is None:
            return Searcher.FINISHED if self._source.ended or over else None
        self._live[trial_id] = candidate
        return {"meta_neuron": candidate.meta_neuron, "l1": candidate.l1, "l2": candidate.l2}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id in self._live:
            self._job.on_report(self._live[trial_id].candidate_id, int(result.get("committed", 0)))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        candidate = self._live.pop(trial_id, None)
        if candidate is None:
            return
        self.failure = self.failure or failure_in(result)
        if error and candidate not in self._handed_back and not self._job.should_stop():
            self._handed_back.add(candidate)  # Tune retries a trial itself unless its process died between two of them
            self._job.sink.emit("TRIALS_RETRIED", attempt=0, failed=1)
            self._source.hand_back(candidate)
            return
        if error or not result or int(result.get("iter", 0)) < self._job.until:
            self._source.give_up(candidate)
            return
        plan = load_fit_plan(self._job.run)
        store = open_store(plan, self._job.run, self._job.fence, self._job.keeping)
        checkpoint = store.latest(candidate.candidate_id, sink=self._job.sink)
        if checkpoint is None:
            self._source.give_up(candidate)
            return
        self._job.on_report(candidate.candidate_id, self._job.until)
        self._tally.add_trial({name: result.get(f"spent/{name}", 0) for name in Spent.__dataclass_fields__})
        self._source.finish(candidate, read_record(plan, candidate, checkpoint))
        done = len(self._source.records)
        self._job.on_progress(done, done + len(self._source.waiting) + len(self._live), len(self._live))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the state of the search is the plan and the store."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""


class _Stop(NotSaved, tune.Stopper):
    """Ends all trials at their next result once the job is to stop, or an engine cannot be had."""

    def __init__(self, job: SearchJob, engines: Engines) -> None:
        self._job, self._engines = job, engines

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._engines.failure is not None or self._job.should_stop()


class TuneExecutor:
    """Runs jobs through Ray Tune, in one Ray session for all epochs."""

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._stack = contextlib.ExitStack()
        self._ready = False
        self._connect_seconds = 0.0  # that no tally has yet
        self.results: tune.ResultGrid | None = None

    def connect(self, gpus: Sequence[str] = ()) -> None:
        """Join the cluster, or start a Ray that knows these GPUs; harmless twice.

        Raises:
            EnvironmentFault: there is no cluster at the address.
        """
        if not self._ready:
            started = time.perf_counter()
            self._stack.enter_context(ray_session(self._address, gpus))
            self._ready = True
            self._connect_seconds = time.perf_counter() - started

    def case_tasks(
        self, resources: Resources, at_once: int, cores_each: int, on_queued: Callable[..., None],
        on_wait: Callable[[], None],
    ) -> CaseTasks | None:  # fmt: skip
        """Ray tasks on this machine, in the session that the search will use; None where Ray has no core of it."""
        self._connect_for(resources)
        room = room_here(at_once, cores_each)
        return None if room is None else CaseTasks(room, on_queued=on_queued, on_wait=on_wait)

    def _connect_for(self, resources: Resources) -> None:
        self.connect([spot.gpu for spot in resources.spots if spot.gpu])

    def run(self, job: SearchJob) -> None:
        started, tally = time.perf_counter() - self._connect_seconds, Tally()
        self._connect_for(job.resources)
        tally.ray_init_seconds, self._connect_seconds = self._connect_seconds, 0.0
        engines = Engines(job)
        try:
            self._search(job, engines, tally)
            stats = engines.stats()
            tally.add_engines(stats)
            tally.search_seconds = time.perf_counter() - started
            job.sink.emit("ENGINE_STATS", kernels=kernels(stats), **engine_fields(tally))
            job.tally.add(tally)
        finally:
            engines.end()

    def _search(self, job: SearchJob, engines: Engines, tally: Tally) -> None:
        for attempt in range(RETRIES + 1):
            self.results = _tune(job, engines, attempt, tally)
            if not (self.results.errors and job.source.incomplete) or job.should_stop():
                return
            if attempt == RETRIES:
                raise NX46Error(
                    "trials failed again and again", where=RunPaths(job.run).ray,
                    found=str(self.results.errors[0]).strip().splitlines()[-1],
                    fix="see the trials' error files there; the same command continues the run",
                )  # fmt: skip
            job.sink.emit("TRIALS_RETRIED", attempt=attempt + 1, failed=len(self.results.errors))
            job.source.take_back()

    def close(self) -> None:
        self._stack.close()


def _tune(job: SearchJob, engines: Engines, attempt: int, tally: Tally) -> tune.ResultGrid:
    source = job.source

    def grown(spec: NeuronSpec, candidates: list[Candidate]) -> None:
        engines.add_neuron(spec)
        engines.expect([start_request(candidate, spec, job.until) for candidate in candidates])

    source.on_grown = grown
    factory = TaskFactory(job.plan, job.run, job.until, job.fence, job.keeping)
    together = min(job.in_flight(), len(source.waiting))
    trainable = tune.with_resources(
        tune.with_parameters(CandidateTrial, factory=factory, engines=engines.actors, together=together),
        _trial_resources(job.resources),
    )
    storage = tune_storage(job.run)
    searcher = SourceSearcher(source, job, tally)
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric="objective",
            mode="min",
            search_alg=searcher,
            num_samples=-1,
            max_concurrent_trials=job.resources.most_in_flight,
            reuse_actors=True,
            trial_dirname_creator=_trial_name,
            trial_name_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=f"session-{job.fence:04d}-until-{job.until:06d}-{attempt}",
            storage_path=str(storage.absolute()),
            stop=_Stop(job, engines),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            # no num_to_keep: it would have Tune write the state of all trials at the end of each one
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
            callbacks=[TensorBoardFiles()],
            verbose=0,
        ),
    )
    results = tuner.fit()
    if engines.failure is not None:
        raise engines.failure
    if searcher.failure is not None and not job.should_stop():
        raise searcher.failure
    return results


@named
def _trial_name(config: Mapping[str, Any]) -> str:
    return Candidate(int(config["meta_neuron"]), float(config["l1"]), float(config["l2"])).candidate_id


def _trial_resources(resources: Resources) -> dict[str, float]:
    """Bookkeeping for Ray: so many trials fit beside each other."""
    asked = {"cpu": resources.cpus_per_trial}
    if resources.gpus_per_trial:
        asked["gpu"] = resources.gpus_per_trial
    return asked
