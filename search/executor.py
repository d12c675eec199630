"""What an executor is: runs candidates to the end of an epoch, by whatever means, with the same bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from nx46vx.model.blocks import LaneRequest
from nx46vx.model.fitplan import FitPlan
from nx46vx.runtime.sink import EventSink
from search.resources import Resources
from search.source import CandidateSource
from trainables.task import Keeping


@dataclass(frozen=True)
class SearchJob:
    """One epoch of the search over one run directory.

    ``expected``: where the pending candidates will start from, for the engine to go ahead; a wrong guess costs time
    only. ``until``: the iteration every candidate is to reach. ``should_stop`` is polled about once a second and ends
    the search early; all that was done until then is in the store. ``on_progress`` is told (done, total, in flight)
    when a candidate is complete, ``on_report`` (candidate_id, iterations committed) as trials report. While
    ``may_start`` says no, no further candidate is begun. ``accelerated`` says whether ``most_in_flight`` trials may
    run. ``keeping``: how checkpoints are kept.
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

    def in_flight(self) -> int:
        """How many trials may run at once now."""
        return self.resources.most_in_flight if self.accelerated() else self.resources.trials_in_flight


class Executor(Protocol):
    """Runs a job; results are in ``job.source.records`` and in the store."""

    def run(self, job: SearchJob) -> None:
        """Raises whatever a trial raised, once its retries are used up."""
        ...

    def close(self) -> None: ...
