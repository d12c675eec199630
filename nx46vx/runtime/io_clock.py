"""Seconds of reading and writing files, counted where it is done, in whatever thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

Kind = Literal[
    "read_volumes", "map_features", "write_features", "write_search_volumes", "write_masks", "package"
]  # fmt: skip

#: Kinds that read; ``package`` writes the archive, and reads it back.
READING: tuple[Kind, ...] = ("read_volumes", "map_features")
WRITING: tuple[Kind, ...] = ("write_features", "write_search_volumes", "write_masks", "package")


class IoClock:
    """Adds up what is done inside ``counting``. Safe to use from many threads; a thread counts one thing at a time.

    Seconds of a kind are summed over threads. ``wall`` are those during which at least one thread was at it, so never
    more than have passed; ``alone`` are those of the thread that made the clock, which waited for them. Sent to another
    process it is a new clock, whose seconds stay there. ``clock`` gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._home, self._lock = clock, threading.get_ident(), threading.Lock()
        self._kinds: dict[Kind, tuple[float, int]] = {}
        self._wall = self._alone = self._since = 0.0
        self._active = 0

    @contextmanager
    def counting(self, kind: Kind) -> Iterator[None]:
        """Around the reading or writing alone."""
        with self._lock:
            started = self._clock()
            if self._active == 0:
                self._since = started
            self._active += 1
        try:
            yield
        finally:
            with self._lock:
                ended = self._clock()
                seconds, times = self._kinds.get(kind, (0.0, 0))
                self._kinds[kind] = seconds + ended - started, times + 1
                if threading.get_ident() == self._home:
                    self._alone += ended - started
                self._active -= 1
                if self._active == 0:
                    self._wall += ended - self._since

    def figures(self) -> dict[str, Any]:
        """``kinds``: ``seconds`` and ``times`` of each that there was; ``read_seconds`` and ``write_seconds``: their
        sums; ``overlapped``: some of it was done in other threads, while the run may have gone on."""
        with self._lock:
            kinds, wall, alone = dict(self._kinds), self._wall, self._alone
        return {
            "wall_seconds": wall, "alone_seconds": alone,
            "overlapped": alone < sum(seconds for seconds, _ in kinds.values()),
            "read_seconds": sum(kinds[kind][0] for kind in READING if kind in kinds),
            "write_seconds": sum(kinds[kind][0] for kind in WRITING if kind in kinds),
            "kinds": {
                kind: {"seconds": kinds[kind][0], "times": kinds[kind][1]}
                for kind in (*READING, *WRITING) if kind in kinds
            },
        }  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        return IoClock, ()
