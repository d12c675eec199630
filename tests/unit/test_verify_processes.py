"""Verifying a log in several processes finds what verifying it in one does."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

import pytest

from nx46vx.events import EventLog, checking_processes, verify, verify_log


@pytest.fixture
def log_of_three(tmp_path):
    for writer in ("a", "b", "c"):
        with EventLog(tmp_path, writer, run_id="r", background_sync_s=None) as log:
            log.emit_many("x", [{"number": number} for number in range(20)])
            if writer != "c":
                log.seal()
    return tmp_path


def test_a_small_log_is_not_worth_a_process(log_of_three):
    with checking_processes(log_of_three) as executor:
        assert executor is None
    with checking_processes(log_of_three / "nowhere") as executor:
        assert executor is None


def test_processes_find_the_same_problems(log_of_three, monkeypatch):
    monkeypatch.setattr(verify, "WORTH_PROCESSES", 1)
    monkeypatch.setattr(verify, "usable_cores", lambda: 2)
    anchors = [{"writer": "a", "count": 21, "head": "0" * 128}, {"writer": "gone", "count": 3, "head": "0" * 128}]
    plain = log_of_three / "c" / "00000000.jsonl"
    plain.write_bytes(plain.read_bytes().replace(b'"number":7', b'"number":8'))
    with checking_processes(log_of_three) as executor:
        assert isinstance(executor, ProcessPoolExecutor)
        found = verify_log(log_of_three, anchors, executor=executor)
    assert found == verify_log(log_of_three, anchors)
    assert len(found) == 3
