"""Runs as processes of their own that are killed, and what has to hold of a run directory afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import orjson
import psutil
from tiny import WHOLE, events, iterations_done, results, start, table, write_config

from nx46vx.events import iter_events, verify_log
from nx46vx.model.fitplan import FitPlan, load_fit_plan
from nx46vx.paths import RunPaths
from nx46vx.runtime.sink import NullSink
from trainables.task import open_store

#: Ray's own agents of a killed driver; they touch nothing of a run and end by themselves after a minute or more.
AGENTS = ("DashboardAgent", "RuntimeEnvAgent")

#: A file system in memory; a run on the tiny data needs about 20 MB there.
MEMORY, ENOUGH = Path("/dev/shm"), 1 << 29


@contextlib.contextmanager
def quick_folder(otherwise: Path) -> Iterator[Path]:
    """A folder in memory, or ``otherwise`` where there is no room."""
    if not (os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ENOUGH):
        yield otherwise
        return
    folder = Path(tempfile.mkdtemp(prefix="nx46vx-", dir=MEMORY))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Process:
    """A run in a process group of its own, with what it says and the processes it started."""

    def __init__(self, *arguments: object) -> None:
        self.started = time.monotonic()
        self.popen: subprocess.Popen[str] = start(*arguments)
        self.said = ""
        self.left: list[psutil.Process] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.said += line

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def family(self) -> list[psutil.Process]:
        """The driver first, then Ray's daemons, the engine and the trials; nobody once it has ended: another process
        may have its number by then."""
        if not self.running:
            return []
        try:
            driver = psutil.Process(self.popen.pid)
            return [driver, *driver.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def until(self, happened: Callable[[], bool], seconds: float = 120.0) -> bool:
        """Wait for something; False if the process ended before it happened."""
        end = time.monotonic() + seconds
        while not happened():
            if not self.running:
                return False
            assert time.monotonic() < end, f"that did not happen: {self.said}"
            time.sleep(0.005)
        return True

    def wait_for(self, happened: Callable[[], bool], seconds: float = 120.0) -> None:
        assert self.until(happened, seconds), f"it ended too early, with {self.popen.returncode}: {self.said}"

    def kill_driver(self) -> bool:
        """SIGKILL to the driver alone; the others (``left``) notice by themselves, and go on writing until then.

        Whether it was the kill that ended it.
        """
        self.left = self.family()[1:]
        self.popen.kill()
        return self.popen.wait(10) == -signal.SIGKILL

    def kill_all(self) -> bool:
        """SIGKILL to the driver and everything it started, as when the machine is taken away; likewise."""
        family = self.family()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family[1:], timeout=10)
        return self.popen.wait(10) == -signal.SIGKILL

    def ended(self, seconds: float = 240.0) -> int:
        code = self.popen.wait(seconds)
        self._reader.join(10)
        return code


def still_there(relatives: Sequence[psutil.Process], seconds: float = 30.0) -> list[psutil.Process]:
    """What still runs after some time of the processes that a driver started: daemons, engine, trials."""
    watched = []
    for process in relatives:
        with contextlib.suppress(psutil.NoSuchProcess):
            if not any(agent in process.name() for agent in AGENTS):
                watched.append(process)
    return psutil.wait_procs(watched, timeout=seconds)[1]


def titled(relatives: Sequence[psutil.Process], *words: str) -> list[psutil.Process]:
    """Those whose title holds one of the words: Ray names its workers after what they do."""
    found = []
    for process in relatives:
        with contextlib.suppress(psutil.NoSuchProcess):
            title = " ".join(process.cmdline()) + process.name()
            if any(word in title for word in words):
                found.append(process)
    return found


def engines(relatives: Sequence[psutil.Process]) -> list[psutil.Process]:
    return titled(relatives, "EngineActor")


def trials(relatives: Sequence[psutil.Process]) -> list[psutil.Process]:
    return titled(relatives, "CandidateTrial", "ResourceTrainable")


def candidate_of(trial: psutil.Process, root: Path) -> str | None:
    """The candidate whose event log a process holds open; None if it is between two."""
    with contextlib.suppress(psutil.Error, OSError):
        for handle in os.listdir(f"/proc/{trial.pid}/fd"):
            with contextlib.suppress(OSError):
                file = Path(os.readlink(f"/proc/{trial.pid}/fd/{handle}"))
                if file.parent.parent == RunPaths(root).events and file.parent.name != "driver":
                    return file.parent.name
    return None


def held_in_the_middle(
    relatives: Sequence[psutil.Process], root: Path, past_a_checkpoint: bool = False
) -> tuple[psutil.Process, str] | None:
    """A trial in the middle of a candidate (that has a checkpoint, if asked for), stopped there (SIGSTOP) for a kill
    that cannot miss; and the candidate."""
    for trial in trials(relatives):
        with contextlib.suppress(psutil.NoSuchProcess):
            if (candidate := _stopped_in(trial, root, past_a_checkpoint)) is not None:
                return trial, candidate
    return None


def held_past_a_checkpoint(driver: psutil.Process, root: Path) -> bool:
    """Whether a driver that runs trials itself is now stopped (SIGSTOP) in a candidate that has a checkpoint."""
    return _stopped_in(driver, root, past_a_checkpoint=True) is not None


def _stopped_in(process: psutil.Process, root: Path, past_a_checkpoint: bool) -> str | None:
    """The unfinished candidate that a process is now stopped in; None if it is in none, and goes on."""
    if candidate_of(process, root) is None:
        return None
    process.suspend()
    candidate = candidate_of(process, root)
    unfinished = candidate is not None and not _said_to_be_done(root, candidate)
    if candidate is not None and unfinished and (_has_a_checkpoint(root, candidate) or not past_a_checkpoint):
        return candidate
    process.resume()
    return None


def _has_a_checkpoint(root: Path, candidate: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return any(name.startswith("ckpt-") for name in os.listdir(RunPaths(root).checkpoints / candidate))
    return False


def _said_to_be_done(root: Path, candidate: str) -> bool:
    """Whether a candidate's log holds its end; as bytes, because its writer may be in the middle of a line."""
    return any(b'"CANDIDATE_DONE"' in path.read_bytes() for path in (RunPaths(root).events / candidate).glob("*.jsonl"))


def slowness() -> float:
    """How many times longer than two seconds a process of Ray's takes to get ready now; at least 1."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "from ray import tune"], check=True)
    return max(1.0, (time.monotonic() - started) / 2.0)


def whole_config(folder: Path, tiny_data: Path, executor: str) -> Path:
    """The whole grid, with a cache of its own, so that a kill may fall into building it."""
    flat = {"data.dir": str(tiny_data), "resources.executor": executor, "features.cache_dir": str(folder / "cache")}
    return write_config(folder / "whole.yaml", WHOLE, flat)


def commits(root: Path) -> int:
    """Checkpoints committed so far, from their numbers; the folders come and go while this looks."""
    total = 0
    with contextlib.suppress(FileNotFoundError):
        for owner in os.listdir(RunPaths(root).checkpoints):
            numbers = [name.removeprefix("ckpt-") for name in os.listdir(RunPaths(root).checkpoints / owner)]
            total += max((int(number) for number in numbers if number.isdigit()), default=0)
    return total


def frozen_plan(root: Path) -> FitPlan | None:
    """The run's plan; None before its fit is frozen."""
    try:
        return load_fit_plan(root)
    except Exception:
        return None


def through(root: Path) -> set[str]:
    """Candidates whose checkpoint says that they are at their end."""
    if (plan := frozen_plan(root)) is None:
        return set()
    store = open_store(plan, root, 10**6)
    found = {c.candidate_id: store.latest(c.candidate_id, sink=NullSink()) for c in plan.candidates}
    return {name for name, one in found.items() if one and one.manifest["model_state"]["iterations"] == 120}


def session_of(root: Path) -> int:
    """Number of the newest session that took the directory's lock; 0 if none did."""
    with contextlib.suppress(OSError, ValueError):
        return int(orjson.loads((root / "run.lock.fence").read_bytes())["fence"])
    return 0


def stage_of(root: Path, session: int) -> str:
    """How far a session got, as its driver's log says: ``start``, a stage's name, or ``end`` after the last stage."""
    stage = "start"
    for event in iter_events(RunPaths(root).events, writer="driver"):
        if event["fence"] == session:
            if event["event"] == "STAGE_START":
                stage = event["stage"]
            elif event["event"] == "STAGE_END" and event["stage"] == "package":
                stage = "end"
    return stage


def reopened(root: Path, names: set[str], session: int) -> set[str]:
    """Which of these candidates were opened again after that session."""
    return {e["writer"] for e in events(root, "WRITER_OPEN", all_lines=True) if e["fence"] > session} & names


def check_whole(root: Path, reference: Path) -> None:
    """Same leaderboard, ensemble and masks; every iteration counted once; a log without a hole."""
    assert len(table(root)) == 135
    assert results(root) == results(reference)
    assert iterations_done(root) == {row["candidate_id"]: list(range(1, 121)) for row in table(reference)}
    check_log(root)


def check_log(root: Path) -> None:
    """A log without a hole, of which every checkpoint vouches for a part."""
    assert verify_log(RunPaths(root).events, open_store(load_fit_plan(root), root, 10**6).anchors()) == []
