"""Students on Ray Tune, one trial each, with the same bits as in one process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray import tune

from nx46vx.errors import NX46Error, failure_from
from search.resources import usable_cpus
from search.student import StudentJob, own_device, own_node
from search.tensorboard import TensorBoardFiles
from search.tune_parts import RETRIES, NotSaved, named, some_ray_session, tune_storage
from trainables.student_tune import StudentTrial


class _Ends(NotSaved, tune.Stopper):
    """Ends trials at their next report: all once the job is to stop, one that is to begin an epoch and may not."""

    def __init__(self, job: StudentJob) -> None:
        self._job = job

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return bool(result.get("epoch_begins")) and not self._job.may_start()

    def stop_all(self) -> bool:
        return self._job.should_stop()


class _Told(NotSaved, tune.Callback):
    """Hands on what trials report."""

    def __init__(self, job: StudentJob) -> None:
        self._job = job
        self.failures: list[NX46Error] = []

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        if (failure := result.get("failure")) is not None:
            self.failures.append(failure_from(failure))
        else:
            self._job.on_report(str(trial.config["variant"]), result)


def train_through_tune(job: StudentJob, address: str | None) -> None:
    """Train as Ray Tune trials, in the Ray session there is or in one of their own.

    Raises:
        NX46Error: what a trial raised, or that it failed again and again.
    """
    with some_ray_session(address, [spot.gpu for spot in job.resources.spots if spot.gpu]):
        _tune(job)


def _tune(job: StudentJob) -> None:
    storage = tune_storage(job.run)
    told = _Told(job)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(StudentTrial, factories=dict(job.factories)), _asked(job)),
        param_space={"variant": tune.grid_search(list(job.factories))},
        tune_config=tune.TuneConfig(trial_dirname_creator=_name, trial_name_creator=_name),
        run_config=tune.RunConfig(
            name=f"students-{job.fence:04d}",
            storage_path=str(storage.absolute()),
            stop=_Ends(job),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1, checkpoint_at_end=True),
            callbacks=[TensorBoardFiles(), told],
            verbose=0,
        ),
    )
    results = tuner.fit()
    if job.should_stop():
        return
    if told.failures:
        raise told.failures[0]
    if results.errors:
        raise NX46Error(
            "the student failed again and again", where=storage,
            found=str(results.errors[0]).strip().splitlines()[-1], fix="see the trials' error files there",
        )  # fmt: skip


def _asked(job: StudentJob) -> tune.PlacementGroupFactory:
    """All of this machine's processors, and a GPU if it has one; in a cluster the bundle names this machine."""
    bundle, node = {"CPU": float(usable_cpus())}, own_node(job.resources)
    if own_device(job.resources).count:
        bundle["GPU"] = 1.0
    if job.resources.nodes:
        bundle[f"node:{ray.util.get_node_ip_address()}"] = 0.001
        bundle["CPU"] = float(min(usable_cpus(), node.cpus)) if node is not None else 1.0
    return tune.PlacementGroupFactory([bundle])


@named
def _name(config: Mapping[str, Any]) -> str:
    return f"student-{config['variant']}"
