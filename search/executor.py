"""What an executor is: runs candidates to the end of an epoch, by whatever means, with the same bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nx46vx.model.blocks import LaneRequest
from nx46vx.model.fitplan import FitPlan
from nx46vx.runtime.sink import EventSink
from search.resources import Resources, Spot
from search.source import CandidateSource
from search.tally import Tally
from trainables.task import Keeping

if TYPE_CHECKING:
    from search.case_tasks import CaseTasks

#: A trial's process takes some seconds to start, more on a busy machine.
START_SECONDS = 5.0


@dataclass(frozen=True)
class SearchJob:
    """One epoch of the search over one run directory.

    ``expected``: where the pending candidates will start from, for the engine to go ahead; a wrong guess costs time
    only. ``until``: the iteration every candidate is to reach. ``should_stop`` is polled about once a second and ends
    the search early; all that was done until then is in the store. ``on_progress`` is told (done, total, in flight)
    when a candidate is complete, ``on_report`` (candidate_id, iterations committed) as trials report. While
    ``may_start`` says no, no further candidate is begun. ``accelerated`` says whether ``most_in_flight`` trials may
    run. ``keeping``: how checkpoints are kept. ``node_cache``: the feature cache on other machines of a cluster, if not
    the same path. ``tally`` is added to.
    """

    plan: FitPlan
    run: Path
    cache: Path
    source: CandidateSource
    expected: tuple[LaneRequest, ...]
    until: int
    fence: int
    resources: Resources
    sink: EventSink
    should_stop: Callable[[], bool]
    may_start: Callable[[], bool]
    on_progress: Callable[[int, int, int], None]
    on_report: Callable[[str, int], None]
    keeping: Keeping = field(default_factory=Keeping)
    accelerated: Callable[[], bool] = lambda: False
    node_cache: Path | None = None
    tally: Tally = field(default_factory=Tally)

    def in_flight(self) -> int:
        """How many trials may run at once now. Further ones pay only if trials last longer than their starts."""
        more = self.accelerated() and self.source.last_seconds > START_SECONDS
        return self.resources.most_in_flight if more else self.resources.trials_in_flight

    def cache_at(self, spot: Spot) -> Path:
        """The feature cache that an engine uses."""
        away = spot.node not in ("", self.resources.here) and self.node_cache is not None
        return self.node_cache if away and self.node_cache is not None else self.cache


class Executor(Protocol):
    """Runs jobs; results are in ``job.source.records`` and in the store."""

    def run(self, job: SearchJob) -> None:
        """Raises whatever a trial raised, once its retries are used up."""
        ...

    def connect(self, gpus: Sequence[str] = ()) -> None:
        """Get ready, where that takes long or may fail; ``run`` does it otherwise."""
        ...

    def case_tasks(
        self, resources: Resources, at_once: int, cores_each: int, on_queued: Callable[..., None],
        on_wait: Callable[[], None],
    ) -> CaseTasks | None:  # fmt: skip
        """What maps over processes on this machine (see ``search.case_tasks``); None where there are none to be had."""
        ...

    def close(self) -> None: ...
