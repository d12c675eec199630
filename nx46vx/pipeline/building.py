"""Where features that are missing are computed: on a GPU, by threads of this process, or by Ray tasks with a core
each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from nx46vx.features.blocks import sample_features
from nx46vx.features.build import Sampling
from nx46vx.features.cache import Executor as Mapper
from nx46vx.features.reading import FilesAhead
from nx46vx.features.request import SampleRequest
from nx46vx.pipeline.featuring import features_on_gpu
from nx46vx.pipeline.session import Session
from nx46vx.runtime.device import CPU
from nx46vx.runtime.gpu_phases import PhaseUse
from nx46vx.runtime.memory import free_bytes
from nx46vx.settings import Settings
from search.executor import Executor
from search.resources import Resources, usable_cpus

#: Voxels from which tasks pay. Measured on two quiet cores, with Ray running, which the search needs anyway: eight of
#: 192^3 (57 million voxels) 7.0 s by tasks and 7.9 s by threads; eight of 320^3 15.4 s and 17.4 s. Threads wait for
#: one another's lock of the interpreter, the longer the more of them; a process costs 1.5 s of a core to begin.
TASK_VOXELS = 2 * 320**3

#: Memory that one case takes at 320^3, whatever the block: measured 0.67 GiB of a process.
CASE_BYTES = 700 << 20


@dataclass(frozen=True)
class Builders:
    """``mapper`` maps over cases, ``at_once`` of them; ``threads`` share the work on each, which ``sampling`` does;
    ``by``: threads, ray or gpu."""

    mapper: Mapper
    threads: int
    at_once: int
    by: str = "threads"
    sampling: Sampling = sample_features


def workers(settings: Settings) -> int:
    """How many cases are computed at once: as many as there are cores, if half of the free memory holds them."""
    if settings.features.workers != "auto":
        return settings.features.workers
    return max(1, min(usable_cpus(), free_bytes() // 2 // CASE_BYTES))


@contextmanager
def builders(
    session: Session, missing: Sequence[SampleRequest], threads: Mapper, executor: Executor | None,
    resources: Resources | None, use: PhaseUse | None = None,
) -> Iterator[Builders]:  # fmt: skip
    """What computes the missing cases. The bits are the same; nothing of it outlasts the block.

    ``threads`` maps in this process; ``executor`` may have processes, None: it is not to be asked. ``use`` is told what
    a GPU of ``resources`` did.

    Raises:
        EnvironmentFault: ``features.device`` is ``cuda`` and no GPU can.
    """
    at_once = workers(session.settings)
    each = max(1, usable_cpus() // max(1, min(at_once, len(missing))))
    if not missing:
        if use is not None:
            use.nothing_to_do()
        yield Builders(threads, each, at_once)
        return
    device = resources.device if resources is not None else CPU
    with features_on_gpu(session, device, use) as gpu, closing(FilesAhead(session.io)) as files:
        if gpu is not None:
            chosen = Builders(gpu.executor, each, gpu.at_once, "gpu", gpu.sampling)
        else:
            by_threads = Builders(threads, each, at_once)
            chosen = _on_processors(missing, by_threads, executor, resources, files, session.governor.check)
        session.log.emit(
            "FEATURE_BUILD", by=chosen.by, cases=len(missing), voxels=_voxels(missing),
            at_once=min(chosen.at_once, len(missing)), threads_each=chosen.threads,
        )  # fmt: skip
        yield chosen


def _on_processors(
    missing: Sequence[SampleRequest], threads: Builders, executor: Executor | None, resources: Resources | None,
    files: FilesAhead, check: Callable[[], None],
) -> Builders:  # fmt: skip
    """Ray tasks where they pay and are to be had, else threads. ``check`` may end them, as it may threads."""

    def queued(root: Path, request: SampleRequest) -> None:
        files(request)

    if executor is None or resources is None or len(missing) < 2 or _voxels(missing) < TASK_VOXELS:
        return threads
    tasks = executor.case_tasks(resources, threads.at_once, threads.threads, queued, check)
    return threads if tasks is None else Builders(tasks, tasks.room.cores_each, tasks.room.running, "ray")


def _voxels(missing: Sequence[SampleRequest]) -> int:
    return sum(math.prod(request.case.shape) for request in missing)
