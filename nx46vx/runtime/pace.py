"""How long the fit still takes, from how it moved.

The engine advances all lanes together, trials take over what is ready and only a few trials are in flight. So there are
two speeds: the depth that every lane has reached (seen at the candidate that came furthest), and, once the engine is
through, the iterations that trials commit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

#: Movements that a speed is taken from.
WINDOW = 30


class Speed:
    """Units per second over the last movements. With ``warm_up`` the first one only starts the clock."""

    def __init__(self, *, warm_up: bool) -> None:
        self._first = 1 if warm_up else 0
        self._moves: deque[tuple[float, float]] = deque(maxlen=WINDOW)

    def see(self, value: float, now: float) -> None:
        if not self._moves or value > self._moves[-1][1]:
            self._moves.append((now, value))

    def per_second(self, now: float) -> float | None:
        """None before there was a movement that counts."""
        if len(self._moves) < self._first + 2:
            return None
        (began, low), (_, high) = self._moves[self._first], self._moves[-1]
        return (high - low) / (now - began) if now > began else None


class FitPace:
    """Watches one round of the fit after the other: a round is a set of candidates and the iteration they go to.

    ``depth_seconds`` and ``commit_seconds``: seconds per iteration of all lanes, and per committed iteration once the
    engine is through, as an earlier session measured them.
    """

    def __init__(self, depth_seconds: float | None = None, commit_seconds: float | None = None) -> None:
        self.depth_seconds, self.commit_seconds = depth_seconds, commit_seconds
        self.measured = False
        self._round: tuple[int, int] | None = None
        self._start: dict[str, int] = {}
        self._depth, self._commits = Speed(warm_up=True), Speed(warm_up=False)

    def see(self, done: Mapping[str, int], until: int, now: float) -> None:
        """Iterations reported of every candidate, and where this round ends."""
        if self._round != (len(done), until):
            self._round, self._start = (len(done), until), dict(done)
            self._depth, self._commits = Speed(warm_up=True), Speed(warm_up=False)
        self._depth.see(_reached(self._start, done), now)
        if _deep(self._start, done, until) <= 0:
            self._commits.see(sum(done.values()), now)
        depth, commits = self._depth.per_second(now), self._commits.per_second(now)
        self.depth_seconds = 1 / depth if depth else self.depth_seconds
        self.commit_seconds = 1 / commits if commits else self.commit_seconds
        self.measured = self.measured or depth is not None or commits is not None

    def seconds_left(self, done: Mapping[str, int], until: int) -> float | None:
        """Of this round, also before it began, from what was measured; None before that."""
        left = sum(max(until - iterations, 0) for iterations in done.values())
        deep = _deep(self._start or done, done, until)
        if left == 0:
            return 0.0
        if deep <= 0:
            return None if self.commit_seconds is None else left * self.commit_seconds
        return None if self.depth_seconds is None else self._both(deep, left)

    def round_seconds(self, candidates: int, iterations: int) -> float | None:
        """Of a whole round of so many candidates and iterations each."""
        if self.depth_seconds is None and self.commit_seconds is None:
            return None
        return self._both(iterations, candidates * iterations)

    def _both(self, deep: int, left: int) -> float:
        """The engine's part, and then what trials commit (a little more than that: they commit meanwhile, too)."""
        return deep * (self.depth_seconds or 0.0) + left * (self.commit_seconds or 0.0)


def _reached(start: Mapping[str, int], done: Mapping[str, int]) -> int:
    """Iterations that the engine has certainly advanced every lane by."""
    return max((count - start.get(name, 0) for name, count in done.items()), default=0)


def _deep(start: Mapping[str, int], done: Mapping[str, int], until: int) -> int:
    """Iterations that it still has to, for the lane that has the furthest to go."""
    return max((until - count for count in start.values()), default=0) - _reached(start, done)
