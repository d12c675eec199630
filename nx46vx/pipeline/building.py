"""Where features that are missing are computed: by threads of this process, or by Ray tasks with a core each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from nx46vx.features.cache import Executor as Mapper
from nx46vx.features.reading import FilesAhead
from nx46vx.features.request import SampleRequest
from nx46vx.pipeline.session import Session
from nx46vx.settings import Settings
from search.executor import Executor
from search.resources import Resources, usable_cpus

#: Voxels from which tasks pay. Measured on two quiet cores, with Ray running, which the search needs anyway: eight of
#: 192^3 (57 million voxels) 7.0 s by tasks and 7.9 s by threads; eight of 320^3 15.4 s and 17.4 s. Threads wait for
#: one another's lock of the interpreter, the longer the more of them; a process costs 1.5 s of a core to begin.
TASK_VOXELS = 2 * 320**3


@dataclass(frozen=True)
class Builders:
    """``mapper`` maps over cases, ``at_once`` of them; ``threads`` share the work on each; ``by``: threads or ray."""

    mapper: Mapper
    threads: int
    at_once: int
    by: str = "threads"


def workers(settings: Settings) -> int:
    """How many cases are computed at once."""
    return usable_cpus() if settings.features.workers == "auto" else settings.features.workers


@contextmanager
def builders(
    session: Session, missing: Sequence[SampleRequest], threads: Mapper, executor: Executor | None,
    resources: Resources | None,
) -> Iterator[Builders]:  # fmt: skip
    """What computes the missing cases. The bits are the same; nothing of it outlasts the block.

    ``threads`` maps in this process; ``executor`` may have processes, None: it is not to be asked.
    """
    at_once = workers(session.settings)
    each = max(1, usable_cpus() // max(1, min(at_once, len(missing))))
    voxels = sum(math.prod(request.case.shape) for request in missing)
    with closing(FilesAhead()) as files:

        def queued(root: Path, request: SampleRequest) -> None:
            files(request)

        chosen = Builders(threads, each, at_once)
        if executor is not None and resources is not None and len(missing) > 1 and voxels >= TASK_VOXELS:
            tasks = executor.case_tasks(resources, at_once, each, queued)
            if tasks is not None:
                chosen = Builders(tasks, tasks.room.cores_each, tasks.room.running, "ray")
        if missing:
            session.log.emit(
                "FEATURE_BUILD", by=chosen.by, cases=len(missing), voxels=voxels,
                at_once=min(chosen.at_once, len(missing)), threads_each=chosen.threads,
            )  # fmt: skip
        yield chosen
