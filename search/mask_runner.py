"""The mask search on Ray Tune: one trial per rule, with the same bits as in one process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import ray
from ray import tune
from ray.tune.search import Searcher

from nx46vx.errors import NX46Error
from nx46vx.paths import RunPaths
from search.mask_search import MaskJob
from search.mask_study import Draw
from search.tensorboard import TensorBoardFiles
from search.tune_parts import RETRIES, NotSaved, failure_in, named, some_ray_session, tune_storage
from trainables.mask_tune import MaskTrial


class _Batches(NotSaved, Searcher):
    """Hands the study's draws to Tune, and the results back."""

    def __init__(self, job: MaskJob) -> None:
        super().__init__(metric="mask_score", mode="max")
        self._job, self._live = job, dict[str, Draw]()
        self._failed: dict[int, int] = {}
        self.failure: NX46Error | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        source = self._job.source
        if self.failure is not None or self._job.should_stop():
            return Searcher.FINISHED
        draw = source.next()
        if draw is None:
            return Searcher.FINISHED if source.ended else None
        self._live[trial_id] = draw
        return {"number": draw.number, "rule": orjson.dumps(draw.rule).decode()}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        draw = self._live.pop(trial_id, None)
        if draw is None:
            return
        if (failure := failure_in(result)) is not None:
            self.failure = self.failure or failure
        elif error or not result or "result" not in result:
            self._failed[draw.number] = self._failed.get(draw.number, 0) + 1
            if self._failed[draw.number] > RETRIES:
                self.failure = NX46Error(
                    "a trial of the mask search failed again and again", where=RunPaths(self._job.run).ray,
                    found=f"trial {draw.number}", fix="see its error file there; the same command continues the run",
                )  # fmt: skip
            self._job.source.hand_back(draw)
        else:
            self._job.source.finish(draw, orjson.loads(result["result"]))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the state of the search is the journal."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""


class _Stop(NotSaved, tune.Stopper):
    def __init__(self, job: MaskJob) -> None:
        self._job = job

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._job.should_stop()


def search_through_tune(job: MaskJob, address: str | None) -> None:
    """Score trials as Ray Tune trials, in the Ray session there is or in one of their own.

    Raises:
        NX46Error: what a trial raised, or that it failed again and again.
    """
    with some_ray_session(address, []):
        _tune(job)


def _tune(job: MaskJob) -> None:
    storage = tune_storage(job.run)
    searcher = _Batches(job)
    trainable = tune.with_resources(tune.with_parameters(MaskTrial, volumes=job.volumes), _asked(job))
    tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric="mask_score", mode="max", search_alg=searcher, num_samples=-1, max_concurrent_trials=job.at_once,
            reuse_actors=True, trial_dirname_creator=_name, trial_name_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=f"masks-{job.fence:04d}", storage_path=str(storage.absolute()), stop=_Stop(job),
            callbacks=[TensorBoardFiles()], verbose=0,
        ),
    ).fit()  # fmt: skip
    if searcher.failure is not None and not job.should_stop():
        raise searcher.failure


def _asked(job: MaskJob) -> tune.PlacementGroupFactory:
    """A processor of this machine, which has the volumes."""
    bundle = {"CPU": 1.0}
    if len(ray.nodes()) > 1:
        bundle[f"node:{ray.util.get_node_ip_address()}"] = 0.001
    return tune.PlacementGroupFactory([bundle])


@named
def _name(config: Mapping[str, Any]) -> str:
    return f"mask-{int(config['number']):05d}"
