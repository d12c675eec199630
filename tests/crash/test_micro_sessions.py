"""Many sessions that run out of time one after the other give what one long session gives."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from processes import check_log
from tiny import TINY, WHOLE, Interrupted, events, iterations_done, overlaid, results, run, table

from nx46vx.errors import StoppedError
from nx46vx.paths import RunPaths
from nx46vx.pipeline import governing
from nx46vx.pipeline import session as session_room
from nx46vx.runtime.budget import Governor
from nx46vx.settings import Settings
from search.executor import SearchJob
from search.inline import InlineExecutor

#: Two meta-neurons of fifteen candidates, and what growth adds to them.
GROWS: dict[str, Any] = overlaid(
    TINY,
    {
        "grid.l1": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2], "grid.l2": [1e-4, 1e-3, 1e-2], "growth.enabled": True,
        "growth.max_meta_neurons": 4,
    },
)  # fmt: skip

#: How a session's time ends: enough is left to package, or only to finish what is begun, or nothing at all.
ENDINGS = ("stop", "drain", "over")


@dataclass
class Clock:
    """The governor's clock; stands still unless it is told what time it is."""

    seconds: float = 0.0
    governor: Governor | None = None

    def __call__(self) -> float:
        return self.seconds

    def end(self, how: str) -> None:
        """Move on to where the governor has to end the session in this way."""
        governor = self.governor
        assert governor is not None
        left = {
            "stop": governor.margin + 1e-6,
            "drain": governor.remaining - governor.until_stop + 0.5 * (governor.costs.p95("candidate") or 0.0),
            "over": 0.0,
        }  # fmt: skip
        self.seconds += governor.remaining - left[how]


@dataclass
class OutOfTime:
    """The inline executor; at the n-th time a trial looks whether it should stop, the session's time is up."""

    clock: Clock
    looks: int
    how: str

    def run(self, job: SearchJob) -> None:
        def look() -> bool:
            self.looks -= 1
            if self.looks == 0:
                self.clock.end(self.how)
            return job.should_stop()

        InlineExecutor().run(replace(job, should_stop=look))

    def close(self) -> None:
        return None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Laid under the real governor of each session, which begins when its clock says so."""
    made = Clock()
    real = governing.make_governor

    def recorded(*given: Any) -> Governor:
        made.governor = real(*given)
        return made.governor

    monkeypatch.setattr(governing, "now", made)
    monkeypatch.setattr(governing, "_started", lambda settings: made.seconds)
    monkeypatch.setattr(session_room, "make_governor", recorded)
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "endings", "most_looks", "neurons"),
    [(WHOLE, ENDINGS, 40, 9), (GROWS, ENDINGS[::2], 8, 3), (GROWS, ENDINGS, 8, None)],
    ids=["the whole grid", "growing", "growing as time allows"],
)
def test_sessions_that_run_out_of_time_end_like_one_long_session(
    room: Path, tiny_data: Path, clock: Clock, base: Mapping[str, Any], endings: tuple[str, ...], most_looks: int,
    neurons: int | None,
) -> None:  # fmt: skip
    """At least twelve of them; a session that only finishes what is begun may decide not to grow any more."""
    flat = {"data.dir": str(tiny_data), "resources.executor": "inline", "budget.hours": 1.0, "seed": 7}
    settings = Settings.model_validate(overlaid(base, flat))
    chance, root, sessions = random.Random(most_looks), room / "run", 0
    ended: list[str] = []
    while True:
        sessions += 1
        try:
            run(settings, root, executor=OutOfTime(clock, chance.randrange(1, most_looks), chance.choice(endings)))
            break
        except StoppedError as error:
            ended.append(str(error))
    assert sessions >= 12
    assert all("stopped by the time budget" in said for said in ended)
    kinds = ("no candidate has figures yet", "no time to package", "holds the best ensemble so far")
    assert all(any(kind in said for kind in kinds) for said in ended)
    entered = {event["entered"] for event in events(root, "TIME_BUDGET_STATE") if "entered" in event}
    assert entered == {"DRAIN", "STOP", "FLUSH", "PACKAGE"} - ({"DRAIN"} if "drain" not in endings else set())
    straight = long_session(room / "straight", settings, root)
    assert results(root) == results(straight)
    assert iterations_done(root) == iterations_done(straight)
    assert growth(root) == growth(straight)
    whole = list(range(1, settings.grid.max_iter + 1))
    assert iterations_done(root) == {row["candidate_id"]: whole for row in table(root)}
    check_log(root)
    assert neurons is None or len({row["meta_neuron"] for row in table(root)}) == neurons


def long_session(root: Path, settings: Settings, decided: Path) -> Path:
    """One session from the first iteration on, under the decisions that another run recorded."""
    with pytest.raises(StoppedError):
        run(settings, root, executor=Interrupted(0))
    assert iterations_done(root) == {}
    paths = RunPaths(root)
    decisions = orjson.loads(paths.decisions.read_bytes())
    decisions["growth"] = growth(decided)
    paths.decisions.write_bytes(orjson.dumps(decisions))
    run(settings, root)
    return root


def growth(root: Path) -> dict[str, Any]:
    return orjson.loads(RunPaths(root).decisions.read_bytes()).get("growth", {})
