"""The event log: nothing is lost, nothing changes unnoticed."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from nx46vx.errors import EnvironmentFault, IntegrityError, NX46Error, StoppedError, UsageError
from nx46vx.events import (
    EventLog,
    export_parquet,
    follow_events,
    iter_events,
    read_table,
    seal_run,
    verify_checkpoints_sealed,
    verify_log,
)
from nx46vx.events.proof import check_line_proof, prove_line
from nx46vx.runtime.files import RealFiles


def opened(folder: Path, writer: str = "w", **options) -> EventLog:
    return EventLog(folder, writer, **{"run_id": "r", "background_sync_s": None} | options)


def written(folder: Path, lines: int = 5, **options) -> dict:
    """A closed log of so many events besides its opening; returns the anchor."""
    with opened(folder, **options) as log:
        for number in range(lines):
            log.emit("x", number=number)
        return dict(log.sync())


def plain_file(folder: Path, writer: str = "w") -> Path:
    return max((folder / writer).glob("*.jsonl"))


# what is written


def test_every_line_carries_its_place_and_the_digest_of_the_line_before(tmp_path):
    written(tmp_path, 3, fence=4)
    raw = plain_file(tmp_path).read_bytes().splitlines()
    records = [json.loads(line) for line in raw]
    assert [record["seq"] for record in records] == [0, 1, 2, 3]
    assert [record["event"] for record in records] == ["WRITER_OPEN", "x", "x", "x"]
    assert {(record["writer"], record["run_id"], record["fence"]) for record in records} == {("w", "r", 4)}
    assert records[0]["prev"] == "0" * 128
    for line, after in zip(raw, records[1:], strict=False):
        assert after["prev"] == hashlib.sha512(line).hexdigest()
    assert list(records[1])[:7] == ["ts_ns", "seq", "writer", "run_id", "fence", "event", "prev"]


def test_the_anchor_names_the_last_line(tmp_path):
    anchor = written(tmp_path, 2)
    last = plain_file(tmp_path).read_bytes().splitlines()[-1]
    assert anchor == {"writer": "w", "head": hashlib.sha512(last).hexdigest(), "count": 3}


def test_whatever_a_program_logs_is_kept(tmp_path):
    with opened(tmp_path) as log:
        log.emit(
            "x", f32=np.float32(0.1), i64=np.int64(3), flag=np.bool_(True), array=np.arange(6).reshape(2, 3),
            strided=np.arange(6)[::2], path=Path("/a/b"), nan=float("nan"), inf=np.inf, many={2, 1}, pair=(1, 2),
            data=b"\x00\xff", error=ValueError("bad"), none=None, text='quote " and\nline', thing=object,
        )  # fmt: skip
        log.emit("y", big=2**80, keys={1: "one"}, lone="\ud800", f32=np.float32(0.1))
    first, second = list(iter_events(tmp_path))[1:]
    assert (first["f32"], first["i64"], first["flag"]) == (0.1, 3, True)
    assert (first["array"], first["strided"]) == ([[0, 1, 2], [3, 4, 5]], [0, 2, 4])
    assert (first["path"], first["nan"], first["inf"], first["none"]) == ("/a/b", None, None, None)
    assert (first["many"], first["pair"], first["data"]) == ([1, 2], [1, 2], "00ff")
    assert (first["error"], first["text"]) == ("ValueError: bad", 'quote " and\nline')
    assert "object" in first["thing"]
    assert (second["big"], second["keys"], second["f32"]) == (str(2**80), {"1": "one"}, 0.1)
    assert "ud800" in second["lone"]
    assert verify_log(tmp_path) == []


def test_an_event_cannot_take_the_logs_own_fields(tmp_path):
    with opened(tmp_path) as log, pytest.raises(UsageError, match="prev"):
        log.emit("x", prev="0")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 121, "a b"])
def test_a_writer_has_a_name_that_is_safe_as_a_folder(tmp_path, name):
    with pytest.raises(UsageError):
        opened(tmp_path, name)


def test_threads_share_one_log_without_losing_a_line(tmp_path):
    with opened(tmp_path, segment_bytes=20_000, background_sync_s=0.001) as log:
        threads = [
            threading.Thread(target=lambda t=t: [log.emit("x", thread=t, number=n) for n in range(200)])
            for t in range(4)
        ]
        for thread in threads:
            thread.start()
        for _ in range(20):
            log.sync()
        for thread in threads:
            thread.join()
    seen = {(event["thread"], event["number"]) for event in iter_events(tmp_path, event="x")}
    assert len(seen) == 800
    assert verify_log(tmp_path) == []


def test_a_forked_child_cannot_write_into_its_parents_log(tmp_path):
    with opened(tmp_path) as log:
        child = os.fork()
        if child == 0:
            try:
                log.emit("x")
            except NX46Error:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        log.emit("x")
    assert verify_log(tmp_path) == []


# opening again


def test_a_new_writer_continues_the_chain_and_says_so(tmp_path):
    anchor = written(tmp_path, 3)
    written(tmp_path, 1)
    events = list(iter_events(tmp_path))
    assert [event["seq"] for event in events] == list(range(6))
    opening = events[4]
    assert (opening["event"], opening["continues_count"], opening["continues_head"]) == (
        "WRITER_OPEN", 4, anchor["head"],
    )  # fmt: skip
    assert opening["quarantined_bytes"] == 0
    assert verify_log(tmp_path, [anchor]) == []


@pytest.mark.parametrize("keep", [1, 40, 399])
def test_a_torn_last_line_is_put_aside_whole(tmp_path, keep):
    written(tmp_path, 3)
    path = plain_file(tmp_path)
    raw = path.read_bytes()
    last = raw.rstrip(b"\n").rfind(b"\n") + 1
    torn = raw[last:][:-1][:keep]
    path.write_bytes(raw[:last] + torn)
    assert [event.get("number") for event in iter_events(tmp_path)] == [None, 0, 1]
    with opened(tmp_path):
        pass
    assert (tmp_path / "w" / "00000000.torn").read_bytes() == torn
    opening = list(iter_events(tmp_path))[-1]
    assert (opening["seq"], opening["quarantined_bytes"]) == (3, len(torn))
    assert opening["quarantined_files"] == ["00000000.torn"]
    assert verify_log(tmp_path) == []


def test_zeros_that_a_power_loss_left_are_put_aside(tmp_path):
    written(tmp_path, 5)
    path = plain_file(tmp_path)
    raw = bytearray(path.read_bytes())
    start = [at for at, byte in enumerate(raw) if byte == 10][2] + 100
    raw[start : start + 600] = bytes(600)  # from within line 4 into line 5
    path.write_bytes(raw)
    with opened(tmp_path):
        pass
    assert [event["seq"] for event in iter_events(tmp_path)] == [0, 1, 2, 3]
    assert verify_log(tmp_path) == []


@pytest.mark.parametrize("line", [1, 3, 5])
def test_damage_before_the_end_is_refused_by_file_and_line(tmp_path, line):
    """Line 5 is the last one, whole: its own checksum gives it away."""
    written(tmp_path, 4)
    path = plain_file(tmp_path)
    raw = path.read_bytes().split(b"\n")
    raw[line - 1] = raw[line - 1].replace(b'"run_id":"r"', b'"run_id":"q"')
    path.write_bytes(b"\n".join(raw))
    with pytest.raises(IntegrityError) as refused:
        opened(tmp_path)
    assert str(path) in str(refused.value)
    assert f"line {min(line + 1, 5)}" in str(refused.value)


def test_a_missing_segment_is_refused(tmp_path):
    for _ in range(3):
        written(tmp_path, 1)
    for path in (tmp_path / "w").glob("00000001*"):
        path.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        opened(tmp_path)


def test_a_writer_that_was_replaced_is_refused(tmp_path):
    old = opened(tmp_path, fence=1)
    old.emit("x")
    with opened(tmp_path, fence=2):
        with pytest.raises(StoppedError):
            old.sync()
        with pytest.raises(StoppedError):
            old.emit("x")
        with pytest.raises(StoppedError):
            opened(tmp_path, fence=1)
    old.close()


def test_superseded_lines_stay_and_can_be_left_out(tmp_path):
    with opened(tmp_path) as log:
        log.emit("x", number=0)
        anchor = dict(log.sync())
        log.emit("x", number=1)
        log.emit("x", number=2)
    with opened(tmp_path) as log:
        assert log.supersede(anchor["count"], "resumed") == 2
        log.emit("x", number=1)
    statement = next(iter_events(tmp_path, event="SUPERSEDES"))
    assert (statement["first_seq"], statement["last_seq"], statement["reason"]) == (2, 3, "resumed")
    assert [event["number"] for event in iter_events(tmp_path, event="x")] == [0, 1, 2, 1]
    kept = list(iter_events(tmp_path, event="x", superseded=False))
    assert [(event["seq"], event["number"]) for event in kept] == [(1, 0), (6, 1)]


def test_a_log_shorter_than_the_checkpoint_says_is_refused(tmp_path):
    written(tmp_path, 2)
    with opened(tmp_path) as log, pytest.raises(IntegrityError, match="missing"):
        log.supersede(9, "resumed")


# rotation and seals


@pytest.mark.parametrize("background", [None, 0.001])
def test_full_segments_are_packed_and_sealed_and_read_the_same(tmp_path, background):
    with opened(tmp_path, segment_bytes=1500, background_sync_s=background) as log:
        for number in range(50):
            log.emit("x", number=number)
    segments = sorted((tmp_path / "w").glob("*.jsonl.gz"))
    assert len(segments) > 5
    assert [event["number"] for event in iter_events(tmp_path, event="x")] == list(range(50))
    assert verify_log(tmp_path) == []
    raw = gzip.decompress(segments[1].read_bytes())
    seal = json.loads(segments[1].with_name("00000001.seal.json").read_bytes())
    assert (seal["lines"], seal["line_bytes"]) == (raw.count(b"\n"), len(raw))
    assert seal["stored_sha512"] == hashlib.sha512(segments[1].read_bytes()).hexdigest()


def test_a_sealed_log_has_no_open_segment_and_can_go_on(tmp_path):
    with opened(tmp_path) as log:
        log.emit("x")
        log.seal()
        with pytest.raises(UsageError, match="closed"):
            log.emit("x")
    assert not list((tmp_path / "w").glob("*.jsonl"))
    written(tmp_path, 1)
    assert verify_log(tmp_path) == []


def test_a_line_can_be_proven_without_the_log(tmp_path):
    with opened(tmp_path) as log:
        for number in range(20):
            log.emit("x", number=number)
        log.seal()
    proof = json.loads(json.dumps(prove_line(tmp_path, "w", 7)))
    root = json.loads((tmp_path / "w" / "00000000.seal.json").read_bytes())["merkle_root"]
    assert json.loads(proof["line"])["number"] == 6
    assert check_line_proof(proof, root)
    assert not check_line_proof(proof | {"line": proof["line"].replace("6", "5", 1)}, root)
    assert not check_line_proof(proof, "00" * 64)
    with pytest.raises(UsageError):
        prove_line(tmp_path, "w", 21)


# failures


class Faulty(RealFiles):
    """The real file system, with one operation that fails while told so."""

    def __init__(self, operation: str) -> None:
        self.failing = False
        self.calls = 0
        real = getattr(RealFiles(), operation)

        def call(*args):
            self.calls += 1
            if self.failing:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*args)

        setattr(self, operation, call)


def test_a_failed_sync_is_never_tried_again(tmp_path):
    files = Faulty("fdatasync")
    log = opened(tmp_path, files=files)
    log.emit("x")
    files.failing = True
    with pytest.raises(EnvironmentFault):
        log.sync()
    files.failing, calls = False, files.calls
    with pytest.raises(EnvironmentFault):
        log.sync()
    with pytest.raises(EnvironmentFault):
        log.emit("y")
    log.close()
    assert files.calls == calls


def test_a_failed_background_sync_reaches_the_program(tmp_path):
    files = Faulty("fdatasync")
    log = opened(tmp_path, files=files, background_sync_s=0.001)
    files.failing = True
    with pytest.raises(EnvironmentFault):
        emit_for_ever(log)
    log.close()


def emit_for_ever(log: EventLog) -> None:
    for _ in range(1_000_000):
        log.emit("x")


def test_an_interrupt_in_the_middle_of_a_line_leaves_a_sound_log(tmp_path):
    """Ctrl-C may come right after the operating system took the line."""

    class Interrupted(RealFiles):
        at, cut = 3, 10_000

        def write(self, handle, data):
            self.at -= 1
            done = os.write(handle, data[: self.cut] if self.at == 0 else data)
            if self.at == 0:
                raise KeyboardInterrupt
            return done

    for cut in (0, 100, 10_000):
        files = Interrupted()
        files.cut = cut
        folder = tmp_path / str(cut)
        with opened(folder, files=files) as log:
            log.emit("x", number=0)
            with pytest.raises(KeyboardInterrupt):
                log.emit("x", number=1)
            log.emit("x", number=2)
        assert verify_log(folder) == []
        numbers = [event["number"] for event in iter_events(folder, event="x")]
        assert numbers == ([0, 2] if cut == 0 else [0, 1, 2])


# reading


def test_events_of_all_writers_come_in_order_of_time(tmp_path, monkeypatch):
    clock = iter(range(1_700_000_000_000_000_000, 1_800_000_000_000_000_000, 1_000))
    monkeypatch.setattr("nx46vx.events.writer.time.time_ns", lambda: next(clock))
    with opened(tmp_path, "a", segment_bytes=1000) as a, opened(tmp_path, "b") as b:
        for number in range(10):
            (a if number % 3 else b).emit("x", number=number)
    events = list(iter_events(tmp_path))
    assert [event["ts_ns"] for event in events] == sorted(event["ts_ns"] for event in events)
    assert [event["number"] for event in iter_events(tmp_path, event="x")] == list(range(10))


def test_a_clock_that_goes_back_does_not_mix_up_a_writers_lines(tmp_path, monkeypatch):
    hour = 3_600_000_000_000
    times = [5 * hour, 6 * hour, 5 * hour, 7 * hour]
    monkeypatch.setattr("nx46vx.events.writer.time.time_ns", lambda: times.pop(0))
    written(tmp_path, 3)
    assert [event["seq"] for event in iter_events(tmp_path)] == [0, 1, 2, 3]
    assert verify_log(tmp_path) == []


def test_events_are_selected_by_name_substage_and_trial(tmp_path):
    with opened(tmp_path, "driver") as driver, opened(tmp_path, "k0") as trial:
        driver.emit("PROGRESS_UPDATE", substage="fit_kpi", candidate_id="k1")
        driver.emit("fit_kpi_other")
        trial.emit("fit_kpi")
    assert len(list(iter_events(tmp_path, event="fit_kpi"))) == 2
    assert [event["writer"] for event in iter_events(tmp_path, trial="k1")] == ["driver"]
    assert {event["event"] for event in iter_events(tmp_path, trial="k0")} == {"WRITER_OPEN", "fit_kpi"}
    assert len(list(iter_events(tmp_path, writer="driver"))) == 3
    assert list(iter_events(tmp_path / "nowhere")) == []


def test_following_shows_each_new_event_once(tmp_path):
    log = opened(tmp_path, segment_bytes=1200)
    log.emit("x", number=-1)
    seen, wanted = [], list(range(40))
    sent = iter(wanted)

    def stop() -> bool:
        """Called between two looks: the writer goes on meanwhile, through several segments."""
        for _ in range(3):
            if (number := next(sent, None)) is not None:
                log.emit("x", number=number)
        return len(seen) == len(wanted) or next(rounds) > 50

    rounds = iter(range(100))
    next(follow_events(tmp_path, stop=lambda: True), None)
    first_look = iter([False])
    follower = follow_events(tmp_path, event="x", poll_s=0.0, stop=lambda: next(first_look, None) is None and stop())
    for event in follower:
        seen.append(event["number"])
    log.close()
    assert seen == wanted
    from_start = [event["number"] for event in follow_events(tmp_path, event="x", from_start=True, stop=lambda: True)]
    assert from_start == [-1, *wanted]


def test_a_table_has_a_typed_column_per_field(tmp_path):
    pa = pytest.importorskip("pyarrow")
    with opened(tmp_path) as log:
        log.emit("x", loss=1, ok=True, mixed=1, cursor={"epoch": 0}, name="a", huge=2**63)
        log.emit("x", loss=0.5, ok=None, mixed="text", name="b")
    table = read_table(tmp_path, event="x")
    assert table.num_rows == 2
    assert table.schema.field("loss").type == pa.float64()
    assert table.schema.field("ok").type == pa.bool_()
    assert table["loss"].to_pylist() == [1.0, 0.5]
    assert table["mixed"].to_pylist() == ["1", "text"]
    assert table["cursor"].to_pylist() == ['{"epoch": 0}', None]
    assert table["huge"].to_pylist() == [str(2**63), None]
    assert table["seq"].to_pylist() == [1, 2]
    assert export_parquet(tmp_path, tmp_path / "out.parquet", event="x") == 2
    import pyarrow.parquet as pq

    assert pq.read_table(tmp_path / "out.parquet").equals(table)
    assert read_table(tmp_path, event="nothing").num_rows == 0


# verifying


def test_lines_deleted_swapped_or_repeated_are_found(tmp_path):
    anchor = written(tmp_path, 8)
    path = plain_file(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    changes = {f"deleted {n}": lines[:n] + lines[n + 1 :] for n in range(9)}
    changes |= {f"swapped {n}": [*lines[:n], lines[n + 1], lines[n], *lines[n + 2 :]] for n in range(8)}
    changes |= {f"repeated {n}": [*lines[: n + 1], *lines[n:]] for n in range(9)}
    for change, content in changes.items():
        path.write_bytes(b"".join(content))
        assert verify_log(tmp_path, [anchor]), change
        if change != "deleted 8":  # a cut tail shows only against a checkpoint
            assert verify_log(tmp_path), change
    path.write_bytes(b"".join(lines))
    assert verify_log(tmp_path, [anchor]) == []


class Remembered(RealFiles):
    """A folder's files in memory, to be changed one byte at a time."""

    def __init__(self, folder: Path) -> None:
        self.content = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.folders = {parent for path in self.content for parent in path.parents}

    def listdir(self, path):
        if path in self.content:
            raise NotADirectoryError(errno.ENOTDIR, "no folder", str(path))
        return [name.name for name in [*self.content, *self.folders] if name.parent == path]

    def exists(self, path):
        return path in self.content or path in self.folders

    def read(self, path, offset=0, size=-1):
        if path not in self.content:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return self.content[path][offset:] if size < 0 else self.content[path][offset : offset + size]


def unnoticed(folder: Path, path: Path) -> list[str]:
    """Which single-bit flips and truncations of a file, or its removal, verification does not see."""
    files = Remembered(folder)
    raw, missed = files.content[path], []
    for bit in range(8 * len(raw)):
        data = bytearray(raw)
        data[bit // 8] ^= 1 << bit % 8
        files.content[path] = bytes(data)
        if not verify_log(folder, files=files):
            missed.append(f"bit {bit}")
    for length in range(len(raw)):
        files.content[path] = raw[:length]
        if not verify_log(folder, files=files):
            missed.append(f"cut to {length}")
    del files.content[path]
    if not verify_log(folder, files=files):
        missed.append("removed")
    return missed


def test_every_flipped_bit_of_an_open_log_is_found(tmp_path):
    written(tmp_path, 3)
    path = plain_file(tmp_path)
    ends = [at + 1 for at, byte in enumerate(path.read_bytes()) if byte == 10][:-1]
    whole_lines = {"removed", "cut to 0", *(f"cut to {at}" for at in ends)}  # a shorter log, as sound as before
    assert path.stat().st_size > 1000
    assert set(unnoticed(tmp_path, path)) == whole_lines


@pytest.mark.parametrize("kind", ["00000000.jsonl.gz", "00000000.seal.json", "00000000.torn", "run_seal.json"])
def test_every_flipped_bit_and_every_truncation_of_a_sealed_run_is_found(tmp_path, kind):
    written(tmp_path, 2)
    with open(plain_file(tmp_path), "ab") as file:
        file.write(b'{"ts_ns":1')
    root = seal_run(tmp_path, {"w/ckpt-00000001": "ab"})
    assert verify_log(tmp_path) == []
    files = {path.name: path for path in tmp_path.rglob("*") if path.is_file()}
    assert set(files) == {"00000000.jsonl.gz", "00000000.seal.json", "00000000.torn", "run_seal.json"}
    missed = unnoticed(tmp_path, files[kind])
    assert missed == (["removed"] if kind == "run_seal.json" else [])  # the root that was printed tells a removed seal
    assert len(root) == 128


def test_a_cut_tail_and_a_rewritten_log_show_against_a_checkpoint(tmp_path):
    anchor = written(tmp_path, 5)
    path = plain_file(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    assert verify_log(tmp_path) == []
    (problem,) = verify_log(tmp_path, [anchor | {"path": "the checkpoint"}])
    assert problem.path == "the checkpoint"
    assert "3 lines, 6 were counted" in problem.what
    path.unlink()
    written(tmp_path, 5)  # a new, sound log of the same length
    assert verify_log(tmp_path) == []
    assert verify_log(tmp_path, [anchor])
    assert verify_log(tmp_path, [anchor | {"writer": "gone"}])


def test_problems_name_file_and_line(tmp_path):
    written(tmp_path, 5)
    path = plain_file(tmp_path)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b'"number":2', b'"number":7'))
    (problem,) = verify_log(tmp_path)
    assert (problem.path, problem.line) == (str(path), 5)


def test_writers_can_be_verified_in_parallel(tmp_path):
    anchors = [written(tmp_path, 5, writer=name) for name in "abc"]
    plain_file(tmp_path, "b").write_bytes(b"nonsense\n")
    with ThreadPoolExecutor(2) as executor:
        found = verify_log(tmp_path, anchors, executor=executor)
    assert found == verify_log(tmp_path, anchors)
    assert len(found) == 2


# the run's seal


def test_a_sealed_run_covers_every_file_and_checkpoint(tmp_path):
    events = tmp_path / "events"
    written(events, 3, writer="a")  # left open, as by a killed trial
    with opened(events, "b") as log:
        log.seal()
    root = seal_run(events, {"a/ckpt-00000001": "1" * 128})
    content = json.loads((events / "run_seal.json").read_bytes())
    assert content["root"] == root
    assert not list(events.rglob("*.jsonl"))
    assert verify_log(events) == []
    assert verify_checkpoints_sealed(events, {"a/ckpt-00000001": "1" * 128}) == []
    for other in ({}, {"a/ckpt-00000001": "2" * 128}, {"a/ckpt-00000001": "1" * 128, "b/ckpt-00000001": "3" * 128}):
        assert len(verify_checkpoints_sealed(events, other)) == 1
    (events / "stray").write_bytes(b"")
    assert len(verify_log(events)) == 1


def test_a_run_that_goes_on_keeps_its_earlier_seals(tmp_path):
    written(tmp_path, 3)
    first = seal_run(tmp_path)
    written(tmp_path, 3)
    assert verify_log(tmp_path) == []
    second = seal_run(tmp_path)
    assert first != second
    assert verify_log(tmp_path) == []
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["run_seal.0.json", "run_seal.json"]
    packed = tmp_path / "w" / "00000000.jsonl.gz"
    packed.write_bytes(packed.read_bytes()[:-1])
    assert verify_log(tmp_path)


def test_a_bomb_in_a_segments_place_is_refused_small(tmp_path):
    with opened(tmp_path) as log:
        log.emit("x")
        log.seal()
    (tmp_path / "w" / "00000000.jsonl.gz").write_bytes(gzip.compress(bytes(50_000_000), 9))
    assert verify_log(tmp_path)
    with pytest.raises(IntegrityError):
        opened(tmp_path)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_only_regular_files_are_read(tmp_path, kind):
    events = tmp_path / "events"
    written(events, 2)
    path = plain_file(events)
    outside = path.rename(tmp_path / "outside.jsonl")
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    assert verify_log(events)
    with pytest.raises(NX46Error):
        list(iter_events(events))
    with pytest.raises(NX46Error):
        opened(events)
