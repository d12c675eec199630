"""TensorBoard's files hold what trials reported; writing them needs no torch and never ends a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search.cluster import prepare_environment

prepare_environment(None)


def trial(folder: Path) -> Any:
    folder.mkdir(exist_ok=True)
    return SimpleNamespace(local_path=str(folder), init_local_path=lambda: None, evaluated_params={"l1": 0.01})


class Trial(SimpleNamespace):
    __hash__ = object.__hash__


def made(folder: Path) -> Any:
    return Trial(**vars(trial(folder)))


def read(folder: Path) -> list[Any]:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    (path,) = folder.glob("events.out.tfevents.*")
    raw, events = path.read_bytes(), []
    while raw:
        size = int.from_bytes(raw[:8], "little")
        assert int.from_bytes(raw[8:12], "little") == masked_crc32c(raw[:8])
        body = raw[12 : 12 + size]
        assert int.from_bytes(raw[12 + size : 16 + size], "little") == masked_crc32c(body)
        events.append(Event.FromString(body))
        raw = raw[16 + size :]
    return events


def scalars(event: Any) -> dict[str, float]:
    return {value.tag: value.simple_value for value in event.summary.value}


RESULT = {
    "training_iteration": 3, "objective": -0.5, "iter": 120, "done": True, "spent": {"events": 7}, "config": {"l1": 1},
    "candidate_id": "k000", "nothing": float("nan"), "list": [1, 2],
}  # fmt: skip


def test_every_number_of_a_result_is_there_under_the_name_that_tune_gives_it(tmp_path: Path) -> None:
    from search.tensorboard import TensorBoardFiles

    files, one = TensorBoardFiles(), made(tmp_path / "a")
    files.log_trial_start(one)
    files.log_trial_result(1, one, RESULT)
    files.log_trial_end(one)
    first, result, *parameters = read(tmp_path / "a")
    assert first.file_version == "brain.Event:2"
    assert result.step == 3
    assert scalars(result) == {"ray/tune/objective": -0.5, "ray/tune/iter": 120.0, "ray/tune/spent/events": 7.0}
    assert parameters and "hparams" in parameters[0].summary.value[0].metadata.plugin_data.plugin_name


def test_trials_without_a_result_and_trials_begun_again_do_no_harm(tmp_path: Path) -> None:
    from search.tensorboard import TensorBoardFiles

    files, one, other = TensorBoardFiles(), made(tmp_path / "a"), made(tmp_path / "b")
    files.log_trial_end(one)
    files.log_trial_start(one)
    files.log_trial_end(one)
    assert len(read(tmp_path / "a")) == 1
    files.log_trial_result(1, other, RESULT)
    files.log_trial_end(other)
    assert len(read(tmp_path / "b")) > 2


def test_a_full_disk_costs_the_plots_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from search import tensorboard

    def full(self: Any, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    files, one = tensorboard.TensorBoardFiles(), made(tmp_path / "a")
    files.log_trial_start(one)
    monkeypatch.setattr(tensorboard._File, "write", full)
    files.log_trial_result(1, one, RESULT)
    files.log_trial_result(2, one, RESULT)
    files.log_trial_start(one)
    files.log_trial_end(one)


def test_the_executor_does_not_load_torch() -> None:
    program = (
        "from search.cluster import prepare_environment; prepare_environment(None); import sys; "
        "import search.tune_runner; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_a_trials_process_loads_neither_torch_nor_what_computes_features() -> None:
    program = (
        "from search.cluster import prepare_environment; prepare_environment(None); import sys; "
        "import trainables.tune_adapter; print([m for m in ('torch', 'scipy', 'llvmlite') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
