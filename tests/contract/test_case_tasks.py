"""The map over Ray tasks: the order, errors and bits of a map over threads, and what becomes of killed processes."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from tiny import events, tiny_settings, tree

from nx46vx.errors import DataError, EnvironmentFault
from nx46vx.features.cache import FeatureCache
from nx46vx.features.request import SampleRequest
from nx46vx.pipeline import building
from nx46vx.pipeline.dataset import Cases, find_cases
from nx46vx.pipeline.fit import load_samples
from nx46vx.pipeline.run import make_executor
from nx46vx.pipeline.session import Session, open_session
from nx46vx.runtime.sink import MemorySink
from nx46vx.runtime.stop import StopFlag
from search import tune_runner
from search.case_tasks import CaseTasks
from search.executor import Executor
from search.resources import Resources, plan_resources
from search.tally import Tally
from search.tune_runner import TuneExecutor

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the processes cannot import it
FLAT = {"resources.executor": "ray", "features.workers": 2}


@pytest.fixture(scope="module")
def executor(tiny_data: Path) -> Iterator[Executor]:
    made = make_executor(tiny_settings(tiny_data, FLAT))
    yield made
    made.close()


@pytest.fixture(scope="module")
def resources(tiny_data: Path) -> Resources:
    return plan_resources(tiny_settings(tiny_data).resources)


@pytest.fixture
def tasks(executor: Executor, resources: Resources) -> CaseTasks:
    return tasks_of(executor, resources)


def tasks_of(
    executor: Executor, resources: Resources, at_once: int = 2, on_queued: Callable[..., None] = lambda *_: None,
    on_wait: Callable[[], None] = lambda: None,
) -> CaseTasks:  # fmt: skip
    made = executor.case_tasks(resources, at_once, 1, on_queued, on_wait)
    assert made is not None
    return made


def wait(seconds: float, name: str) -> tuple[str, int]:
    time.sleep(seconds)
    return name, os.getpid()


def refuse(place: int) -> int:
    if place >= 2:
        raise DataError("this one is bad", where=f"call {place}", found="nothing", fix="leave it out")
    return place


def die_once(mark: Path) -> str:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def test_results_come_in_order_and_few_calls_are_under_way(executor: Executor, resources: Resources) -> None:
    queued: list[str] = []
    tasks = tasks_of(executor, resources, 1, lambda seconds, name: queued.append(name))
    names = [f"case{k}" for k in range(40)]
    results = tasks.map(wait, [0.2, *[0.0] * 39], names)
    assert queued == [], "nothing is begun before it is asked for"
    first = next(results)
    assert len(queued) <= tasks.room.in_flight + 1
    told = [first, *results]
    assert [name for name, _ in told] == queued == names
    assert os.getpid() not in {pid for _, pid in told}


def test_the_first_call_that_fails_ends_it_with_its_own_error(tasks: CaseTasks) -> None:
    results = tasks.map(refuse, range(6))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(DataError) as caught:
        next(results)
    assert type(caught.value) is DataError and caught.value.exit_code == 4
    assert (caught.value.where, caught.value.fix) == ("call 2", "leave it out")


def test_while_no_call_ends_the_map_can_be_ended(executor: Executor, resources: Resources) -> None:
    """As by a time limit, or by the first Ctrl-C, however long the calls take."""

    def enough() -> None:
        raise DataError("enough", where="here", found="time", fix="wait")

    calls, started = tasks_of(executor, resources, on_wait=enough).map(wait, [60.0] * 3, "abc"), time.monotonic()
    with pytest.raises(DataError, match="enough"):
        next(calls)
    assert time.monotonic() - started < 30


def test_rays_start_is_told_by_the_first_search_and_once(
    executor: Executor, resources: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began when the first map was asked for, not in a search."""
    told: list[tuple[float, float]] = []
    monkeypatch.setattr(TuneExecutor, "_search", lambda *_: None)
    monkeypatch.setattr(tune_runner, "Engines", lambda _: SimpleNamespace(stats=list, end=lambda: None))
    tasks_of(executor, resources)
    for _ in range(2):
        job: Any = SimpleNamespace(resources=resources, sink=MemorySink(), tally=Tally())
        executor.run(job)
        told.append((job.tally.ray_init_seconds, job.tally.search_seconds))
    (first, whole), (second, _) = told
    assert 0.3 < first <= whole and second < 0.1


def test_a_call_whose_process_is_killed_is_made_again(tasks: CaseTasks, tmp_path: Path) -> None:
    assert list(tasks.map(die_once, [tmp_path / "mark"])) == ["done"]


def test_a_call_whose_process_is_always_killed_is_said(
    executor: Executor, resources: Resources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.case_tasks.RETRIES", 0)
    with pytest.raises(EnvironmentFault, match=r"killed.*features\.workers"):
        next(tasks_of(executor, resources).map(die_once, [tmp_path / "mark"]))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Iterator[tuple[Session, Cases]]:
    root, cache = tmp_path_factory.mktemp("built") / "run", tmp_path_factory.mktemp("cache")
    settings = tiny_settings(tiny_data, {**FLAT, "features.cache_dir": str(cache)})
    with open_session(root, settings, StopFlag(), fresh=True) as session, ThreadPoolExecutor(2) as threads:
        yield session, find_cases(session, threads)


def entries(cache: Path) -> dict[str, str]:
    return {name: digest for name, (digest, _) in tree(cache / "entries").items()}


def test_a_run_builds_the_same_bytes_through_ray_as_in_threads(
    prepared: tuple[Session, Cases], executor: Executor, resources: Resources, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    session, cases = prepared
    monkeypatch.setattr(building, "TASK_VOXELS", 1)
    with ThreadPoolExecutor(2) as threads:
        load_samples(session, cases, threads, executor=executor, resources=resources)
        requests = cases.requests(session)
        FeatureCache(tmp_path, sink=MemorySink()).build(requests, executor=threads)
    (told,) = events(session.paths.root, "FEATURE_BUILD")
    assert (told["by"], told["cases"], told["threads_each"]) == ("ray", len(requests), 1)
    assert entries(session.cache_dir) == entries(tmp_path)
    assert len(entries(tmp_path)) == 5 * len(requests)
    assert session.io.figures()["kinds"]["write_features"]["times"] == len(requests), "tasks tell what they wrote"


def test_a_case_that_cannot_be_read_fails_the_build_and_keeps_the_others(
    prepared: tuple[Session, Cases], tasks: CaseTasks, tmp_path: Path
) -> None:
    session, cases = prepared

    def broken(request: SampleRequest) -> SampleRequest:
        return dataclasses.replace(request, case=dataclasses.replace(request.case, image=tmp_path / "gone.tif"))

    first, second, *_ = cases.requests(session)
    cache, done = FeatureCache(tmp_path / "cache", sink=MemorySink()), list[str]()
    with pytest.raises(DataError, match=r"gone\.tif") as caught:
        cache.build([first, broken(second)], executor=tasks, on_done=lambda s: done.append(s.case_id))
    assert type(caught.value) is DataError
    assert done == [first.case.case_id] and cache.has(first.key) and not cache.has(second.key)
