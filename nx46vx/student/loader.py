"""How patches get to the network: read in this process or in others ahead of it, whichever a short timing favours."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from nx46vx.runtime.sink import EventSink
from nx46vx.student.order import EpochOrder
from nx46vx.student.patches import PatchSource, Visit
from nx46vx.student.spec import StudentSpec

Batch = tuple[torch.Tensor, torch.Tensor]

#: Reading that takes less than this share of the computing is not worth a process.
NEGLIGIBLE = 0.05
#: A setting with more processes has to be faster than one with fewer by more than this share.
WORTH = 0.10
#: Seconds after which a process that delivers nothing is given up.
TIMEOUT = 300
#: Groups of visits timed with each setting (at least two for each process), after one that is not.
TIMED = 2


@dataclass(frozen=True)
class LoaderPlan:
    """Arguments of torch's ``DataLoader``. They change no patch and no order."""

    num_workers: int = 0
    prefetch_factor: int | None = None
    pin_memory: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        if not self.num_workers:
            return {"num_workers": 0, "pin_memory": self.pin_memory}
        # Forked, for whatever else starts a process runs the user's main module again. The processes read files and
        # compute with NumPy; one that hangs all the same is given up.
        return {
            **asdict(self), "persistent_workers": True, "multiprocessing_context": "fork", "timeout": TIMEOUT,
        }  # fmt: skip


class _Cut(Dataset[Any]):
    """A patch source as torch wants it."""

    def __init__(self, source: PatchSource) -> None:
        self._source = source

    def __getitem__(self, visit: Visit) -> tuple[np.ndarray, np.ndarray]:
        return self._source[visit]


class _Groups(Sampler[list[Visit]]):
    """The groups of visits that are wanted next; a loader asks for them anew at each of its passes."""

    def __init__(self) -> None:
        self.wanted: list[list[Visit]] = []

    def __iter__(self) -> Iterator[list[Visit]]:
        return iter(self.wanted)

    def __len__(self) -> int:
        return len(self.wanted)


class PatchLoader:
    """Batches in an order that depends on the seeds only. ``close`` ends its processes.

    ``source``: cuts the patches; what it knows of the cases by now its processes know too.
    """

    def __init__(self, spec: StudentSpec, plan: LoaderPlan, source: PatchSource | None = None) -> None:
        self.plan, self._spec = plan, spec
        self._groups = _Groups()
        # A generator of its own: else each pass draws from torch's global one.
        self._loader: DataLoader[Any] = DataLoader(
            _Cut(PatchSource(spec) if source is None else source), batch_sampler=self._groups, collate_fn=_stacked,
            generator=torch.Generator(), **plan.arguments,
        )  # fmt: skip

    def groups(self, wanted: list[list[Visit]]) -> Iterator[Batch]:
        """Patches (visits, k, 1, D, H, W) float32 and labels uint8 of each group."""
        self._groups.wanted = wanted
        yield from self._loader

    def batches(self, order: EpochOrder, first_step: int) -> Iterator[Batch]:
        """The epoch's batches from a step on, (B, 1, D, H, W): each takes one patch of every visit in a group."""
        each, size = self._spec.settings.patches_per_visit, self._spec.settings.batch_size
        group, skipped = divmod(first_step, each)
        for images, labels in self.groups(list(order.groups(size, group))):
            for number in range(skipped, each):
                yield images[:, number], labels[:, number]
            skipped = 0

    def close(self) -> None:
        iterator = getattr(self._loader, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()
            self._loader._iterator = None


def choose_loader(
    spec: StudentSpec, groups: list[list[Visit]], compute_seconds: float, sink: EventSink,
    source: PatchSource | None = None,
) -> LoaderPlan:  # fmt: skip
    """The setting that keeps the network fed, by timing a few groups of visits with each.

    ``compute_seconds``: what the network takes for a group. Processes are tried only where reading in this one would
    cost more than ``NEGLIGIBLE`` of that; where they cannot be had (no shared memory) none are used. On a GPU patches
    come through pinned memory unless it turns out slower. ``source`` learns here, once, what the timed groups need to
    know of their cases. Emits ``STUDENT_LOADER``.
    """
    pinned = spec.device == "cuda"
    asked = spec.settings.loader_workers
    if asked != "auto":
        plan = LoaderPlan(asked, 2 if asked else None, pinned)
        sink.emit("STUDENT_LOADER", **asdict(plan), persistent_workers=asked > 0, reason="asked for", timed=[])
        return plan
    probe = _Probe(spec, PatchSource(spec) if source is None else source, groups, compute_seconds)
    probe.time(LoaderPlan(0, None, pinned))
    reason = "reading takes a negligible share of the time"
    if not probe.fed:
        reason = "the fewest processes within reach of the fastest"
        try:
            for workers in sorted({1, 2, max(spec.threads // 2, 1), max(spec.threads - 1, 1)}):
                probe.time(LoaderPlan(workers, 2, pinned))
            if (busiest := probe.fastest).num_workers:
                probe.time(replace(busiest, prefetch_factor=4))
            if pinned:
                probe.time(replace(probe.fastest, pin_memory=False))
        except (RuntimeError, OSError) as error:
            reason = f"no (more) processes: {str(error).splitlines()[0][:200]}"
    chosen = probe.chosen
    sink.emit(
        "STUDENT_LOADER", **asdict(chosen), persistent_workers=chosen.num_workers > 0, reason=reason,
        compute_seconds=compute_seconds,
        timed=[{**asdict(plan), "waiting_seconds": took} for plan, took in probe.waiting.items()],
    )  # fmt: skip
    return chosen


@dataclass
class _Probe:
    """Times settings. ``waiting``: seconds that the network waits for a group with each; what is read while it
    computes costs no waiting."""

    spec: StudentSpec
    source: PatchSource
    groups: list[list[Visit]]
    compute_seconds: float
    waiting: dict[LoaderPlan, float] = field(default_factory=dict)

    def time(self, plan: LoaderPlan) -> None:
        """Time a setting, unless one already keeps the network from waiting."""
        if not self.waiting:
            self.source.learn(visit.case for group in self.groups for visit in group)
        if not self.fed:
            took = _timed(self.spec, plan, self.groups, self.source)
            self.waiting[plan] = max(took - self.compute_seconds, 0.0) if plan.num_workers else took

    @property
    def fed(self) -> bool:
        return min(self.waiting.values(), default=math.inf) <= NEGLIGIBLE * self.compute_seconds

    @property
    def fastest(self) -> LoaderPlan:
        return min(self.waiting, key=lambda plan: self.waiting[plan])

    @property
    def chosen(self) -> LoaderPlan:
        """The first that is as good as the fastest, but for ``WORTH``."""
        best = min(self.waiting.values())
        enough = best + WORTH * (self.compute_seconds + best)
        return next(plan for plan, took in self.waiting.items() if took <= enough)


def _timed(spec: StudentSpec, plan: LoaderPlan, groups: list[list[Visit]], source: PatchSource) -> float:
    """Seconds that a group takes to arrive, on the GPU if there is one, once the loader runs."""
    loader, timed = PatchLoader(spec, plan, source), max(TIMED, 2 * plan.num_workers)
    try:
        arriving = loader.groups((groups * (timed + 1))[: timed + 1])
        next(arriving)
        started = time.perf_counter()
        for image, _ in arriving:
            if spec.device == "cuda":
                image.to("cuda", non_blocking=True)
                torch.cuda.synchronize()
        return (time.perf_counter() - started) / timed
    finally:
        loader.close()


def _stacked(visits: list[tuple[np.ndarray, np.ndarray]]) -> Batch:
    return (
        torch.from_numpy(np.stack([image for image, _ in visits])),
        torch.from_numpy(np.stack([label for _, label in visits])),
    )
