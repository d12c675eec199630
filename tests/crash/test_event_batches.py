"""Events that are emitted together are worth as much as those emitted one by one, whatever stops the machine."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
from simfs import Crash, SimFiles

from nx46vx.errors import EnvironmentFault, IntegrityError, UsageError
from nx46vx.events import EventLog, iter_events, verify_log
from nx46vx.events import writer as writers
from nx46vx.runtime.files import RealFiles

EVENTS = Path("/run/events")


def opened(folder: Path, **options) -> EventLog:
    return EventLog(folder, "w", **{"run_id": "r", "background_sync_s": None} | options)


def rows(first: int, count: int) -> list[dict]:
    return [{"number": number, "text": "y" * 40} for number in range(first, first + count)]


def numbers(folder: Path, **how) -> list[int]:
    return [event["number"] for event in iter_events(folder, event="x", **how)]


def test_a_batch_is_written_as_its_events_would_be_one_by_one(tmp_path, monkeypatch):
    clock = iter(range(1_700_000_000_000_000_000, 1_800_000_000_000_000_000))
    monkeypatch.setattr("nx46vx.events.writer.time.time_ns", lambda: next(clock))
    files = []
    for name in ("together", "alone"):
        clock = iter(range(1_700_000_000_000_000_000, 1_800_000_000_000_000_000))
        with opened(tmp_path / name) as log:
            if name == "together":
                log.emit_many("x", iter(rows(0, 150)))
                log.emit_many("x", [])
            else:
                for fields in rows(0, 150):
                    log.emit("x", **fields)
            assert (log.count, len(log.head)) == (151, 128)
        files.append((tmp_path / name / "w" / "00000000.jsonl").read_bytes())
    assert files[0] == files[1]
    assert verify_log(tmp_path / "together") == []


def test_every_event_of_a_batch_is_one_write_and_fills_segments_like_single_events(tmp_path):
    class Counting(RealFiles):
        writes = 0

        def write(self, handle, data):
            self.writes += 1
            return os.write(handle, data)

    files = Counting()
    with opened(tmp_path, files=files, segment_bytes=20_000) as log:
        before = files.writes
        log.emit_many("x", rows(0, 11))
        assert files.writes == before + 11
        log.emit_many("x", rows(11, 1000))
    assert len(list((tmp_path / "w").glob("*.gz"))) > 5
    assert numbers(tmp_path) == list(range(1011))
    assert verify_log(tmp_path) == []


def test_a_batch_with_a_field_of_the_logs_own_leaves_no_line(tmp_path):
    with opened(tmp_path) as log:
        with pytest.raises(UsageError, match="crc32"):
            log.emit_many("x", [*rows(0, 3), {"crc32": "0"}])
        assert log.count == 1
        log.emit_many("x", rows(0, 2))
    assert numbers(tmp_path) == [0, 1]


@pytest.mark.parametrize("torn", [False, True], ids=["plain", "torn"])
@pytest.mark.parametrize("model", ["kill", "lost", "data", "holes", "mixed"])
def test_a_stop_at_any_operation_keeps_every_batch_that_was_made_durable(model, torn):
    for k in range(100):
        files, durable = SimFiles(crash_at=k, torn=torn), 0
        with suppress(Crash):
            log = opened(EVENTS, files=files, segment_bytes=2500)
            for first in range(0, 30, 6):
                log.emit_many("x", rows(first, 6))
                log.sync()
                durable = first + 6
            log.seal()
        after = SimFiles(files.after(model, k))
        kept = numbers(EVENTS, files=after) if after.exists(EVENTS) else []
        assert kept == list(range(len(kept))) and len(kept) >= durable, (k, files.log[-1])
        with opened(EVENTS, files=after, segment_bytes=2500) as log:
            log.emit_many("x", rows(len(kept), 2))
        assert verify_log(EVENTS, files=after) == []
        assert numbers(EVENTS, files=after) == list(range(len(kept) + 2))
        if files.count <= k:
            return
    raise AssertionError("the workload never ran through")


@pytest.mark.parametrize("torn", [False, True], ids=["nothing written", "half written"])
def test_a_batch_that_did_not_fit_is_finished_or_dropped_whole(torn):
    begun = SimFiles()
    log = opened(EVENTS, files=begun)
    log.emit_many("x", rows(0, 4))
    files = SimFiles(fail_at=begun.count, error=errno.ENOSPC, torn=torn)
    log = opened(EVENTS, files=files)
    log.emit_many("x", rows(0, 4))
    with pytest.raises(EnvironmentFault):
        log.emit_many("x", rows(4, 4))
    log.emit("x", number=8)
    log.seal()
    assert numbers(EVENTS, files=files) == [0, 1, 2, 3, *([4, 5, 6, 7] if torn else []), 8]
    assert verify_log(EVENTS, files=files) == []


def test_an_interrupt_in_the_middle_of_a_batch_leaves_a_sound_log(tmp_path):
    class Interrupted(RealFiles):
        def __init__(self, at: int, cut: int) -> None:
            self.at, self.cut = at, cut

        def write(self, handle, data):
            self.at -= 1
            done = os.write(handle, data[: self.cut] if self.at == 0 else data)
            if self.at == 0:
                raise KeyboardInterrupt
            return done

    first_of_batch = 1 + 3 + 1
    for at, cut in itertools.product((first_of_batch, first_of_batch + 1), (0, 100, 10_000)):
        folder = tmp_path / f"{at}-{cut}"
        with opened(folder, files=Interrupted(at, cut)) as log:
            log.emit_many("x", rows(0, 3))
            with pytest.raises(KeyboardInterrupt):
                log.emit_many("x", rows(3, 3))
            log.emit_many("x", rows(6, 3))
            log.seal()
        assert verify_log(folder) == []
        nothing = (at, cut) == (first_of_batch, 0)
        assert numbers(folder) == [0, 1, 2, *([] if nothing else [3, 4, 5]), 6, 7, 8]


@pytest.mark.parametrize("line", [0, 2, 5])
def test_what_was_changed_behind_the_writers_back_is_never_sealed(tmp_path, line):
    log = opened(tmp_path)
    log.emit_many("x", rows(0, 5))
    path = tmp_path / "w" / "00000000.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[line] = lines[line].replace(b'"run_id":"r"', b'"run_id":"q"')
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(IntegrityError, match="damaged"):
        log.seal()
    assert path.exists()
    assert not list((tmp_path / "w").glob("*.seal.json"))


def test_segments_that_wait_to_be_packed_do_not_pile_up_in_memory(tmp_path):
    """While a slow disk holds the packing up, the lines of two segments at most are kept for it."""
    held, go = threading.Event(), threading.Event()

    class Slow(RealFiles):
        def read(self, path, offset=0, size=-1):
            if path.name == "00000000.jsonl":
                held.set()
                assert go.wait(60)
            return super().read(path, offset, size)

    with opened(tmp_path, files=Slow(), segment_bytes=10_000, background_sync_s=0.01) as log:
        log.emit_many("x", rows(0, 100))
        assert held.wait(60)
        tracemalloc.start()
        log.emit_many("x", rows(100, 2000))
        kept = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        go.set()
    assert kept < 4 * 10_000 + 30_000, "2,000 lines are 800,000 bytes"
    assert numbers(tmp_path) == list(range(2100))
    assert verify_log(tmp_path) == []


def test_segments_wait_while_many_events_come_and_are_packed_once_they_stop(tmp_path, monkeypatch):
    def wait_for(sealed: int) -> None:
        until = time.monotonic() + 60
        while len(list((tmp_path / "w").glob("*.seal.json"))) < sealed:
            assert time.monotonic() < until, f"{sealed} segments are not packed"
            time.sleep(0.01)

    monkeypatch.setattr(writers, "_BUSY", -1)
    with opened(tmp_path, segment_bytes=20_000, background_sync_s=0.005) as log:
        while log._tail.paths.number < writers._WAITING:
            log.emit_many("x", rows(0, 10))
        time.sleep(0.2)
        assert not list((tmp_path / "w").glob("*.gz")), "packing competes with writing"
        while log._tail.paths.number < writers._WAITING + 5:
            log.emit_many("x", rows(0, 10))
        wait_for(5)  # more than so many never wait
        monkeypatch.setattr(writers, "_BUSY", 1_000_000)
        wait_for(writers._WAITING + 5)
    assert verify_log(tmp_path) == []
