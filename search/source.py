"""Which candidate runs next: the grid first, then what growth adds. Shared by every executor."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nx46vx.model.candidates import Candidate
from nx46vx.model.neuron import NeuronSpec

Records = dict[str, dict[str, Any]]
#: Given all records of finished candidates, the next meta-neuron and its candidates, or None to end.
Grow = Callable[[Mapping[str, Mapping[str, Any]]], tuple[NeuronSpec, list[Candidate]] | None]


class CandidateSource:
    """Hands out candidates; asks ``grow`` whenever all that were handed out have come back.

    The decision to grow thus depends only on results of complete rounds, never on the order of completion.
    """

    def __init__(self, pending: Iterable[Candidate], finished: Records, grow: Grow) -> None:
        self._pending = deque(sorted(pending))
        self._live: set[Candidate] = set()
        self._grow = grow
        self._ended = False
        self._since: dict[Candidate, float] = {}
        self.last_seconds = 0.0
        self._given_up: list[Candidate] = []
        self.records: Records = dict(finished)
        self.on_grown: Callable[[NeuronSpec, list[Candidate]], None] = lambda spec, candidates: None

    @property
    def waiting(self) -> tuple[Candidate, ...]:
        """Candidates that were not handed out yet."""
        return tuple(self._pending)

    @property
    def ended(self) -> bool:
        """Whether nothing is left, now or ever."""
        return self._ended

    def next_round(self) -> bool:
        """Whether anything is left to hand out; asks for growth when a round is complete."""
        if not self._pending and not self._live and not self._ended:
            grown = self._grow(self.records)
            if grown is None:
                self._ended = True
            else:
                spec, candidates = grown
                self.on_grown(spec, candidates)
                self._pending.extend(sorted(candidates))
        return bool(self._pending)

    def next(self) -> Candidate | None:
        """The next candidate; None when there is none now: ``ended`` tells whether for good."""
        if not self.next_round():
            return None
        candidate = self._pending.popleft()
        self._live.add(candidate)
        self._since[candidate] = time.monotonic()
        return candidate

    def finish(self, candidate: Candidate, record: Mapping[str, Any]) -> None:
        """A candidate came back, complete; ``last_seconds`` is how long it was away."""
        self.last_seconds = time.monotonic() - self._since.pop(candidate, time.monotonic())
        self._live.discard(candidate)
        self.records[candidate.candidate_id] = dict(record)

    def hand_back(self, candidate: Candidate) -> None:
        """A candidate came back incomplete by no fault of its own (its process died): it is the next to go out."""
        self._live.discard(candidate)
        self._since.pop(candidate, None)
        self._pending.appendleft(candidate)

    def give_up(self, candidate: Candidate) -> None:
        """A candidate came back incomplete (stopped or failed): no further round is started."""
        self._live.discard(candidate)
        self._given_up.append(candidate)
        self._ended = True

    @property
    def incomplete(self) -> bool:
        """Whether anything of what was to be run is not done."""
        return bool(self._pending or self._live or self._given_up)

    def take_back(self) -> None:
        """Hand out again what came back incomplete."""
        self._pending.extend(sorted(self._given_up))
        self._given_up = []
        self._ended = False
