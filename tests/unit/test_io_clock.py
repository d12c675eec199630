"""Seconds of reading and writing: each counted once, by whatever thread, and those that passed apart from their sum."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nx46vx.data.coverage import preflight
from nx46vx.data.discovery import discover
from nx46vx.data.integrity import DigestBook
from nx46vx.features import build, reading
from nx46vx.features.cache import FeatureCache
from nx46vx.features.request import SampleRequest
from nx46vx.runtime.io_clock import READING, WRITING, IoClock
from nx46vx.runtime.sink import NullSink


class Hand:
    """A clock that is put forward by hand."""

    def __init__(self) -> None:
        self.now, self._lock = 0.0, threading.Lock()

    def on(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds

    def __call__(self) -> float:
        return self.now


def test_what_is_done_inside_is_counted_by_kind() -> None:
    hand = Hand()
    io = IoClock(hand)
    for kind, seconds in (("read_volumes", 2.0), ("write_masks", 1.0), ("read_volumes", 0.5)):
        hand.now += 10.0  # other work
        with io.counting(kind):  # type: ignore[arg-type]
            hand.now += seconds
    found = io.figures()
    assert found["kinds"] == {
        "read_volumes": {"seconds": 2.5, "times": 2}, "write_masks": {"seconds": 1.0, "times": 1},
    }  # fmt: skip
    assert (found["read_seconds"], found["write_seconds"]) == (2.5, 1.0)
    assert (found["wall_seconds"], found["alone_seconds"], found["overlapped"]) == (3.5, 3.5, False)


def test_threads_at_it_together_count_for_each_but_time_passes_once() -> None:
    hand, inside, leave = Hand(), threading.Barrier(3), threading.Barrier(3)
    io = IoClock(hand)

    def read() -> None:
        with io.counting("read_volumes"):
            inside.wait(10)
            leave.wait(10)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    inside.wait(10)
    hand.now = 4.0
    leave.wait(10)
    for thread in threads:
        thread.join()
    found = io.figures()
    assert found["kinds"]["read_volumes"] == {"seconds": 8.0, "times": 2}
    assert (found["wall_seconds"], found["alone_seconds"], found["overlapped"]) == (4.0, 0.0, True)


def test_what_fails_is_counted_too() -> None:
    hand = Hand()
    io = IoClock(hand)

    def package() -> None:
        with io.counting("package"):
            hand.now = 3.0
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        package()
    assert io.figures()["write_seconds"] == io.figures()["wall_seconds"] == 3.0


def test_nothing_read_is_nothing() -> None:
    found = IoClock().figures()
    assert found["kinds"] == {} and not found["overlapped"]
    assert found["read_seconds"] == found["write_seconds"] == found["wall_seconds"] == 0
    assert not set(READING) & set(WRITING)


def test_in_another_process_it_counts_for_itself() -> None:
    io = IoClock()
    with io.counting("write_masks"):
        pass
    away = pickle.loads(pickle.dumps(io))  # noqa: S301
    assert away.figures()["kinds"] == {} and io.told() == []
    with away.counting("read_volumes"):
        pass
    spans = away.told()
    assert [kind for kind, *_ in spans] == ["read_volumes"] and away.told() == []
    io.add(spans)
    assert set(io.figures()["kinds"]) == {"write_masks", "read_volumes"}


def test_a_case_built_in_another_process_brings_home_what_it_read_and_wrote(tmp_path: Path, tiny_data: Path) -> None:
    """A map that does as processes do: what it calls has been pickled, and what that returns."""

    def sent(what: Any) -> Any:
        return pickle.loads(pickle.dumps(what))  # noqa: S301

    class Away:
        def map(self, fn: Any, /, *given: Any) -> Any:
            return (sent(sent(fn)(*one)) for one in zip(*given, strict=True))

    with ThreadPoolExecutor(1) as pool:
        dataset = discover(tiny_data, book=DigestBook(tmp_path / "b"), sink=NullSink(), executor=pool)
    requests, io = [SampleRequest(case, "train", 0, 200, 64) for case in dataset.train[:2]], IoClock()
    FeatureCache(tmp_path / "cache", sink=NullSink(), io=io).build(requests, executor=Away())
    kinds = io.figures()["kinds"]
    assert (kinds["read_volumes"]["times"], kinds["write_features"]["times"]) == (2, 2)
    assert kinds["read_volumes"]["seconds"] > 0 and io.figures()["overlapped"]


def test_a_slow_disk_shows_in_the_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_data: Path) -> None:
    """Each volume takes a second to read, each entry ten to write; nothing else takes any."""
    hand = Hand()
    io, real_read, real_write = IoClock(hand), reading.read_volume, build.write_entry

    def slow_read(*given: Any, **how: Any) -> Any:
        hand.on(1.0)
        return real_read(*given, **how)

    def slow_write(*given: Any, **how: Any) -> None:
        hand.on(10.0)
        real_write(*given, **how)

    monkeypatch.setattr(reading, "read_volume", slow_read)
    monkeypatch.setattr(build, "write_entry", slow_write)
    with ThreadPoolExecutor(1) as pool:
        dataset = discover(tiny_data, book=DigestBook(tmp_path / "b"), sink=NullSink(), executor=pool, io=io)
        files = 2 * len(dataset.train) + len(dataset.test)
        assert io.figures()["kinds"]["read_volumes"] == {"seconds": 0.0, "times": files}
        preflight(dataset, fraction=1.0, seed=0, sink=NullSink(), io=io)
        assert io.figures()["kinds"]["read_volumes"]["times"] == files + len(dataset.train) + len(dataset.test)
        requests = [SampleRequest(case, "train", 0, 200, 64) for case in dataset.train[:2]]
        cache = FeatureCache(tmp_path / "cache", sink=NullSink(), io=io)
        before = io.figures()
        cache.build(requests, executor=pool)
        after = io.figures()
        assert after["read_seconds"] - before["read_seconds"] >= 4.0  # two pairs, and what was written meanwhile
        assert after["kinds"]["write_features"]["seconds"] >= 20.0
        assert after["kinds"]["map_features"]["times"] == 2
        assert after["wall_seconds"] == hand.now == 24.0 and after["overlapped"]
        cache.build(requests, executor=pool)
    assert io.figures()["read_seconds"] == after["read_seconds"]
    assert io.figures()["kinds"]["map_features"]["times"] == 4
