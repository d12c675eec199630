"""TensorBoard files of the trials: the tags that Tune gives them, without its writer threads, syncs and torch."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import IO, Any

import numpy as np
from ray.tune.logger import LoggerCallback
from ray.tune.utils import flatten_dict

#: What Tune reports of each result and nobody plots.
_LEFT_OUT = frozenset({"config", "pid", "timestamp", "time_total_s", "training_iteration", "done"})


@contextmanager
def _without_torch() -> Iterator[None]:
    """tensorboardX loads torch for nothing if there is one, which takes seconds."""
    loaded = sys.modules.get("torch")
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]
        if loaded is not None:
            sys.modules["torch"] = loaded


with _without_torch():
    from tensorboardX.proto import event_pb2, summary_pb2
    from tensorboardX.record_writer import RecordWriter
    from tensorboardX.summary import hparams


class _File(RecordWriter):
    """One trial's file. What is in it is a convenience, so nothing waits for the disk."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder / f"events.out.tfevents.{time.time_ns() // 10**9}.nx46vx"))
        self.add(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))

    @property
    def handle(self) -> IO[bytes]:
        return self._writer

    def add(self, event: Any) -> None:
        self.write(event.SerializeToString())

    def flush(self) -> None:
        self.handle.flush()


class TensorBoardFiles(LoggerCallback):
    """``events.out.tfevents.*`` in every trial's folder: all numbers of each result, and the hyperparameters."""

    def __init__(self) -> None:
        self._files: dict[Any, _File] = {}
        self._last: dict[Any, dict[str, float]] = {}

    def log_trial_start(self, trial: Any) -> None:
        """A new file: also when a trial is begun again."""
        self._close(trial)
        trial.init_local_path()
        self._last[trial] = {}
        with contextlib.suppress(OSError):
            self._files[trial] = _File(Path(trial.local_path))

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        if trial not in self._last:
            self.log_trial_start(trial)
        flat = flatten_dict({name: item for name, item in result.items() if name not in _LEFT_OUT}, delimiter="/")
        numbers = {f"ray/tune/{name}": float(item) for name, item in flat.items() if _is_number(item)}
        values = [summary_pb2.Summary.Value(tag=tag, simple_value=number) for tag, number in numbers.items()]
        self._add(trial, summary_pb2.Summary(value=values), step=int(result["training_iteration"]))
        self._last[trial] = numbers

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        if self._last.get(trial):
            for summary in hparams(hparam_dict=dict(trial.evaluated_params), metric_dict=self._last[trial]):
                self._add(trial, summary)
        self._close(trial)

    def _add(self, trial: Any, summary: Any, **where: int) -> None:
        """Write a summary; a file that cannot be written is given up: no run ends for want of a plot."""
        if (file := self._files.get(trial)) is None:
            return
        try:
            file.add(event_pb2.Event(wall_time=time.time(), summary=summary, **where))
            file.flush()
        except OSError:
            self._close(trial)
            self._last[trial] = {}

    def _close(self, trial: Any) -> None:
        self._last.pop(trial, None)
        if (file := self._files.pop(trial, None)) is not None:
            with contextlib.suppress(OSError):
                file.close()


def _is_number(value: Any) -> bool:
    return isinstance(value, Real | np.number) and not isinstance(value, bool | np.bool_) and value == value
