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

#: Voxels from which tasks pay: four volumes of 320^3. Measured: a voxel takes 0.12 us of one core; threads lose 10 % of
#: their time to one another's lock of the interpreter where two of them run, 30 % where four do; a process takes about
#: a second longer to begin than a thread, Ray's own start not counted, which the search needs anyway.
TASK_VOXELS = 4 * 320**3


@dataclass(frozen=True)
class Builders:
    """``mapper`` maps over cases; ``threads`` share the work on each; ``by``: threads or ray."""

    mapper: Mapper
    threads: int
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

        chosen = Builders(threads, each)
        if executor is not None and resources is not None and len(missing) > 1 and voxels >= TASK_VOXELS:
            tasks = executor.case_tasks(resources, at_once, each, queued)
            if tasks is not None:
                chosen = Builders(tasks, tasks.room.cores_each, "ray")
        if missing:
            session.log.emit(
                "FEATURE_BUILD", by=chosen.by, cases=len(missing), voxels=voxels, at_once=min(at_once, len(missing)),
                threads_each=chosen.threads,
            )  # fmt: skip
        yield chosen
