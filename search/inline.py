"""The executor without Ray: the same tasks, one after the other, in this process."""

from __future__ import annotations

from nx46vx.model.blocks import start_request
from nx46vx.model.candidates import Candidate
from nx46vx.model.factory import build_engine
from nx46vx.model.fitplan import open_fit_data
from nx46vx.model.neuron import NeuronSpec
from search.executor import SearchJob
from trainables.task import TaskFactory


class InlineExecutor:
    """Runs trials in the calling thread; the engine still advances all lanes in each pass."""

    def run(self, job: SearchJob) -> None:
        data = open_fit_data(job.plan, job.cache, job.sink)
        engine = build_engine(job.plan, data, device=job.resources.device.name, threads=job.resources.engine_threads)
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
                        job.on_report(candidate.candidate_id, task.committed)
                    if not task.done:
                        source.give_up(candidate)
                        return
                    source.finish(candidate, task.record)
                done = len(source.records)
                job.on_progress(done, done + len(source.waiting), 1)
        finally:
            job.sink.emit("ENGINE_STATS", **engine.stats())
            engine.close()

    def close(self) -> None:
        return None
