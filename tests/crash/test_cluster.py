"""A run on a Ray cluster that loses a node, or whose driver is lost while its trials go on."""

from __future__ import annotations

import contextlib
import random
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
    check_whole,
    commits,
    held_in_the_middle,
    session_of,
    still_there,
    trials,
    whole_config,
)  # fmt: skip
from tiny import TINY, events, iterations_done, overlaid, results, run, write_config

from nx46vx.settings import Settings
from search.cluster import prepare_environment

STORE_BYTES = 128 << 20


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


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_goes_on_without_a_node_that_was_killed(
    cluster: Any, room: Path, tiny_data: Path, reference: Path, processes: Callable[..., Process]
) -> None:
    """The node with a trial in the middle of a candidate; that candidate goes on elsewhere, from its checkpoint."""
    config, root = whole_config(room, tiny_data, "ray"), room / "run"
    address = f"resources.ray_address={cluster.address}"
    process = processes("run", "--config", config, "--out", root, "--set", address)
    wanted = random.Random("node").randrange(20, 400)
    process.wait_for(lambda: commits(root) >= wanted)
    found: list[tuple[Any, str]] = []

    def there() -> bool:
        for node in cluster.workers:
            if (held := held_in_the_middle(processes_of(node), root)) is not None:
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
    check_whole(root, reference)
    assert session_of(root) == 1
    again = [e for e in events(root, "WRITER_OPEN", all_lines=True) if e["writer"] == candidate and e["ts_ns"] > killed]
    assert again, "the candidate of the lost node was not begun again"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_trials_that_outlive_their_driver_write_while_the_next_session_runs_and_harm_nothing(
    cluster: Any, room: Path, tiny_data: Path, processes: Callable[..., Process]
) -> None:
    """The driver alone is killed, and the cluster, which stands still, does not notice: the trials go on while another
    session, without Ray, because that starts fast, takes their candidates over."""
    flat = {"data.dir": str(tiny_data), "grid.meta_neurons": 1, "grid.max_iter": 9000}
    straight, root = room / "straight", room / "run"
    run(Settings.model_validate(overlaid(TINY, flat)), straight)
    on_cluster = {"resources.executor": "ray", "resources.ray_address": cluster.address}
    config = write_config(room / "long.yaml", flat={**flat, **on_cluster})
    process = processes("run", "--config", config, "--out", root)
    process.wait_for(lambda: at_work(cluster, root) and commits(root) >= 20)
    daemons = [psutil.Process(one.pid) for one in daemons_of(cluster)]
    for one in daemons:
        one.suspend()
    try:
        assert process.kill_driver()
        killed = time.monotonic()
        last = processes("run", "--config", config, "--out", root, "--set", "resources.executor=inline")
        assert last.started - killed < 1.0
        assert last.ended() == 0, last.said
    finally:
        for one in daemons:
            one.resume()
    assert results(root) == results(straight)
    assert iterations_done(root) == iterations_done(straight)
    check_log(root)
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
