"""Time that goes on while the machine sleeps, and when this session began."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

#: Set by hosted notebooks whose session limit runs from their container's start.
CONTAINER_VARIABLES = ("KAGGLE_KERNEL_RUN_TYPE",)


def now() -> float:
    """Seconds on a clock that no one sets and that survives suspend (``CLOCK_BOOTTIME``; monotonic elsewhere)."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def session_start(environ: Mapping[str, str] | None = None) -> float:
    """When the session began, on the clock of ``now``.

    The container's start (its first process's) in a hosted notebook, where the limit runs from there; else this
    process's.
    """
    environ = os.environ if environ is None else environ
    if any(environ.get(name) for name in CONTAINER_VARIABLES):
        started = _process_start(1)
        if started is not None:
            return started
    return _process_start(os.getpid()) or now()


def _process_start(pid: int) -> float | None:
    """Start of a process in seconds since boot, from ``/proc`` (field 22 of ``stat``, in clock ticks)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
