"""The profile of a session: measured on the way, written at its end as a file and as an event."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from nx46vx.model.fitplan import FitPlan
from nx46vx.paths import cache_root
from nx46vx.pipeline.session import Session
from nx46vx.runtime.atomic import write_json
from nx46vx.runtime.digest import digest_json
from nx46vx.runtime.profile import LogCost, MemoryPeaks, RunTimes, summarise
from nx46vx.settings import Settings
from search.tally import Tally

#: What the report repeats of the profile.
SHORT = ("wall_seconds", "outside_phases", "parts", "io", "answers", "rates", "memory", "speedup")


@dataclass
class Profiler:
    """What a session has measured so far. ``started``: when it began, on ``time.monotonic``; ``phases``: seconds of the
    stages that are through or failed; ``samples``: training samples."""

    session: Session
    started: float = field(default_factory=time.monotonic)
    phases: dict[str, float] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    peaks: MemoryPeaks = field(default_factory=MemoryPeaks)
    plan: FitPlan | None = None
    samples: int = 0
    test_cases: int = 0
    figures: dict[str, Any] | None = None

    def finish(self, *, complete: bool) -> dict[str, Any]:
        """Write ``RUN_PROFILE_SUMMARY.json`` and the event; returns the figures. Done once; later calls recall it.

        A run that was trained from its start to its end in this one session is what later runs of the same plan are
        compared with.
        """
        if self.figures is not None:
            return self.figures
        session, tally, plan = self.session, self.tally, self.plan
        self.peaks.read()
        wall = time.monotonic() - self.started
        times = RunTimes(cache_root(session.settings.features.cache_dir) / "run_seconds.json")
        digest = None if plan is None else _comparable(plan, session.settings, self.test_cases)
        whole = complete and session.fence == 1
        self.figures = {
            "run_id": session.run_id, "session": session.fence, "complete": complete, "whole_in_one_session": whole,
            "plan_digest": digest,
            **summarise(
                wall_seconds=wall, phases=self.phases,
                search={**asdict(tally), "overhead_seconds": tally.overhead_seconds},
                driver_log=LogCost(session.log.written, session.log.seconds), io=session.io.figures(),
                samples=self.samples, candidates=tally.trials, memory=self.peaks.to_json(),
                previous=times.get(digest) if whole and digest is not None else None,
            ),
        }  # fmt: skip
        write_json(session.paths.profile, self.figures)
        session.log.emit("RUN_PROFILE_SUMMARY", **{key: item for key, item in self.figures.items() if key != "run_id"})
        if whole and digest is not None:
            times.put(digest, wall, self.phases["train_supervised"])
        return self.figures


def short(figures: dict[str, Any]) -> dict[str, Any]:
    """The part of a profile that goes into the report; those of earlier versions may lack some."""
    return {key: figures[key] for key in SHORT if key in figures}


def _comparable(plan: FitPlan, settings: Settings, test_cases: int) -> str:
    """Digest of what makes two runs the same work: data, neurons, grid, iterations, and what comes after the grid."""
    after = settings.model_dump(mode="json", include={"epochs", "growth", "student", "mask"})
    return digest_json(
        {
            **after, "test_cases": test_cases,
            "train": plan.train_keys, "validation": plan.validation_keys, "l1": plan.l1, "l2": plan.l2,
            "max_iter": plan.max_iter, "method": plan.method, "neurons": [spec.digest for spec in plan.neurons],
        }
    )  # fmt: skip
