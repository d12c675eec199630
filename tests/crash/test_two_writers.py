"""A writer that was replaced without knowing it, and its successor, interleaved at every operation.

Each single operation of the one is a place where the other gets to do its work, as when a machine sleeps and wakes up.
The successor must never fail nor lose a checkpoint; the replaced one may only fail, by name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from simfs import SimFiles
from workload import CHECKPOINTS, MIRROR, OWNER, store_on

from nx46vx.errors import NX46Error
from nx46vx.runtime.checkpoint import CheckpointStore, audit_checkpoints
from nx46vx.runtime.files import Files
from nx46vx.runtime.sink import MemorySink

#: How many checkpoints the replaced writer had committed: with none it has yet to look around, after four it has a
#: folder to be written over.
BEFORE = (0, 1, 4)


class Watched:
    """Files that let something else happen right before the ``at``-th operation, looking included."""

    def __init__(self, files: SimFiles, at: int | None = None, then: Callable[[], None] = lambda: None) -> None:
        self._files, self._at, self._then = files, at, then
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._files, name)

        def watched(*given: Any) -> Any:
            number, self.count = self.count, self.count + 1
            if number == self._at:
                self._then()
            return operation(*given)

        return watched


def commit(store: CheckpointStore, iteration: int, sink: MemorySink | None = None) -> int:
    cursor = {"epoch": 0, "candidate_index": 0, "candidate_total": 1, "iter": iteration, "max_iter": 99}
    done = store.commit(
        OWNER, cursor=cursor, model_state={"iter": iteration}, arrays={"state": np.full(8, float(iteration))},
        metrics={}, data_cursor={}, sink=sink or MemorySink(),
    )  # fmt: skip
    return done.number


def replaced_writer(disk: SimFiles, before: int, roots: int, files: Files | None = None) -> CheckpointStore:
    """The first writer, at work until it fell asleep."""
    store = store_on(files or disk, 1, roots)
    store.claim(OWNER)
    for iteration in range(before):
        commit(store, iteration)
    return store


def succeed(disk: Files, roots: int, sink: MemorySink | None = None) -> CheckpointStore:
    """The successor's whole work: take over, resume, commit five times, of which the later ones write over folders."""
    store = store_on(disk, 2, roots)
    store.claim(OWNER)
    found = store.latest(OWNER)
    start = found.manifest["iter"] + 1 if found else 0
    for iteration in range(start, start + 5):
        commit(store, iteration, sink)
    return store


def check_whole(disk: SimFiles, successor: CheckpointStore, roots: int) -> None:
    """The newest is the successor's, all that stands is whole and chained, and no more is kept than has to be."""
    newest = successor.latest(OWNER)
    assert newest is not None
    assert newest.manifest["fence"] == 2
    assert newest.arrays()["state"].tolist() == [float(newest.manifest["iter"])] * 8
    commit(successor, newest.manifest["iter"] + 1)
    successor.tidy()
    for root in [CHECKPOINTS, MIRROR][:roots]:
        assert audit_checkpoints(root, "r", files=disk) == []
        assert len([name for name in disk.listdir(root / OWNER) if name.startswith("ckpt-")]) == 2
    assert not [name for name in disk.listdir(CHECKPOINTS / OWNER) if name.startswith(".")]


@pytest.mark.parametrize("roots", [1, 2], ids=["one root", "two roots"])
@pytest.mark.parametrize("before", BEFORE)
def test_a_replaced_writer_that_wakes_up_disturbs_nothing(before: int, roots: int) -> None:
    """It wakes up before any one operation of its successor and tries to commit what it had computed."""
    told: list[type[Exception] | None] = []

    def wake(late: CheckpointStore) -> None:
        try:
            commit(late, before)
            told.append(None)
        except NX46Error as error:
            told.append(type(error))

    operations = Watched(disk := SimFiles())
    replaced_writer(disk, before, roots)
    succeed(operations, roots)
    for k in range(operations.count):
        disk, sink = SimFiles(), MemorySink()
        late = replaced_writer(disk, before, roots)
        successor = succeed(Watched(disk, k, lambda late=late: wake(late)), roots, sink)
        check_whole(disk, successor, roots)
        assert {event[0] for event in sink.events} == {"CHECKPOINT_COMMIT"}
    assert len(told) == operations.count
    assert told[-1] is not None, "a writer that was replaced has committed"
    assert None in told, "it was never on time: it did not wake up before it was replaced"


@pytest.mark.parametrize("roots", [1, 2], ids=["one root", "two roots"])
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("rounds", [0, 1, 5])
def test_a_writer_that_is_replaced_within_a_commit_harms_nothing(before: int, roots: int, rounds: int) -> None:
    """It falls asleep before any one operation of a commit; meanwhile the successor has just resumed, or has committed
    once or five times; then it wakes up, and after it the successor goes on."""
    watched = Watched(SimFiles())
    store = replaced_writer(watched, before, roots)  # type: ignore[arg-type]
    begun = watched.count
    commit(store, before)
    for k in range(begun, watched.count):
        disk = SimFiles()
        successor, resumed = store_on(disk, 2, roots), []

        def take_over(successor: CheckpointStore = successor, resumed: list[int] = resumed) -> None:
            successor.claim(OWNER)
            found = successor.latest(OWNER)
            resumed.append(found.manifest["iter"] + 1 if found else 0)
            for iteration in range(rounds):
                commit(successor, resumed[0] + iteration)

        late = replaced_writer(disk, before, roots, Watched(disk, k, take_over))  # type: ignore[arg-type]
        with suppress(NX46Error):
            commit(late, before)
        assert resumed in ([before], [before + 1])
        with pytest.raises(NX46Error):
            commit(late, before + 1)
        for iteration in range(3):
            commit(successor, resumed[0] + rounds + iteration)
        check_whole(disk, successor, roots)


@pytest.mark.parametrize("roots", [1, 2], ids=["one root", "two roots"])
@pytest.mark.parametrize("before", BEFORE)
def test_a_commit_that_sleeps_at_any_operation_and_wakes_up_at_any_other_harms_nothing(before: int, roots: int) -> None:
    """Pairs of an operation of the replaced writer's commit and one of its successor's take-over and commit: all pairs
    where the most happens, else every third."""
    step = 1 if (before, roots) == (4, 1) else 3
    watched = Watched(SimFiles())
    store = replaced_writer(watched, before, roots)  # type: ignore[arg-type]
    begun = watched.count
    commit(store, before)
    for k in range(begun, watched.count):
        at, through = 0, False
        while not through:
            through = _slept(before, roots, k, at)
            at += step
        assert at > 20


def _slept(before: int, roots: int, asleep_at: int, awake_at: int) -> bool:
    """One pair; whether the successor was through before the other was to wake up."""
    disk = SimFiles()
    asleep, awake = threading.Event(), threading.Event()

    def sleep() -> None:
        asleep.set()
        assert awake.wait(30)

    late = replaced_writer(disk, before, roots, Watched(disk, asleep_at, sleep))  # type: ignore[arg-type]

    def finish() -> None:
        with suppress(NX46Error):
            commit(late, before)

    sleeper = threading.Thread(target=finish)

    def wake() -> None:
        awake.set()
        sleeper.join()

    sleeper.start()
    assert asleep.wait(30)
    watched = Watched(disk, awake_at, wake)
    successor = store_on(watched, 2, roots)
    successor.claim(OWNER)
    found = successor.latest(OWNER)
    start = found.manifest["iter"] + 1 if found else 0
    for iteration in range(start, start + 2):
        commit(successor, iteration)
    wake()
    check_whole(disk, successor, roots)
    return watched.count <= awake_at
