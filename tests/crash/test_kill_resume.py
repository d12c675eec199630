"""Killed, stopped and interrupted runs go on with the same command and give the bytes of an uninterrupted one."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import psutil
import pytest
from processes import Process, check_whole, commits, still_there, through, whole_config
from tiny import Ended, iterations_done, opened, write_config

Command = Callable[..., Ended]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("executor", "number", "whole_group"),
    [
        *itertools.product(["inline"], [signal.SIGTERM, signal.SIGINT], [False, True]),
        ("ray", signal.SIGTERM, False),
        ("ray", signal.SIGINT, True),
    ],
)
def test_a_signal_ends_with_3_and_leaves_nothing_running(
    room: Path, tiny_data: Path, reference: Path, processes: Callable[..., Process], executor: str, number: int,
    whole_group: bool,
) -> None:  # fmt: skip
    """To the driver alone (kill) or to the group (Ctrl-C in a terminal, a batch system)."""
    config, root = whole_config(room, tiny_data, executor), room / "run"
    process = processes("run", "--config", config, "--out", root, "--json")
    process.wait_for(lambda: commits(root) >= 10)
    family = process.family()
    (os.killpg if whole_group else os.kill)(process.popen.pid, number)
    assert process.ended(60) == 3, process.said
    assert signal.Signals(number).name in process.said and "same command" in process.said
    assert process.popen.stdout is not None and process.popen.stdout.read() == ""
    _, alive = psutil.wait_procs(family[1:], timeout=15)
    assert alive == []
    assert orjson.loads((root / "report.json").read_bytes())["complete"] is False
    finished = through(root)
    assert len(finished) < 135
    before = opened(root)
    last = processes("run", "--config", config, "--out", root, "--set", "resources.executor=inline")
    assert last.ended() == 0, last.said
    check_whole(root, reference)
    assert {name: opened(root)[name] for name in finished} == {name: before[name] for name in finished}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_before_or_after_the_search_ends_with_3_too(
    tmp_path: Path, tiny_data: Path, processes: Callable[..., Process], number: int
) -> None:
    config = write_config(tmp_path / "tiny.yaml", flat={"data.dir": str(tiny_data), "data.preflight_fraction": 1})
    process = processes("run", "--config", config, "--out", tmp_path / "run")
    process.wait_for(lambda: (tmp_path / "run" / "run.lock").exists())
    process.popen.send_signal(number)
    assert process.ended(60) == 3, process.said


def test_a_second_interrupt_ends_at_once_with_130_and_the_run_goes_on_later(
    tmp_path: Path, tiny_data: Path, processes: Callable[..., Process]
) -> None:
    """In the middle of a long pass, where the first one has to wait for the end of its block."""
    flat = {"data.dir": str(tiny_data), "grid.max_iter": 2000, "solver.block_iterations": 1000}
    flat |= {"features.max_samples_per_volume": 40_000, "features.validation_samples_per_volume": 40_000}
    config, root = write_config(tmp_path / "long.yaml", flat=flat), tmp_path / "run"
    process = processes("run", "--config", config, "--out", root)
    process.wait_for(lambda: "search: 0 of" in process.said)
    time.sleep(0.7)  # until the first block is being computed
    process.popen.send_signal(signal.SIGINT)
    time.sleep(0.02)
    process.popen.send_signal(signal.SIGINT)
    assert process.ended(10) == 130, process.said
    assert not (root / "submission.zip").exists()
    again = processes("run", "--config", config, "--out", root)
    assert again.ended() == 0, again.said
    assert iterations_done(root) == {name: list(range(1, 2001)) for name in iterations_done(root)}


@pytest.mark.slow
def test_a_second_interrupt_ends_a_ray_run_and_all_its_processes(
    room: Path, tiny_data: Path, processes: Callable[..., Process]
) -> None:
    config, root = whole_config(room, tiny_data, "ray"), room / "run"
    process = processes("run", "--config", config, "--out", root)
    process.wait_for(lambda: commits(root) >= 4)
    family = process.family()
    process.popen.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.popen.send_signal(signal.SIGINT)
    assert process.ended(10) == 130, process.said
    assert still_there(family[1:]) == []


@pytest.mark.slow
def test_a_killed_run_goes_on_without_rays_files_and_in_another_place(
    room: Path, tiny_data: Path, reference: Path, processes: Callable[..., Process]
) -> None:
    config, root = whole_config(room, tiny_data, "ray"), room / "run"
    process = processes("run", "--config", config, "--out", root)
    process.wait_for(lambda: commits(root) >= 25)
    process.kill_all()
    moved = room / "moved"
    root.rename(moved)
    shutil.rmtree(moved / "ray")
    last = processes("run", "--config", config, "--out", moved)
    assert last.ended() == 0, last.said
    check_whole(moved, reference)
    assert not root.exists(), "the old place was written to"
