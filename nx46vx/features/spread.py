"""Work on a range, piece by piece, shared by threads: for functions that hold no lock of the interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count


def usable_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spread(work: Callable[[int, int], None], total: int, threads: int, step: int = 1) -> None:
    """Call ``work(first, last)`` for pieces of at most ``step`` that cover ``range(total)``; each piece once.

    Threads take the next piece that nobody has. What ``work`` raises is raised here.
    """
    tickets = count()

    def run(_: int) -> None:
        for number in iter(tickets.__next__, None):
            first = number * step
            if first >= total:
                return
            work(first, min(first + step, total))

    if threads <= 1 or total <= step:
        run(0)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, range(threads)))
