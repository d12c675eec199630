"""Whatever the operation at which the machine stops: nothing acknowledged is lost, and the result is the same."""

from __future__ import annotations

import errno
import gc
import os
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from simfs import Crash, SimFiles
from workload import CHECKPOINTS, EVENTS, MIRROR, OWNER, SEGMENT_BYTES, Acknowledged, problems_of, store_on, work

from nx46vx.errors import EnvironmentFault, NX46Error
from nx46vx.events.reader import iter_events
from nx46vx.events.verify import verify_log
from nx46vx.events.writer import EventLog
from nx46vx.runtime.checkpoint import CheckpointStore

POWER_LOSSES = ("lost", "data", "names", "holes", "mixed")
SEEDS = 4  # draws of the mixed model


def uninterrupted(roots: int) -> tuple[tuple[bytes, list[float]], int]:
    """What the workload ends with, and how many operations it takes."""
    files = SimFiles()
    result = work(files, 1, Acknowledged(), roots)
    assert problems_of(files, 1, roots) == []
    return result, files.count


@pytest.fixture(scope="module")
def whole() -> tuple[tuple[bytes, list[float]], int]:
    return uninterrupted(2)


def crashed(roots: int = 2, **how) -> tuple[SimFiles, Acknowledged]:
    """The workload, stopped as told (or run to its end)."""
    files, told = SimFiles(**how), Acknowledged()
    with suppress(Crash):
        work(files, 1, told, roots)
    return files, told


def check_survival(files: SimFiles, told: Acknowledged, expected, note: str, roots: int = 2) -> None:
    """Everything acknowledged is there, what is there is sound, and the run goes on to the same end."""
    store = store_on(files, 2, roots)
    found = store.latest(OWNER)
    assert (found.number if found else 0) >= told.checkpoint, f"{note}: an acknowledged checkpoint is gone"
    lines = sum(1 for _ in iter_events(EVENTS, writer=OWNER, files=files)) if files.exists(EVENTS) else 0
    assert lines >= told.lines, f"{note}: acknowledged events are gone"
    for problem in problems_of(files, 2, roots):
        assert "torn line" in problem.what, f"{note}: {problem}"
    assert work(files, 2, told, roots) == expected, f"{note}: another result"
    assert problems_of(files, 2, roots) == [], note


@pytest.mark.parametrize("torn", [False, True], ids=["plain", "torn"])
@pytest.mark.parametrize("model", ["kill", *POWER_LOSSES])
@pytest.mark.parametrize("roots", [1, 2], ids=["one root", "two roots"])
def test_a_stop_at_any_operation_loses_nothing_acknowledged(model, torn, roots):
    expected, operations = uninterrupted(roots)
    assert operations > 80
    for k in range(operations):
        files, told = crashed(roots, crash_at=k, torn=torn)
        for seed in range(SEEDS if model == "mixed" else 1):
            note = f"stopped at {files.log[k]} ({k}), draw {seed}"
            check_survival(SimFiles(files.after(model, 1000 * seed + k)), replace(told), expected, note, roots)


@pytest.mark.parametrize("lost", [CHECKPOINTS, MIRROR], ids=["the first", "the second"])
def test_what_was_acknowledged_is_in_either_root_after_a_power_loss_takes_the_other(whole, lost):
    expected, operations = whole
    for k in range(operations):
        files, told = crashed(crash_at=k, torn=True)
        left = SimFiles(files.after("lost"))
        left.remove(lost)
        check_survival(left, replace(told), expected, f"stopped at {files.log[k]} ({k}), then {lost} was lost")


@pytest.mark.parametrize("model", ["kill", *POWER_LOSSES])
def test_a_second_stop_while_recovering_loses_nothing(whole, model):
    expected, operations = whole
    rng = np.random.default_rng(7)
    for k in rng.choice(operations, 12, replace=False):
        first, told = crashed(crash_at=int(k), torn=True)
        tree = first.after(model, int(k))
        second_k, stopped = 0, True
        while stopped:  # every operation of the recovery, in steps
            told_again = Acknowledged(told.checkpoint, told.lines)
            files = SimFiles(SimFiles(tree).after("kill"), crash_at=second_k)
            try:
                work(files, 2, told_again)
                stopped = False
            except Crash:
                note = f"stopped at {k}, then at {files.log[second_k]} ({second_k})"
                check_survival(SimFiles(files.after(model, second_k)), told_again, expected, note)
            second_k += 5


@pytest.mark.parametrize(
    "lies", [{"fsync", "fdatasync"}, {"fsync_folder"}, {"fsync", "fdatasync", "fsync_folder"}],
    ids=["no file sync", "no folder sync", "neither"],
)  # fmt: skip
@pytest.mark.parametrize("roots", [1, 2], ids=["one root", "two roots"])
def test_a_store_that_skips_its_syncs_is_caught(lies, roots):
    expected, operations = uninterrupted(roots)
    lost = 0
    for k in range(0, operations + 1, 3):
        files, told = crashed(roots, crash_at=k, lies=frozenset(lies))
        for model in POWER_LOSSES:
            try:
                check_survival(SimFiles(files.after(model, k)), replace(told), expected, "mutant", roots)
            except AssertionError as error:
                lost += "acknowledged" in str(error)
            except NX46Error:
                continue
    assert lost > 0


@pytest.mark.parametrize("torn", [False, True], ids=["at once", "after a short write"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EIO], ids=["full", "read-only", "bad device"])
def test_an_operation_that_fails_is_named_and_leaves_the_last_checkpoint(whole, error, torn):
    expected, operations = whole
    for k in range(operations):
        files, told, named = SimFiles(fail_at=k, error=error, torn=torn), Acknowledged(), True
        note = f"operation {k} failed"
        try:
            assert work(files, 1, told) == expected, note
        except EnvironmentFault as fault:
            named = bool(fault.where and fault.found)
        assert named, note
        assert not files.synced_after_failure, f"{note}: a failed sync was tried again"
        for model in ("kill", "lost"):
            check_survival(
                SimFiles(files.after(model)), replace(told), expected, f"{note} ({files.log[k]}), then {model}"
            )


def test_a_moment_without_space_costs_only_the_calls_that_fell_into_it():
    """An event or a commit that failed leaves the log and the store fit for the next one, in the same process."""
    for k in range(400):
        files = SimFiles(fail_at=k, torn=True)
        try:
            log = EventLog(EVENTS, "w", run_id="r", files=files, background_sync_s=None, segment_bytes=SEGMENT_BYTES)
            sent = [number for number in range(4) if attempts(partial(one_step, files, log, number))]
            log.close()
        except EnvironmentFault:
            assert files.log[k].startswith(("fdatasync", "fsync_folder", "mkdir", "create", "write")), files.log[k]
            continue  # a log that could not be opened, or whose sync failed: it is never trusted again
        assert sent == [0, 1, 2, 3], files.log[k]
        assert problems_of(files, 0) == [], files.log[k]
        numbers = [event["number"] for event in iter_events(EVENTS, event="x", files=files)]
        assert sorted(set(numbers)) == [0, 1, 2, 3]
        assert store_on(files, 0).latest(OWNER).manifest["iter"] == 3
        if files.count <= k:
            return
    raise AssertionError("the workload never ran through")


def one_step(files: SimFiles, log: EventLog, number: int) -> None:
    log.emit("x", number=number)
    cursor = dict.fromkeys(("epoch", "candidate_index", "candidate_total", "iter", "max_iter"), number)
    store_on(files, 0).commit(OWNER, cursor=cursor, model_state={}, arrays={}, metrics={}, data_cursor={}, sink=log)


def attempts(action, times: int = 3) -> bool:
    """Whether the action works within so many tries."""
    for _ in range(times - 1):
        try:
            action()
            return True
        except EnvironmentFault:
            continue
    action()
    return True


def test_a_long_run_keeps_neither_handles_nor_memory(tmp_path):
    """Thousands of events and hundreds of checkpoints on the real file system; the second half costs nothing more."""
    store = CheckpointStore(tmp_path / "checkpoints", mirror=tmp_path / "second", run_id="r", identity={})
    arrays = {"state": np.zeros(2000)}
    cursor = dict.fromkeys(("epoch", "candidate_index", "candidate_total", "iter", "max_iter"), 0)

    def half() -> tuple[int, int]:
        for number in range(150):
            log.emit("x", number=number, values=arrays["state"][:100])
            store.commit(OWNER, cursor=cursor, model_state={}, arrays=arrays, metrics={}, data_cursor={}, sink=log)
            for _ in range(60):
                log.emit("x", number=number, text="y" * 200)
        gc.collect()
        return len(os.listdir("/proc/self/fd")), tracemalloc.get_traced_memory()[0]

    with EventLog(tmp_path / "events", OWNER, run_id="r", segment_bytes=1 << 18, background_sync_s=None) as log:
        tracemalloc.start()
        half()
        handles, memory = half()
        handles_later, memory_later = half()
        tracemalloc.stop()
    assert handles_later == handles
    assert memory_later < 1.05 * memory + 20_000
    assert verify_log(tmp_path / "events", store.anchors()) == []
