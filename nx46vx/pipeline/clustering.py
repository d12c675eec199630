"""Before a run on a Ray cluster: which machines there are, and whether each can take its part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nx46vx.pipeline.session import Session
from nx46vx.runtime.numeric import numeric_environment
from nx46vx.settings import ResourceSettings
from search.resources import Node, Resources, plan_resources


@dataclass(frozen=True)
class Machines:
    """The machines of a cluster, and Ray's id of this one; none where there is no cluster."""

    nodes: tuple[Node, ...] = ()
    here: str = ""

    def resources(self, settings: ResourceSettings) -> Resources:
        return plan_resources(settings, self.nodes, self.here)


def find_machines(settings: ResourceSettings) -> Machines:
    """The machines of the cluster that an executor has joined.

    Raises:
        EnvironmentFault: one cannot take part; says why.
    """
    from search.nodes import survey

    return Machines(*survey(settings))


def check_machines(session: Session, nodes: Sequence[Node]) -> None:
    """Say what machines there are, and refuse a run directory that one of them does not see.

    Raises:
        EnvironmentFault: names the machine.
    """
    from search.nodes import check_sees

    mine = numeric_environment("cpu")
    for node in nodes:
        differing = sorted(key for key in mine.keys() | node.numeric.keys() if mine.get(key) != node.numeric.get(key))
        session.log.emit(
            "CLUSTER_NODE", node=node.id, host=node.host, cpus=node.cpus, memory_bytes=node.memory_bytes,
            device=node.device.label, device_reason=node.device.reason, numeric_differences=differing,
        )  # fmt: skip
    check_sees(nodes, Path(session.paths.root), session.run_id)
