"""Trials of the mask search, handed out batch by batch, and their execution in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from search.mask_study import Draw, MaskStudy
from trainables.mask_task import MaskVolumes


@dataclass
class TrialSource:
    """Hands out the study's draws; a batch is drawn once all of the one before is scored.

    ``may_go_on`` is asked before each batch, ``on_done`` told of each scored trial.
    """

    study: MaskStudy
    may_go_on: Callable[[], bool]
    on_done: Callable[[Draw, Mapping[str, Any]], None]
    ended: bool = False
    _begun: bool = False
    _live: set[int] = field(default_factory=set)
    _waiting: deque[Draw] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._waiting.extend(self.study.waiting)
        self.study.waiting.clear()

    def next(self) -> Draw | None:
        """The next draw; None when there is none now: ``ended`` tells whether for good."""
        if not self._live and not self._begun:  # a batch is about to begin
            unfinished = bool(self._waiting) or self.study.asked < self.study.trials
            if not unfinished or not self.may_go_on():
                self.ended = True
            elif not self._waiting:
                self._waiting.extend(self.study.ask())
            self._begun = not self.ended
        if self.ended or not self._waiting:
            return None
        draw = self._waiting.popleft()
        self._live.add(draw.number)
        return draw

    def finish(self, draw: Draw, result: Mapping[str, Any]) -> None:
        self._live.discard(draw.number)
        self._begun = bool(self._live or self._waiting)
        self.study.tell(draw, result)
        self.on_done(draw, result)

    def hand_back(self, draw: Draw) -> None:
        """It was not scored, through no fault of its own."""
        self._live.discard(draw.number)
        self._waiting.append(draw)


@dataclass(frozen=True)
class MaskJob:
    """One session's part of the search. ``should_stop`` ends it between two trials; ``at_once``: trials in flight."""

    source: TrialSource
    volumes: MaskVolumes
    run: Path
    fence: int
    at_once: int
    should_stop: Callable[[], bool]


def search_inline(job: MaskJob) -> None:
    """Score trials one after the other in this process."""
    while not job.should_stop() and (draw := job.source.next()) is not None:
        job.source.finish(draw, job.volumes.score(draw.rule))
