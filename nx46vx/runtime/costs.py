"""What pieces of work have cost on this run directory, over all its sessions."""

from __future__ import annotations

import math
from pathlib import Path

from nx46vx.errors import NX46Error
from nx46vx.runtime.atomic import write_json
from nx46vx.runtime.record import MALFORMED, read_record

#: Most samples kept of one kind; the newest stay.
KEPT = 200
#: No piece of work takes longer, in seconds.
MOST = 1e8


def _seconds(value: float) -> float:
    if not 0 <= value <= MOST:
        raise ValueError(f"{value} seconds")
    return 0.0 + value


def percentile_95(values: list[float]) -> float:
    """The smallest value that at least 95 % of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(math.ceil(0.95 * len(ordered)) - 1, 0)]


class CostBook:
    """Seconds by kind of work. A damaged file is started anew: it only makes estimates better."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._seconds: dict[str, list[float]] = {}
        if path is not None:
            try:
                stored = read_record(path)
                self._seconds = {kind: [_seconds(value) for value in values][-KEPT:] for kind, values in stored.items()}
            except (OSError, NX46Error, *MALFORMED):
                self._seconds = {}

    def add(self, kind: str, seconds: float) -> None:
        self._seconds[kind] = [*self._seconds.get(kind, []), seconds][-KEPT:]

    def p95(self, kind: str) -> float | None:
        """The 95th percentile of a kind, or None before the first measurement."""
        values = self._seconds.get(kind)
        return percentile_95(values) if values else None

    def save(self) -> None:
        """Make it durable."""
        if self._path is not None:
            write_json(self._path, self._seconds)
