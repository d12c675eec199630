"""What is to be done to train a run's students, and that without Ray: one after the other, in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nx46vx.runtime.device import CPU, DeviceChoice
from search.resources import Node, Resources

if TYPE_CHECKING:
    from trainables.student import StudentFactory


@dataclass(frozen=True)
class StudentJob:
    """The students of one run, by variant, in one session.

    ``should_stop`` is polled at least about once a second, or at each piece of work if that takes longer;
    ``may_start`` before each epoch. What was done until then is in the store. ``on_report`` is told the variant and
    its record.
    """

    factories: Mapping[str, StudentFactory]
    run: Path
    fence: int
    resources: Resources
    should_stop: Callable[[], bool]
    may_start: Callable[[], bool]
    on_report: Callable[[str, dict[str, Any]], None]


def own_node(resources: Resources) -> Node | None:
    """This machine as a cluster counts it; None where there is no cluster, or it has no part in it."""
    return next((node for node in resources.nodes if node.id == resources.here), None)


def own_device(resources: Resources) -> DeviceChoice:
    """Where students are trained and used: on this machine, which has the volumes, whatever else a cluster has."""
    if not resources.nodes:
        return resources.device
    node = own_node(resources)
    return CPU if node is None else node.device


def train_inline(job: StudentJob) -> None:
    """Train in the calling thread."""
    for variant, factory in job.factories.items():
        if job.should_stop():
            return
        with factory.open() as task:
            while not (task.done or job.should_stop() or (task.at_epoch_start and not job.may_start())):
                task.advance()
                job.on_report(variant, task.record)
