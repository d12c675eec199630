"""A run over a Ray cluster: engines and trials on every machine, features brought to each once, a machine lost midway.

The machines are Ray nodes on this one, each with a cache of its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import Ended, events, iterations_done, results, run, start, tiny_settings, write_config

from search.cluster import prepare_environment, ray_session

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

THREE = {"grid.meta_neurons": 3}


class Machines:
    """A cluster of a head and some workers, under one token."""

    def __init__(self, **head: Any) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **head})
        self.workers: list[Any] = []

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self, **how: Any) -> Any:
        self.workers.append(self.cluster.add_node(num_cpus=1, **how))
        return self.workers[-1]

    def kill(self, node: Any) -> None:
        """As if its plug were pulled."""
        self.cluster.remove_node(node, allow_graceful=False)


@pytest.fixture
def machines() -> Iterator[Callable[..., Machines]]:
    """Makes clusters under this process's own token, the only one that Ray reads in it; ends them."""
    prepare_environment(None)
    made: list[Machines] = []

    def make(workers: int, **how: Any) -> Machines:
        made.append(Machines())
        for _ in range(workers):
            made[-1].add(**how)
        return made[-1]

    yield make
    for one in made:
        one.cluster.shutdown()


def cluster_run(config: Path, root: Path, address: str, **env: str) -> Any:
    return start("run", "--config", config, "--out", root, "--ray-address", address, env={**os.environ, **env})


def where_tasks_run(address: str) -> tuple[set[str], str]:
    """The machines that tasks for cases run on when there are more than this one has cores, and this one."""
    import ray

    from search.case_tasks import CaseTasks, room_here

    with ray_session(address, ()):
        room = room_here(3, 1)
        assert room is not None

        def node_of(_: int) -> str:
            time.sleep(0.3)  # long enough for Ray to look for other machines, if it may
            return str(ray.get_runtime_context().get_node_id())

        return set(CaseTasks(room).map(node_of, range(3))), room.node


def ended(process: Any) -> Ended:
    stdout, stderr = process.communicate(timeout=360)
    return Ended(process.returncode, stdout, stderr)


def over_ray(path: Path, data: Path, cache: Path, **more: Any) -> Path:
    given = {"data.dir": str(data), "resources.executor": "ray", "resources.node_cache_dir": str(cache)}
    return write_config(path, flat={**given, **more})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """The same run on this machine alone, without Ray: three meta-neurons, one for each machine's engine."""
    root = tmp_path_factory.mktemp("plain") / "run"
    run(tiny_settings(tiny_data, THREE), root)
    return root


def test_every_machine_has_an_engine_and_gets_the_features_once(
    tmp_path: Path, tiny_data: Path, plain: Path, machines: Callable[..., Machines]
) -> None:
    cluster, cache = machines(2), tmp_path / "cache-of-the-workers"
    root = tmp_path / "run"
    done = ended(cluster_run(over_ray(tmp_path / "c.yaml", tiny_data, cache, **THREE), root, cluster.address))
    assert done.code == 0, done.stderr
    assert results(root) == results(plain)
    nodes = events(root, "CLUSTER_NODE")
    assert len(nodes) == 3 and not any(node["numeric_differences"] for node in nodes)
    engines = events(root, "ENGINE_READY")
    assert {engine["node"] for engine in engines} == {node["node"] for node in nodes}
    assert len(engines) == 3
    entries = list((cache / "entries").glob("??/*"))
    (sent,) = events(root, "ENTRIES_SENT")
    assert len(entries) == 4  # three cases to train on and one to validate
    assert sent["entries"] == sent["times"] == 4, "two machines that share a cache were sent the same entries twice"
    again = ended(
        cluster_run(over_ray(tmp_path / "c.yaml", tiny_data, cache, **THREE), tmp_path / "again", cluster.address)
    )
    assert again.code == 0, again.stderr
    assert events(tmp_path / "again", "ENTRIES_SENT")[0]["times"] == 0
    assert results(tmp_path / "again") == results(plain)
    nodes_used, here = where_tasks_run(cluster.address)
    assert nodes_used == {here}, "the cases' files may be on this machine alone"


def test_a_student_is_trained_on_the_machine_that_the_run_was_started_on(
    tmp_path: Path, tiny_data: Path, machines: Callable[..., Machines]
) -> None:
    student = {
        "data.validation_fraction": 0.4, "student.enabled": True, "student.base_channels": 4, "student.levels": 2,
        "student.patch": [16, 16, 16], "student.steps_per_epoch": 4, "student.epochs": 1, "student.batch_size": 2,
        "student.validation_cases": 1, "student.overlap": 0.0, "student.loader_workers": 0, "student.tta": False,
    }  # fmt: skip
    run(tiny_settings(tiny_data, student), tmp_path / "plain")
    cluster, root = machines(1), tmp_path / "run"
    config = over_ray(tmp_path / "c.yaml", tiny_data, tmp_path / "cache", **student)
    done = ended(cluster_run(config, root, cluster.address))
    assert done.code == 0, done.stderr
    assert len(events(root, "STUDENT_EPOCH")) == 1 and results(root) == results(tmp_path / "plain")
    (one,), (other,) = (events(tmp_path / name, "STUDENT_FUSION") for name in ("run", "plain"))
    assert one["weights"] == other["weights"] and one["holdout"] == other["holdout"]


def test_a_machine_lost_midway_costs_time_and_no_bit(
    tmp_path: Path, tiny_data: Path, machines: Callable[..., Machines]
) -> None:
    """Enough iterations that trials and engines of the lost machine are at work when it goes."""
    longer = {"grid.max_iter": 400, "grid.meta_neurons": 3, "solver.block_iterations": 5}
    expected = tmp_path / "expected"
    run(tiny_settings(tiny_data, longer), expected)
    cluster, root = machines(2), tmp_path / "run"
    config = over_ray(tmp_path / "c.yaml", tiny_data, tmp_path / "cache", **longer)
    process = cluster_run(config, root, cluster.address)
    limit = time.monotonic() + 240
    while not root.exists() or len(list((root / "checkpoints").glob("*/ckpt-*"))) < 6:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.05)
    cluster.kill(cluster.workers[0])
    done = ended(process)
    assert done.code == 0, done.stderr
    assert results(root) == results(expected)
    assert all(done == list(range(1, 401)) for done in iterations_done(root).values())


def test_a_machine_that_does_not_see_the_run_directory_is_named_before_anything_starts(
    tmp_path: Path, tiny_data: Path, machines: Callable[..., Machines], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker looks for run directories where there are none: as if the file system were not mounted there."""
    cluster = machines(0)
    blind = tmp_path / "blind"
    blind.mkdir()
    (blind / "sitecustomize.py").write_text(
        "import os\n_open = os.open\n"
        f"def no_mount(path, *given, **options):\n    if os.fspath(path).startswith({str(tmp_path / 'run')!r}):\n"
        "        raise FileNotFoundError(2, 'No such file or directory', os.fspath(path))\n"
        "    return _open(path, *given, **options)\nos.open = no_mount\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{blind}:{os.environ.get('PYTHONPATH', '')}")
    cluster.add()
    monkeypatch.undo()
    config = over_ray(tmp_path / "c.yaml", tiny_data, tmp_path / "cache")
    done = ended(cluster_run(config, tmp_path / "run", cluster.address))
    assert done.code == 7, done.stderr
    assert "sees the run directory" in done.stderr and "it is not there" in done.stderr
    assert str(tmp_path / "run") in done.stderr and "share" in done.stderr
    assert not events(tmp_path / "run", "STAGE_START"), "work was begun"


def test_another_token_is_refused_and_said(tmp_path: Path, tiny_data: Path, machines: Callable[..., Machines]) -> None:
    cluster = machines(0)
    config = over_ray(tmp_path / "c.yaml", tiny_data, tmp_path / "cache")
    done = ended(cluster_run(config, tmp_path / "run", cluster.address, RAY_AUTH_TOKEN="0" * 64))
    assert done.code == 7, done.stderr
    assert "the Ray cluster cannot be reached" in done.stderr and "token" in done.stderr


def test_no_cluster_at_the_address_is_said(tmp_path: Path, tiny_data: Path) -> None:
    config = over_ray(tmp_path / "c.yaml", tiny_data, tmp_path / "cache")
    done = ended(cluster_run(config, tmp_path / "run", "127.0.0.1:9", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="f" * 64))
    assert done.code == 7, done.stderr
    assert "the Ray cluster cannot be reached" in done.stderr and "127.0.0.1:9" in done.stderr
