"""Where missing features are computed: threads for little, processes for much, every core used by either."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import tiny_settings

from nx46vx.data.discovery import Case
from nx46vx.features import reading
from nx46vx.features.request import SampleRequest
from nx46vx.pipeline import building
from nx46vx.runtime.device import CPU
from nx46vx.runtime.io_clock import IoClock
from nx46vx.runtime.sink import MemorySink

SHAPE = (320, 320, 320)


class Processes:
    """An executor whose processes are asked for, and not used."""

    def __init__(self, cores: int) -> None:
        self.cores, self.asked = cores, list[tuple[int, int]]()
        self.queued: Callable[..., None] = lambda *_: None

    def case_tasks(
        self, resources: Any, at_once: int, cores_each: int, on_queued: Callable[..., None],
        on_wait: Callable[[], None],
    ) -> Any:  # fmt: skip
        self.asked.append((at_once, cores_each))
        self.queued = on_queued
        if not self.cores:
            return None
        return SimpleNamespace(room=SimpleNamespace(cores_each=min(cores_each, self.cores), running=at_once))


def requests_of(count: int, shape: tuple[int, int, int] = SHAPE) -> list[SampleRequest]:
    paths = Path("image.tif"), Path("label.tif")
    return [
        SampleRequest(Case(f"case{k}", *paths, shape, f"i{k}", f"l{k}", None), "train", 0, 100, 64)
        for k in range(count)
    ]


def chosen(
    missing: list[SampleRequest], executor: Any, monkeypatch: pytest.MonkeyPatch, *, cpus: int = 8,
    workers: str | int = "auto",
) -> tuple[str, int, dict[str, Any]]:  # fmt: skip
    monkeypatch.setattr(building, "usable_cpus", lambda: cpus)
    session: Any = SimpleNamespace(
        settings=tiny_settings(None, {"features.workers": workers}), log=MemorySink(), io=IoClock(),
        governor=SimpleNamespace(check=lambda: None),
    )  # fmt: skip
    resources: Any = SimpleNamespace(device=CPU)
    with ThreadPoolExecutor(1) as threads, building.builders(session, missing, threads, executor, resources) as by:
        assert (by.mapper is threads) == (by.by == "threads")
    told = session.log.named("FEATURE_BUILD")
    return by.by, by.threads, told[0] if told else {}


def test_much_goes_to_processes_and_little_to_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Processes(8)
    by, each, told = chosen(requests_of(40), executor, monkeypatch)
    assert (by, each, executor.asked) == ("ray", 1, [(8, 1)])
    assert (told["by"], told["cases"], told["voxels"], told["at_once"]) == ("ray", 40, 40 * 320**3, 8)
    assert chosen(requests_of(40, (64, 64, 64)), executor, monkeypatch)[0] == "threads"
    assert chosen(requests_of(1, (900, 900, 900)), executor, monkeypatch)[:2] == ("threads", 8), "one case, one process"
    assert chosen([], executor, monkeypatch)[2] == {}
    assert chosen(requests_of(40), None, monkeypatch)[0] == "threads"
    assert len(executor.asked) == 1, "processes are not asked for in vain"
    assert chosen(requests_of(40), Processes(0), monkeypatch)[0] == "threads", "there are none to be had"


def test_no_more_cases_at_once_than_half_of_the_free_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "usable_cpus", lambda: 64)
    settings, case = tiny_settings(None, {"features.workers": "auto"}), building.CASE_BYTES
    for free, expected in ((1000 * case, 64), (20 * case, 10), (case, 1)):
        monkeypatch.setattr(building, "free_bytes", lambda free=free: free)
        assert building.workers(settings) == expected
    assert building.workers(tiny_settings(None, {"features.workers": 7})) == 7


@pytest.mark.parametrize(
    ("count", "cpus", "workers", "each"), [(4, 8, "auto", 2), (40, 8, "auto", 1), (40, 8, 2, 4), (40, 2, 16, 1)]
)
def test_cores_are_shared_among_the_cases_that_are_computed_at_once(
    monkeypatch: pytest.MonkeyPatch, count: int, cpus: int, workers: str | int, each: int
) -> None:
    assert chosen(requests_of(count), Processes(cpus), monkeypatch, cpus=cpus, workers=workers)[1] == each


def test_files_of_a_case_are_read_when_it_is_queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    through, io = reading.FilesAhead._read_through, IoClock()

    def noted(self: reading.FilesAhead, path: Path) -> None:
        through(self, path)
        read.append(path)

    monkeypatch.setattr(reading.FilesAhead, "_read_through", noted)
    (tmp_path / "image.tif").write_bytes(bytes(9_000_000))
    paths = tmp_path / "image.tif", tmp_path / "there-is-none.tif"
    files = reading.FilesAhead(io)
    files(SampleRequest(Case("case", *paths, SHAPE, "i", "l", None), "train", 0, 100, 64))
    files._pool.shutdown(wait=True)
    assert read == [paths[1], paths[0]], "one that cannot be read is for its reader to name"
    assert io.figures()["kinds"]["read_ahead"]["times"] == 2
