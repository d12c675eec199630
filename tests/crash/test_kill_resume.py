"""Killed, stopped and interrupted runs go on with the same command and give the bytes of an uninterrupted one."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import psutil
import pytest
from tiny import (
    WHOLE,
    Ended,
    events,
    iterations_done,
    opened,
    overlaid,
    results,
    run,
    start,
    table,
    write_config,
)  # fmt: skip

from nx46vx.events import verify_log
from nx46vx.model.fitplan import load_fit_plan
from nx46vx.paths import RunPaths
from nx46vx.settings import Settings
from trainables.task import open_store

Command = Callable[..., Ended]
KILLS = 5


class Process:
    """A run in a process group of its own, with what it says and the processes it started."""

    def __init__(self, *arguments: object) -> None:
        self.popen: subprocess.Popen[str] = start(*arguments)
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.started = time.monotonic()

    def _read(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.said += line

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def family(self) -> list[psutil.Process]:
        """The driver first, then Ray's daemons, the engine and the trials."""
        try:
            driver = psutil.Process(self.popen.pid)
            return [driver, *driver.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def wait_for(self, happened: Callable[[], bool], seconds: float = 120.0) -> None:
        end = time.monotonic() + seconds
        while not happened():
            assert self.running, f"it ended too early, with {self.popen.returncode}: {self.said}"
            assert time.monotonic() < end, f"that did not happen: {self.said}"
            time.sleep(0.01)

    def kill_all(self) -> list[psutil.Process]:
        """SIGKILL to the driver and everything it started, as when the machine is taken away."""
        family = self.family()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family[1:], timeout=10)
        self.popen.wait(10)
        return family

    def ended(self, seconds: float = 240.0) -> int:
        code = self.popen.wait(seconds)
        self._reader.join(10)
        return code


#: Ray's own agents of a killed driver; they touch nothing of a run and end by themselves after a minute or more.
AGENTS = ("DashboardAgent", "RuntimeEnvAgent")


def left_of(family: list[psutil.Process], seconds: float = 30.0) -> list[psutil.Process]:
    """What still runs of a family without its driver: daemons, engine, trials."""
    watched = []
    for process in family[1:]:
        with contextlib.suppress(psutil.NoSuchProcess):
            if not any(agent in process.name() for agent in AGENTS):
                watched.append(process)
    return psutil.wait_procs(watched, timeout=seconds)[1]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """The whole grid, uninterrupted, without Ray."""
    root = tmp_path_factory.mktemp("reference") / "run"
    run(Settings.model_validate(overlaid(WHOLE, {"data.dir": str(tiny_data), "resources.executor": "inline"})), root)
    return root


@pytest.fixture
def processes() -> Iterator[Callable[..., Process]]:
    """Starts runs; whatever is left of them at the end of the test is killed."""
    made: list[Process] = []
    families: list[psutil.Process] = []

    def begin(*arguments: object) -> Process:
        made.append(Process(*arguments))
        return made[-1]

    yield begin
    for process in made:
        families += process.family()
    for one in families:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def whole_config(tmp_path: Path, tiny_data: Path, executor: str) -> Path:
    """A cache of its own, so that a kill may fall into building it."""
    flat = {"data.dir": str(tiny_data), "resources.executor": executor, "features.cache_dir": str(tmp_path / "cache")}
    return write_config(tmp_path / "whole.yaml", WHOLE, flat)


def commits(root: Path) -> int:
    """Checkpoints committed so far, from their numbers; the folders come and go while this looks."""
    total = 0
    with contextlib.suppress(FileNotFoundError):
        for owner in os.listdir(RunPaths(root).checkpoints):
            numbers = [name.removeprefix("ckpt-") for name in os.listdir(RunPaths(root).checkpoints / owner)]
            total += max((int(number) for number in numbers if number.isdigit()), default=0)
    return total


def check_whole(root: Path, reference: Path, executor: str) -> None:
    """Same bytes; every iteration counted once; a log without a hole."""
    assert len(table(root)) == 135
    assert results(root) == results(reference)
    assert iterations_done(root) == {name: list(range(1, 121)) for name in iterations_done(reference)}
    anchors = open_store(load_fit_plan(root), root, 10**6).anchors()
    assert verify_log(RunPaths(root).events, anchors) == []


def through(root: Path) -> set[str]:
    """Candidates whose checkpoint says that they are at their end."""
    if not RunPaths(root).plan.exists():
        return set()
    try:
        plan = load_fit_plan(root)
    except Exception:
        return set()  # not frozen yet
    store = open_store(plan, root, 10**6)
    found = {c.candidate_id: store.latest(c.candidate_id) for c in plan.candidates}
    return {name for name, one in found.items() if one and one.manifest["model_state"]["iterations"] == 120}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("executor", "driver_only"), [("inline", False), ("ray", False), ("ray", True)])
def test_a_run_killed_five_times_gives_the_same_bytes(
    tmp_path: Path, tiny_data: Path, reference: Path, processes: Callable[..., Process], executor: str,
    driver_only: bool,
) -> None:  # fmt: skip
    """At seeded random moments: while starting, building features, searching (mostly), and after."""
    config, root = whole_config(tmp_path, tiny_data, executor), tmp_path / "run"
    arguments = ["run", "--config", config, "--out", root]
    chance = random.Random(f"{executor} {driver_only}")
    kills, done_at, progress = 0, [], []
    while kills < KILLS:
        process = processes(*arguments)
        if kills == 0:
            time.sleep(chance.uniform(0.5, 3.0))
        else:  # at some number of checkpoints more than there were, and a moment
            before = commits(root)
            wanted = before + chance.randrange(1, 300)
            process.wait_for(
                lambda wanted=wanted: commits(root) >= wanted
            )  # fmt: skip
            time.sleep(chance.uniform(0.0, 0.3))
        assert process.running, process.said
        if driver_only:  # the others notice by themselves, and go on writing until then
            family = process.family()
            process.popen.kill()
            process.popen.wait(10)
        else:
            process.kill_all()
        kills += 1
        done_at.append((through(root), dict(opened(root)) if RunPaths(root).events.exists() else {}))
        progress.append(len(done_at[-1][0]))
        if driver_only and kills == KILLS:
            assert left_of(family) == [], "processes of a killed run stay"
    assert progress == sorted(progress), "a finished candidate was lost"
    assert 0 < progress[-1] < 135, f"the kills missed the search: {progress}"
    last = processes(*arguments)
    assert last.ended() == 0, last.said
    check_whole(root, reference, executor)
    times = opened(root)
    for finished, times_then in done_at:
        if not driver_only:  # otherwise old processes may still have ended some more
            assert {name: times[name] for name in finished} == {name: times_then[name] for name in finished}
    if executor == "inline":  # through Ray a candidate is over so soon that the kills may all fall between two
        resumed = {event["candidate_id"] for event in events(root, "RESUME_OK")}
        assert resumed, "no candidate was continued from a checkpoint"


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["inline", "ray"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("whole_group", [False, True])
def test_a_signal_ends_with_3_and_leaves_nothing_running(
    tmp_path: Path, tiny_data: Path, reference: Path, processes: Callable[..., Process], executor: str, number: int,
    whole_group: bool,
) -> None:  # fmt: skip
    """To the driver alone (kill) or to the group (Ctrl-C in a terminal, a batch system)."""
    config, root = whole_config(tmp_path, tiny_data, executor), tmp_path / "run"
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
    check_whole(root, reference, executor)
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
    tmp_path: Path, tiny_data: Path, processes: Callable[..., Process]
) -> None:
    config, root = whole_config(tmp_path, tiny_data, "ray"), tmp_path / "run"
    process = processes("run", "--config", config, "--out", root)
    process.wait_for(lambda: commits(root) >= 4)
    family = process.family()
    process.popen.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.popen.send_signal(signal.SIGINT)
    assert process.ended(10) == 130, process.said
    assert left_of(family) == []


@pytest.mark.slow
def test_a_killed_trial_or_engine_is_replaced_in_the_same_run(
    tmp_path: Path, tiny_data: Path, reference: Path, processes: Callable[..., Process]
) -> None:
    config, root = whole_config(tmp_path, tiny_data, "ray"), tmp_path / "run"
    process = processes("run", "--config", config, "--out", root)
    killed: set[str] = set()
    for wanted, after in (("CandidateTrial", 8), ("EngineActor", 30), ("CandidateTrial", 60)):
        process.wait_for(lambda after=after: commits(root) >= after)
        for one in process.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                title = " ".join(one.cmdline()) + one.name()
                if wanted in title or (wanted == "CandidateTrial" and "ResourceTrainable" in title):
                    one.kill()
                    killed.add(wanted)
                    break
    assert killed == {"CandidateTrial", "EngineActor"}
    assert process.ended() == 0, process.said
    check_whole(root, reference, "ray")


@pytest.mark.slow
def test_a_second_run_on_the_directory_of_a_live_one_is_refused(
    tmp_path: Path, tiny_data: Path, reference: Path, processes: Callable[..., Process], cli: Command
) -> None:
    config, root = whole_config(tmp_path, tiny_data, "inline"), tmp_path / "run"
    process = processes("run", "--config", config, "--out", root)
    process.wait_for(lambda: RunPaths(root).checkpoints.is_dir())
    ended = cli("run", "--config", config, "--out", root)
    assert ended.code == 6 and str(process.popen.pid) in ended.stderr
    told = cli("status", root, "--json")
    assert told.code == 0 and told.json["state"] in ("planned", "unfinished")
    assert process.ended() == 0, process.said
    check_whole(root, reference, "inline")


@pytest.mark.slow
def test_a_killed_run_goes_on_without_rays_files_and_in_another_place(
    tmp_path: Path, tiny_data: Path, reference: Path, processes: Callable[..., Process]
) -> None:
    config, root = whole_config(tmp_path, tiny_data, "ray"), tmp_path / "run"
    process = processes("run", "--config", config, "--out", root)
    process.wait_for(lambda: commits(root) >= 25)
    process.kill_all()
    moved = tmp_path / "moved"
    root.rename(moved)
    shutil.rmtree(moved / "ray")
    last = processes("run", "--config", config, "--out", moved)
    assert last.ended() == 0, last.said
    check_whole(moved, reference, "ray")
    assert not root.exists(), "the old place was written to"
