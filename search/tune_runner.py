"""The executor on Ray Tune: one trial per candidate, engines as actors, a fresh tuner in each session.

What a session is to do comes from our own plan and store; nothing is read back from Ray's files.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import Any

import ray
from ray import tune
from ray.tune.logger import TBXLoggerCallback
from ray.tune.search import Searcher

from nx46vx.errors import NX46Error, failure_from
from nx46vx.model.blocks import LaneRequest, start_request
from nx46vx.model.candidates import Candidate
from nx46vx.model.fitplan import load_fit_plan
from nx46vx.model.neuron import NeuronSpec
from nx46vx.paths import RunPaths
from search.cluster import ray_session
from search.engine_actor import EngineActor
from search.executor import SearchJob
from search.resources import Resources
from search.source import CandidateSource
from trainables.task import TaskFactory, open_store, read_record
from trainables.tune_adapter import CandidateTrial

#: Times that one trial is started again after a failure that is not its own, such as a killed process.
RETRIES = 3


class _NotSaved:
    """Tune pickles what it is given into its own files; nothing of ours belongs there, nothing is read back."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class SourceSearcher(_NotSaved, Searcher):
    """Hands the source's candidates to Tune, and the results back."""

    def __init__(self, source: CandidateSource, job: SearchJob) -> None:
        super().__init__(metric="objective", mode="min")
        self._source, self._job = source, job
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
        fields = {name: (result or {}).get(f"failure/{name}") for name in ("kind", "what", "where", "found", "fix")}
        if fields["what"] and self.failure is None:
            self.failure = failure_from(fields)
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
        self._source.finish(candidate, read_record(plan, candidate, checkpoint))
        done = len(self._source.records)
        self._job.on_progress(done, done + len(self._source.waiting) + len(self._live), len(self._live))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the state of the search is the plan and the store."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""


class _Stop(_NotSaved, tune.Stopper):
    """Ends all trials at their next result once the job is to stop."""

    def __init__(self, job: SearchJob) -> None:
        self._job = job

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._job.should_stop()


class TuneExecutor:
    """Runs jobs through Ray Tune, in one Ray session for all epochs."""

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._stack = contextlib.ExitStack()
        self._ready = False
        self.results: tune.ResultGrid | None = None

    def run(self, job: SearchJob) -> None:
        started = time.perf_counter()
        if not self._ready:
            self._stack.enter_context(ray_session(self._address, job.resources.device.count))
            self._ready = True
        ray_seconds = time.perf_counter() - started
        engines = _start_engines(job)
        try:
            for attempt in range(RETRIES + 1):
                self.results = _tune(job, engines, attempt)
                if not (self.results.errors and job.source.incomplete) or job.should_stop():
                    break
                if attempt == RETRIES:
                    raise NX46Error(
                        "trials failed again and again", where=RunPaths(job.run).ray,
                        found=str(self.results.errors[0]).strip().splitlines()[-1],
                        fix="see the trials' error files there; the same command continues the run",
                    )  # fmt: skip
                job.sink.emit("TRIALS_RETRIED", attempt=attempt + 1, failed=len(self.results.errors))
                job.source.take_back()
            busy = [ray.get(actor.stats.remote()) for actor in engines.values()]
            job.sink.emit(
                "ENGINE_STATS",
                busy_seconds=sum(one["busy_seconds"] for one in busy),
                lane_iterations=sum(one["lane_iterations"] for one in busy),
                kernels=sorted({f"{one['kernel']}: {one['kernel_reason']}" for one in busy}),
                ray_init_seconds=ray_seconds,
                search_seconds=time.perf_counter() - started,
            )
        finally:
            for actor in engines.values():
                ray.kill(actor)

    def close(self) -> None:
        self._stack.close()


def _start_engines(job: SearchJob) -> dict[str, Any]:
    """One engine per device, by GPU id ("" for the CPU's)."""
    resources = job.resources
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    options["max_concurrency"] = resources.most_in_flight + 8
    if resources.gpus_per_engine:
        options["num_gpus"] = resources.gpus_per_engine
    remote: Any = ray.remote(**options)(EngineActor)
    cache, run, name = str(job.cache), str(job.run), resources.device.name
    actors = [remote.remote(run, cache, name, resources.engine_threads) for _ in range(resources.engines)]
    engines = {gpu: actor for gpu, actor in zip(ray.get([a.gpu.remote() for a in actors]), actors, strict=True)}
    _spread(list(job.expected), engines)
    return engines


def _spread(requests: list[LaneRequest], engines: dict[str, Any]) -> None:
    """Tell each engine which lanes to go ahead with: whole tiles, dealt round."""
    actors = list(engines.values())
    for number, actor in enumerate(actors):
        actor.expect.remote([r for r in requests if r.candidate.meta_neuron % len(actors) == number])


def _tune(job: SearchJob, engines: dict[str, Any], attempt: int) -> tune.ResultGrid:
    source = job.source

    def grown(spec: NeuronSpec, candidates: list[Candidate]) -> None:
        ray.get([actor.add_neuron.remote(spec) for actor in engines.values()])
        _spread([start_request(candidate, spec, job.until) for candidate in candidates], engines)

    source.on_grown = grown
    factory = TaskFactory(job.plan, job.run, job.until, job.fence, job.keeping)
    trainable = tune.with_resources(
        tune.with_parameters(CandidateTrial, factory=factory, engines=engines), _trial_resources(job.resources)
    )
    storage = RunPaths(job.run).ray
    storage.mkdir(parents=True, exist_ok=True)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    searcher = SourceSearcher(source, job)
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
            stop=_Stop(job),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1, checkpoint_at_end=True),
            callbacks=[TBXLoggerCallback()],
            verbose=0,
        ),
    )
    results = tuner.fit()
    if searcher.failure is not None and not job.should_stop():
        raise searcher.failure
    return results


def _trial_name(trial: Any) -> str:
    config = trial.config
    name = Candidate(int(config["meta_neuron"]), float(config["l1"]), float(config["l2"])).candidate_id
    return name if trial.custom_trial_name is None else f"{name}-{trial.trial_id}"


def _trial_resources(resources: Resources) -> dict[str, float]:
    """Bookkeeping for Ray: all trials in flight fit beside each other."""
    import psutil

    share = max((psutil.cpu_count() or 1) / (resources.most_in_flight + 1), 0.01)
    asked: dict[str, float] = {"cpu": min(1.0, int(share * 100) / 100)}
    if resources.gpus_per_trial:
        asked["gpu"] = resources.gpus_per_trial
    return asked
