"""A run on a Ray cluster that loses a node, or whose driver is lost while its trials go on."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import (
    Process,
    candidate_of,
    check_log,
    commits,
    held_in_the_middle,
    quick_folder,
    session_of,
    still_there,
    trials,
)  # fmt: skip
from tiny import TINY, events, iterations_done, overlaid, results, run, write_config

from nx46vx.settings import Settings
from search.cluster import prepare_environment

STORE_BYTES = 128 << 20
LONG = {"grid.meta_neurons": 1, "grid.max_iter": 5000}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without processors and two nodes with one each, all on this machine, with token authentication."""
    folder = Path(tempfile.mkdtemp(prefix="nxc-", dir="/tmp"))  # Ray's socket paths have to be short
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    prepare_environment(None)
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False},
    )
    try:
        made.workers = [made.add_node(num_cpus=1, object_store_memory=STORE_BYTES) for _ in range(2)]
        yield made
    finally:
        made.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def processes_of(node: Any) -> list[psutil.Process]:
    """What a node's raylet has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True)
    return []


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Iterator[Path]:
    """Two candidates of some seconds, uninterrupted and without Ray."""
    with quick_folder(tmp_path_factory.mktemp("straight")) as folder:
        run(Settings.model_validate(overlaid(TINY, {"data.dir": str(tiny_data), **LONG})), folder / "run")
        yield folder / "run"


@pytest.fixture
def command(cluster: Any, room: Path, tiny_data: Path) -> list[object]:
    """The same two candidates over the cluster."""
    flat = {"data.dir": str(tiny_data), **LONG}
    flat |= {"resources.executor": "ray", "resources.ray_address": cluster.address}
    return ["run", "--config", write_config(room / "long.yaml", flat=flat), "--out", room / "run"]


def check_same(root: Path, straight: Path) -> None:
    assert results(root) == results(straight)
    assert iterations_done(root) == iterations_done(straight)
    check_log(root)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_goes_on_without_a_node_that_was_killed(
    cluster: Any, room: Path, straight: Path, command: list[object], processes: Callable[..., Process]
) -> None:
    """A node with a trial in the middle of a candidate, which goes on elsewhere, from its checkpoint."""
    process, root = processes(*command), room / "run"
    found: list[tuple[Any, str]] = []

    def there() -> bool:
        for node in cluster.workers if commits(root) >= 20 else []:
            if (held := held_in_the_middle(processes_of(node), root, past_a_checkpoint=True)) is not None:
                found.append((node, held[1]))
                return True
        return False

    process.wait_for(there)
    node, candidate = found[0]
    relatives = processes_of(node)
    cluster.remove_node(node, allow_graceful=False)
    for one in relatives:  # with the machine, all that ran on it
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    killed = time.time_ns()
    assert still_there(relatives) == [] and process.running
    assert process.ended() == 0, process.said
    assert session_of(root) == 1
    check_same(root, straight)
    again = [e for e in events(root, "WRITER_OPEN", all_lines=True) if e["writer"] == candidate and e["ts_ns"] > killed]
    assert again, "the candidate of the lost node was not begun again"
    assert {event["iter"] for event in events(root, "RESUME_OK") if event["writer"] == candidate}, (
        "not from a checkpoint"
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trials_that_outlive_their_driver_write_while_the_next_session_runs_and_harm_nothing(
    cluster: Any, room: Path, straight: Path, command: list[object], processes: Callable[..., Process]
) -> None:
    """The driver alone is killed while the cluster stands still, as if its machines had been put to sleep. When another
    session (without Ray, because that starts fast) is about to search, the old trials wake up, and go on."""
    process, root = processes(*command), room / "run"
    process.wait_for(lambda: at_work(cluster, root) and commits(root) >= 20)
    daemons = [psutil.Process(one.pid) for one in daemons_of(cluster)]
    workers = [one for node in cluster.list_all_nodes() for one in processes_of(node)]
    try:
        for one in [*daemons, *workers]:
            one.suspend()
        assert process.kill_driver()
        killed = time.monotonic()
        last = processes(*command, "--set", "resources.executor=inline")
        assert last.started - killed < 1.0
        last.wait_for(lambda: "features: " in last.said)
        for one in workers:
            one.resume()
        assert last.ended() == 0, last.said
    finally:
        for one in [*daemons, *workers]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.resume()
    check_same(root, straight)
    began = next(event["ts_ns"] for event in events(root, "BOOT") if event["fence"] == 2)
    late = [e for e in events(root, all_lines=True) if e["fence"] == 1 and e["ts_ns"] > began]
    assert late, "the old trials had nothing left to write when the new session began"


def at_work(cluster: Any, root: Path) -> int:
    """How many candidates the trials on a cluster have open."""
    found = {candidate_of(one, root) for node in cluster.workers for one in trials(processes_of(node))}
    return len(found - {None})


def daemons_of(cluster: Any) -> list[Any]:
    """The processes that would end the trials of a lost driver."""
    found = [node.all_processes["raylet"][0].process for node in cluster.list_all_nodes()]
    return [*found, cluster.head_node.all_processes["gcs_server"][0].process]
