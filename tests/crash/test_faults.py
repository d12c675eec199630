"""Faults of the machine around a run: clocks, syncs, limits, a second run, orphans, lost nodes, hostile files."""

from __future__ import annotations

import errno
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from processes import (
    Process,
    check_log,
    check_whole,
    commits,
    session_of,
    whole_config,
)  # fmt: skip
from tiny import (
    WHOLE,
    Ended,
    Interrupted,
    events,
    overlaid,
    results,
    run,
    write_config,
)  # fmt: skip

from nx46vx.errors import StoppedError
from nx46vx.model.fitplan import load_fit_plan
from nx46vx.paths import RunPaths
from nx46vx.runtime.clock import now, session_start
from nx46vx.settings import Settings
from trainables.task import open_store

Command = Callable[..., Ended]
HOUR_NS = 3600 * 10**9


@pytest.mark.slow
def test_a_clock_that_jumps_an_hour_both_ways_changes_nothing(
    room: Path, tiny_data: Path, reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three sessions under it; with the budget they have, an hour more on the budget's clock would end them."""
    flat = {"data.dir": str(tiny_data), "resources.executor": "inline"}
    flat |= {"budget.hours": 1.5, "budget.session_start": "process"}
    settings, root = Settings.model_validate(overlaid(WHOLE, flat)), room / "run"
    real_ns, jump = time.time_ns, random.Random(1)
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + jump.choice((-HOUR_NS, 0, HOUR_NS)))
    monkeypatch.setattr(time, "time", lambda: time.time_ns() / 1e9)
    for looks in (40, 40):
        with pytest.raises(StoppedError, match="SIGTERM"):
            run(settings, root, executor=Interrupted(looks))
    run(settings, root)
    elapsed = events(root, "RUNTIME_BUDGET_FINAL")[-1]["elapsed_s"]
    assert elapsed == pytest.approx(now() - session_start({}), abs=60)
    check_whole(root, reference)
    times = [event["ts_ns"] for event in events(root) if event["writer"] == "driver"]
    assert max(times) - min(times) > 1.9 * HOUR_NS, "the clock did not jump"
    assert newest_win_by_number(root) > 0, "no newest checkpoint is older by the clock than the one before"


def newest_win_by_number(root: Path) -> int:
    """Checks that every owner's newest checkpoint is the one of the highest number; how many say they are older."""
    store, older = open_store(load_fit_plan(root), root, 10**6), 0
    for owner in store.owners():
        folders = sorted((RunPaths(root).checkpoints / owner).glob("ckpt-*"))
        newest = store.latest(owner)
        assert newest is not None and newest.path == folders[-1]
        stamps = [orjson.loads((folder / "ckpt_manifest.json").read_bytes())["ts_ns"] for folder in folders]
        older += stamps[-1] < stamps[0]
    return older


@pytest.mark.parametrize("at", range(0, 70, 8))
def test_a_sync_that_fails_once_is_never_tried_again_on_the_same_file(
    command: Command, room: Path, tiny_data: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Whatever file it is of: log, checkpoint, plan, table, mask. The run says so with 7, and goes on later. Only what
    people watch a run by may fail without ending it."""
    config = write_config(room / "tiny.yaml", flat={"data.dir": str(tiny_data)})
    options = ["run", "--config", config, "--out", room / "run"]
    calls, failed, again = [0], [], []
    real = {name: getattr(os, name) for name in ("fsync", "fdatasync")}

    def syncing(name: str) -> Callable[[int], None]:
        def sync(handle: int) -> None:
            file = os.readlink(f"/proc/self/fd/{handle}")
            again.extend(file for one in failed if one == file)
            calls[0] += 1
            if calls[0] == at + 1:
                failed.append(file)
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real[name](handle)

        return sync

    with monkeypatch.context() as patch:
        for name in real:
            patch.setattr(os, name, syncing(name))
        ended = command(*options)
    assert len(failed) == 1
    assert again == [] or Path(failed[0]).is_dir()
    if Path(failed[0]).name.startswith(".progress.json."):
        assert ended.code == 0 and any("EIO" in event["error"] or "Input/output" in event["error"]
                                       for event in events(room / "run", "MONITOR_FAILED"))  # fmt: skip
    else:
        assert ended.code == 7, f"{failed}: {ended.stderr}"
        assert os.strerror(errno.EIO) in ended.stderr and "Traceback" not in ended.stderr
    assert command(*options).code == 0
    assert results(room / "run") == results(finished)


@pytest.mark.parametrize("most", [600, 4000, 30_000, 100_000])
def test_a_limit_of_the_operating_system_ends_with_7_and_the_run_goes_on_later(
    cli: Command, room: Path, tiny_data: Path, finished: Path, most: int
) -> None:
    """No file may become larger than so many bytes: the kernel itself refuses, in the middle of a write."""
    config = write_config(room / "tiny.yaml", flat={"data.dir": str(tiny_data), "features.cache_dir": str(room / "c")})
    options = ["run", "--config", config, "--out", room / "run"]
    ended = cli(*options, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)))
    assert ended.code == 7, ended.stderr
    assert os.strerror(errno.EFBIG) in ended.stderr or re.search(r"requested and \d+ written", ended.stderr)
    assert "Traceback" not in ended.stderr and ended.stdout == ""
    assert cli(*options).code == 0
    assert results(room / "run") == results(finished)


def seconds_of(*arguments: object) -> tuple[float, Ended]:
    """How long a command takes, from exec to exit, as quickly as it can in three tries on a busy machine."""
    best, ended = float("inf"), Ended(0, "", "")
    for _ in range(3):
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        stdout, stderr = process.communicate(timeout=60)
        best, ended = min(best, time.perf_counter() - started), Ended(process.returncode, stdout, stderr)
    return best, ended


def test_a_second_run_on_a_directory_is_refused_within_a_second_by_pid_and_host(
    room: Path, tiny_data: Path, processes: Callable[..., Process], cli: Command
) -> None:
    flat = {"data.dir": str(tiny_data), "grid.max_iter": 100_000}
    config, root = write_config(room / "long.yaml", flat=flat), room / "run"
    process = processes("run", "--config", config, "--out", root)
    process.wait_for(lambda: "search: 0 of" in process.said)
    before = orjson.loads((root / "run.lock").read_bytes())
    for executor in ("inline", "ray"):
        chosen = f"resources.executor={executor}"
        seconds, ended = seconds_of("-m", "nx46vx", "run", "--config", config, "--out", root, "--set", chosen)
        interpreter, _ = seconds_of("-c", "pass")
        assert ended.code == 6 and ended.stdout == ""
        assert f"pid {process.popen.pid} on host {os.uname().nodename}" in ended.stderr
        assert seconds - interpreter < 1.0 * max(1.0, interpreter / 0.05), "busy machines get more time"
    told = cli("status", root, "--json")
    assert told.code == 0 and told.json["state"] == "unfinished"
    assert orjson.loads((root / "run.lock").read_bytes()) == before
    assert process.running
    process.popen.send_signal(signal.SIGTERM)
    assert process.ended(60) == 3
    assert session_of(root) == 1
    check_log(root)


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def make_hostile(folder: Path, marker: Path) -> int:
    """Pickles, and the pickles inside Ray's JSON, become hostile ones; other files are cut short. How many it were."""
    poison, made = pickle.dumps(Hostile(marker)), 0
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".pkl" or path.name.endswith("searcher.pkl") or ".pkl" in path.name:
            path.write_bytes(poison)
            made += 1
        elif path.suffix == ".json" and path.name.startswith("experiment_state"):
            state = {"_type": "CLOUDPICKLE_FALLBACK", "value": poison.hex()}
            path.write_text(str(orjson.dumps({"trial_data": [[state, state]], "runner_data": state}).decode()))
            made += 1
        elif path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return made


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_hostile_stale_and_truncated_files_of_ray_are_never_read(
    room: Path, tiny_data: Path, reference: Path, processes: Callable[..., Process]
) -> None:
    """Also where they already lie under the names that the next session gives its own."""
    config, root, marker = whole_config(room, tiny_data, "ray"), room / "run", room / "marker"
    process = processes("run", "--config", config, "--out", root)
    process.wait_for(lambda: commits(root) >= 200)
    assert process.kill_all()
    ray_files = RunPaths(root).ray
    (first,) = ray_files.iterdir()
    shutil.copytree(first, ray_files / first.name.replace(f"{session_of(root):04d}", f"{session_of(root) + 1:04d}", 1))
    assert make_hostile(ray_files, marker) >= 4
    with suppress(Exception):
        pickle.loads(next(ray_files.rglob("*.pkl")).read_bytes())  # noqa: S301
    assert marker.is_dir(), "the poison is none"
    marker.rmdir()
    last = processes("run", "--config", config, "--out", root)
    assert last.ended() == 0, last.said
    assert not marker.exists(), "a file of Ray's was unpickled"
    check_whole(root, reference)
