"""The machines of a Ray cluster: what each has, and whether each sees what the run needs."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nx46vx import __version__
from nx46vx.errors import EnvironmentFault, NX46Error
from nx46vx.paths import RunPaths
from nx46vx.runtime.device import CPU, DeviceChoice, choose_device
from nx46vx.runtime.numeric import numeric_environment
from nx46vx.runtime.record import read_record
from nx46vx.settings import ResourceSettings
from search.resources import Node

#: Longest that a machine may take to answer.
SECONDS = 90.0


def survey(settings: ResourceSettings) -> tuple[tuple[Node, ...], str]:
    """The machines of the cluster that this process is connected to, and which of them is this one.

    Raises:
        EnvironmentFault: one does not answer, or its GPUs are in use by others; another version of this program is
            there; a GPU is asked for and none runs a kernel.
    """
    alive = sorted((one for one in ray.nodes() if one["Alive"]), key=lambda one: str(one["NodeID"]))
    facts = _ask(
        [str(one["NodeID"]) for one in alive], lambda number: (_look, (settings.device, settings.gpu_policy)),
        [float(one["Resources"].get("GPU", 0.0)) if settings.device != "cpu" else 0.0 for one in alive],
    )  # fmt: skip
    nodes = []
    for one, found in zip(alive, facts, strict=True):
        if found["version"] != __version__:
            raise EnvironmentFault(
                "a machine of the cluster has another version of this program", where=_named(one, found),
                found=f"{found['version']} instead of {__version__}", fix="install the same version on all machines",
            )  # fmt: skip
        cpus = max(int(one["Resources"].get("CPU", 1)), 1)
        nodes.append(Node(str(one["NodeID"]), found["host"], cpus, found["memory_bytes"], found["device"],
                          found["numeric"]))  # fmt: skip
    if settings.device == "cuda" and not any(node.device.gpus for node in nodes):
        raise EnvironmentFault(
            "the configuration asks for a GPU", where="resources.device",
            found="; ".join(f"{node.host}: {node.device.reason}" for node in nodes),
            fix="set resources.device to cpu or auto, or add a machine with a GPU to the cluster",
        )  # fmt: skip
    return tuple(nodes), str(ray.get_runtime_context().get_node_id())


def check_sees(nodes: Sequence[Node], run: Path, run_id: str) -> None:
    """Every machine reads and writes the run directory.

    Raises:
        EnvironmentFault: one does not; names it.
    """
    answers = _ask([node.id for node in nodes], lambda number: (_see, (str(run), run_id)), [0.0] * len(nodes))
    blind = [f"{node.host}: {answer}" for node, answer in zip(nodes, answers, strict=True) if answer]
    if blind:
        raise EnvironmentFault(
            "not every machine of the cluster sees the run directory", where=run, found="; ".join(blind),
            fix="put --out on a file system that all machines share, under the same path",
        )  # fmt: skip


def _ask(
    ids: Sequence[str], task: Callable[[int], tuple[Callable[..., Any], tuple[Any, ...]]], gpus: Sequence[float]
) -> list[Any]:
    """Run a task on each machine and wait for all answers."""
    asked = []
    for number, node in enumerate(ids):
        function, arguments = task(number)
        options: dict[str, Any] = {
            "num_cpus": 0, "num_gpus": gpus[number], "max_retries": 2,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
        }  # fmt: skip
        remote: Any = ray.remote(**options)(function)
        asked.append(remote.remote(*arguments))
    late = ray.wait(asked, num_returns=len(asked), timeout=SECONDS)[1]
    if late:
        silent = [node for node, one in zip(ids, asked, strict=True) if one in late]
        raise EnvironmentFault(
            "machines of the cluster do not answer", where=", ".join(silent),
            found=f"nothing for {SECONDS:.0f} s: they cannot be reached, or others use their GPUs",
            fix="look at `ray status`, or leave those machines out of the cluster",
        )  # fmt: skip
    try:
        return ray.get(asked)
    except NX46Error:
        raise
    except ray.exceptions.RayError as error:
        raise EnvironmentFault(
            "a machine of the cluster cannot take part", found=str(error).strip().splitlines()[-1],
            fix="install the same Python and the same version of this program on all machines",
        ) from error  # fmt: skip


def _look(asked: Any, policy: Any) -> dict[str, Any]:
    """What this machine has; runs there. Ray shows it the GPUs that it may use, and no others."""
    device: DeviceChoice = CPU
    if asked != "cpu":
        device = choose_device("auto", policy)
    return {
        "host": platform.node(), "version": __version__, "memory_bytes": psutil.virtual_memory().available,
        "device": device, "numeric": numeric_environment("cpu"),
    }  # fmt: skip


def _see(run: str, run_id: str) -> str:
    """Why this machine cannot use the run directory, in words; empty if it can. Runs there."""
    paths = RunPaths(Path(run))
    try:
        found = read_record(paths.identity).get("run_id")
        if found != run_id:
            return f"another run is there ({found})"
        mark = paths.root / f".{uuid.uuid4().hex}.tmp"
        mark.write_bytes(b"")
        mark.unlink()
    except FileNotFoundError:
        return "it is not there"
    except (OSError, NX46Error) as error:
        return str(error)
    return ""


def _named(one: dict[str, Any], found: dict[str, Any]) -> str:
    return f"{found['host']} (node {str(one['NodeID'])[:12]})"
