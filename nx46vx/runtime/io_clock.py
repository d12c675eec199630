"""Seconds of reading and writing files, counted where it is done, in whatever thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import itemgetter
from typing import Any, Literal

Kind = Literal[
    "read_volumes", "read_ahead", "map_features", "write_features", "write_search_volumes", "write_masks", "package"
]  # fmt: skip

#: Kinds that read; ``package`` writes the archive, and reads it back.
READING: tuple[Kind, ...] = ("read_volumes", "read_ahead", "map_features")
WRITING: tuple[Kind, ...] = ("write_features", "write_search_volumes", "write_masks", "package")

#: What was done, from when to when, in seconds of the machine's clock that only goes on.
Span = tuple[Kind, float, float]


class IoClock:
    """Adds up what is done inside ``counting``. Safe to use from many threads; a thread counts one thing at a time.

    Seconds of a kind are summed over threads. ``wall`` are those during which at least one of them was at it, so never
    more than have passed; ``alone`` are those of the thread that made the clock, which waited for them. Sent to another
    process of this machine it is a new clock; what that one has counted can be brought back (``told``, ``add``).
    ``clock`` gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, *, away: bool = False) -> None:
        self._clock, self._home, self._lock = clock, threading.get_ident(), threading.Lock()
        self._spans: list[Span] = []
        self._alone, self._away = 0.0, away

    @contextmanager
    def counting(self, kind: Kind) -> Iterator[None]:
        """Around the reading or writing alone."""
        started = self._clock()
        try:
            yield
        finally:
            ended = self._clock()
            with self._lock:
                self._spans.append((kind, started, ended))
                if threading.get_ident() == self._home:
                    self._alone += ended - started

    def told(self) -> list[Span]:
        """What a clock that was sent here has counted and not told yet; nothing of one that is at home."""
        with self._lock:
            spans, self._spans = (self._spans, []) if self._away else ([], self._spans)
        return spans

    def add(self, spans: Sequence[Span]) -> None:
        """Counts what another process has told."""
        with self._lock:
            self._spans.extend(spans)

    def figures(self) -> dict[str, Any]:
        """``kinds``: ``seconds`` and ``times`` of each that there was; ``read_seconds`` and ``write_seconds``: their
        sums; ``overlapped``: some of it was done in other threads, while the run may have gone on."""
        with self._lock:
            spans, alone = list(self._spans), self._alone
        kinds = {
            kind: [ended - started for one, started, ended in spans if one == kind] for kind in (*READING, *WRITING)
        }  # fmt: skip
        seconds = {kind: sum(parts) for kind, parts in kinds.items()}
        return {
            "wall_seconds": _covered(spans), "alone_seconds": alone,
            "overlapped": alone < sum(ended - started for _, started, ended in spans),
            "read_seconds": sum(seconds[kind] for kind in READING),
            "write_seconds": sum(seconds[kind] for kind in WRITING),
            "kinds": {
                kind: {"seconds": seconds[kind], "times": len(parts)} for kind, parts in kinds.items() if parts
            },
        }  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(IoClock, away=True), ()


def _covered(spans: Sequence[Span]) -> float:
    """Seconds that at least one span covers."""
    total, reached = 0.0, float("-inf")
    for _, started, ended in sorted(spans, key=itemgetter(1)):
        total += max(ended - max(started, reached), 0.0)
        reached = max(reached, ended)
    return total
