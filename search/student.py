"""Students through Ray Tune, one trial each, or one after the other in this process; with the same bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nx46vx.errors import NX46Error, failure_from
from nx46vx.paths import RunPaths
from search.resources import Resources, usable_cpus

if TYPE_CHECKING:
    from trainables.student import StudentFactory

#: Times that a trial is started again after a failure that is not its own, such as a killed process.
RETRIES = 3


@dataclass(frozen=True)
class StudentJob:
    """The students of one run, by variant, in one session.

    ``should_stop`` is polled at least about once a second, or at each piece of work if that takes longer;
    ``may_start`` before each epoch. What was done until then is in the store. ``on_report`` is told the variant and
    its record.
    """

    factories: Mapping[str, StudentFactory]
    run: Path
    fence: int
    resources: Resources
    should_stop: Callable[[], bool]
    may_start: Callable[[], bool]
    on_report: Callable[[str, dict[str, Any]], None]


def train_inline(job: StudentJob) -> None:
    """Train in the calling thread."""
    for variant, factory in job.factories.items():
        if job.should_stop():
            return
        with factory.open() as task:
            while not (task.done or job.should_stop() or (task.at_epoch_start and not job.may_start())):
                task.advance()
                job.on_report(variant, task.record)


def train_through_tune(job: StudentJob, address: str | None) -> None:
    """Train as Ray Tune trials, in the Ray session there is or in one of their own.

    Raises:
        NX46Error: what a trial raised, or that it failed again and again.
    """
    from search.cluster import prepare_environment

    prepare_environment(address)
    import ray

    from search.cluster import ray_session

    if ray.is_initialized():
        _tune(job)
    else:
        with ray_session(address, job.resources.device.count):
            _tune(job)


def _tune(job: StudentJob) -> None:
    import logging

    from ray import tune
    from ray.tune.logger import TBXLoggerCallback

    from trainables.student_tune import StudentTrial

    failures: list[NX46Error] = []

    class Ends(tune.Stopper):
        """Ends all trials at their next report once they are to stop."""

        def __getstate__(self) -> dict[str, Any]:
            return {}  # nothing of ours belongs into Tune's own files

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return bool(result.get("epoch_begins")) and not job.may_start()

        def stop_all(self) -> bool:
            return job.should_stop()

    class Told(tune.Callback):
        def __getstate__(self) -> dict[str, Any]:
            return {}

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
            if (failure := result.get("failure")) is not None:
                failures.append(failure_from(failure))
            else:
                job.on_report(str(trial.config["variant"]), result)

    storage = RunPaths(job.run).ray
    storage.mkdir(parents=True, exist_ok=True)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    asked = {"cpu": float(usable_cpus()), **({"gpu": 1.0} if job.resources.device.count else {})}
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(StudentTrial, factories=dict(job.factories)), asked),
        param_space={"variant": tune.grid_search(list(job.factories))},
        tune_config=tune.TuneConfig(trial_dirname_creator=_name, trial_name_creator=_name),
        run_config=tune.RunConfig(
            name=f"students-{job.fence:04d}",
            storage_path=str(storage.absolute()),
            stop=Ends(),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1, checkpoint_at_end=True),
            callbacks=[TBXLoggerCallback(), Told()],
            verbose=0,
        ),
    )
    results = tuner.fit()
    if job.should_stop():
        return
    if failures:
        raise failures[0]
    if results.errors:
        raise NX46Error(
            "the student failed again and again", where=storage,
            found=str(results.errors[0]).strip().splitlines()[-1], fix="see the trials' error files there",
        )  # fmt: skip


def _name(trial: Any) -> str:
    name = f"student-{trial.config['variant']}"
    return name if trial.custom_trial_name is None else f"{name}-{trial.trial_id}"
