"""What every search on Ray Tune has in common: where its files lie, how trials are named, what Tune is not to keep."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from nx46vx.errors import NX46Error, failure_from
from nx46vx.paths import RunPaths
from search.cluster import ray_session

#: Times that a trial is started again after a failure that is not its own, such as a killed process.
RETRIES = 3


class NotSaved:
    """Tune pickles what it is given into its own files; nothing of ours belongs there, nothing is read back."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


def tune_storage(run: Path) -> Path:
    """The folder for Tune's own files of a run; from here on Tune says errors only."""
    storage = RunPaths(run).ray
    storage.mkdir(parents=True, exist_ok=True)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    return storage


def named(name_of: Callable[[Mapping[str, Any]], str]) -> Callable[[Any], str]:
    """A name for a trial and for its folder, from its configuration; folders of equal ones differ by the trial's id."""

    def name(trial: Any) -> str:
        plain = name_of(trial.config)
        return plain if trial.custom_trial_name is None else f"{plain}-{trial.trial_id}"

    return name


def failure_in(result: Mapping[str, Any] | None) -> NX46Error | None:
    """The failure that a trial reported in its result, which Tune has flattened; None if it reported none."""
    fields = {name: (result or {}).get(f"failure/{name}") for name in ("kind", "what", "where", "found", "fix")}
    return failure_from(fields) if fields["what"] else None


@contextlib.contextmanager
def some_ray_session(address: str | None, gpus: Sequence[str]) -> Iterator[None]:
    """The Ray session there is, or one of its own."""
    if ray.is_initialized():
        yield
    else:
        with ray_session(address, gpus):
            yield
