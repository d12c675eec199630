"""Holds the shown progress against what store, recorded decisions and recorded weights say: neither ahead nor behind.

Trials report what they have committed, a moment after they did. So what is shown lies between what the store held a
few seconds ago and what it holds now; anything else is a fault of the display or a loss in the store.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: A report has reached the shown value after this many seconds.
LAG_SECONDS = 5.0
#: Rounding of the value, in percent points.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Shown:
    """What the display says: the value in percent, and the iterations reported of each candidate."""

    value: float
    iterations: Mapping[str, int]


@dataclass(frozen=True)
class Recomputed:
    """What the store says, read after ``Shown``. ``value``: this session's; ``most``: with phases that an earlier
    session had completed and this one does again."""

    value: float
    most: float
    iterations: Mapping[str, int]


@dataclass
class Audit:
    """Compares at every tick; keeps what was recomputed before."""

    _past: deque[tuple[float, Recomputed]] = field(default_factory=deque)

    def differences(self, shown: Shown, recomputed: Recomputed, now: float) -> list[dict[str, Any]]:
        """The fields of an alert for each direction in which the display is wrong; ``now`` in seconds."""
        alerts = [_ahead(shown, recomputed)]
        while len(self._past) > 1 and self._past[1][0] <= now - LAG_SECONDS:
            self._past.popleft()
        if self._past and self._past[0][0] <= now - LAG_SECONDS:
            alerts.append(_behind(shown, self._past[0][1]))
        self._past.append((now, recomputed))
        return [alert for alert in alerts if alert is not None]


def _ahead(shown: Shown, recomputed: Recomputed) -> dict[str, Any] | None:
    """More is shown than is committed now."""
    stored = recomputed.iterations
    differing = {
        name: [count, stored.get(name, 0)] for name, count in shown.iterations.items() if count > stored.get(name, 0)
    }
    if not differing and shown.value <= recomputed.most + ROUNDING:
        return None
    return _alert("ahead", shown.value, recomputed.most, differing)


def _behind(shown: Shown, past: Recomputed) -> dict[str, Any] | None:
    """Less is shown than was committed at an earlier tick already."""
    reported = shown.iterations
    differing = {
        name: [reported.get(name, 0), count] for name, count in past.iterations.items() if reported.get(name, 0) < count
    }
    if not differing and shown.value >= past.value - ROUNDING:
        return None
    return _alert("behind", shown.value, past.value, differing)


def _alert(direction: str, shown: float, recomputed: float, differing: Mapping[str, list[int]]) -> dict[str, Any]:
    return {
        "direction": direction, "shown_global_progress_reel": shown, "recomputed_global_progress_reel": recomputed,
        "difference": shown - recomputed, "shown_and_stored": dict(differing),
    }  # fmt: skip
