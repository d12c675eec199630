"""The executor without Ray: the same tasks, one after the other, in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from nx46vx.model.blocks import start_request
from nx46vx.model.candidates import Candidate
from nx46vx.model.engine import FitEngine
from nx46vx.model.factory import build_engine
from nx46vx.model.fitplan import open_fit_data
from nx46vx.model.neuron import NeuronSpec
from search.executor import SearchJob
from search.resources import Resources
from search.tally import Tally, engine_fields, kernels
from trainables.task import TaskFactory


class InlineExecutor:
    """Runs trials in the calling thread; the engine still advances all lanes in each pass."""

    def run(self, job: SearchJob) -> None:
        started, tally = time.perf_counter(), Tally()
        data = open_fit_data(job.plan, job.cache, job.sink)
        engine = build_engine(
            job.plan, data, device=_device(job), threads=job.resources.engine_threads, options=job.resources.options
        )
        factory = TaskFactory(job.plan, job.run, job.until, job.fence, job.keeping)
        source = job.source

        def grown(spec: NeuronSpec, candidates: list[Candidate]) -> None:
            engine.add_neuron(spec)
            engine.expect(start_request(candidate, spec, job.until) for candidate in candidates)

        source.on_grown = grown
        try:
            engine.expect(job.expected)
            while job.may_start() and (candidate := source.next()) is not None:
                with factory.open(candidate) as task:
                    while not task.done and not job.should_stop():
                        task.advance(engine)
                        _tell(job, engine)
                        job.on_report(candidate.candidate_id, task.committed)
                    if not task.done:
                        source.give_up(candidate)
                        return
                    tally.add_trial(vars(task.spent))
                    source.finish(candidate, task.record)
                done = len(source.records)
                job.on_progress(done, done + len(source.waiting), 1)
        finally:
            stats = [engine.stats()]
            _tell(job, engine)
            tally.add_engines(stats)
            tally.search_seconds = time.perf_counter() - started
            job.sink.emit("ENGINE_STATS", kernels=kernels(stats), **engine_fields(tally))
            job.tally.add(tally)
            engine.close()

    def connect(self, gpus: Sequence[str] = ()) -> None:
        """There is nothing to connect to."""

    def case_tasks(
        self, resources: Resources, at_once: int, cores_each: int, on_queued: Callable[..., None],
        on_wait: Callable[[], None],
    ) -> None:  # fmt: skip
        """There are no other processes."""

    def close(self) -> None:
        return None


def _tell(job: SearchJob, engine: FitEngine) -> None:
    for event, fields in engine.notes():
        job.sink.emit(event, engine=0, **fields)


def _device(job: SearchJob) -> str:
    """The first GPU that is to be used, as torch counts them in this process; or the CPU."""
    device = job.resources.device
    return f"cuda:{device.gpus[0].index}" if device.gpus else device.name
