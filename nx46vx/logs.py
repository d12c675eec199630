"""Talk for people, on stderr; stdout is kept for data."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

_STARTED = time.monotonic()


def say(message: str) -> None:
    """One line of progress, with the seconds since the start."""
    print(f"[{time.monotonic() - _STARTED:7.1f} s] {message}", file=sys.stderr, flush=True)


class Screen:
    """Shows how far a run is: one line that is rewritten on a terminal, a plain line elsewhere."""

    def show(self, view: Mapping[str, Any]) -> None:
        """``view`` as the monitor gives it."""
        left = view["remaining_estimate_s"]
        parts = [
            f"{view['global_progress_reel']:5.1f} %",
            f"train {view['train_progress_reel']:.1f} %",
            f"cursor {tuple(view['cursor'])}" if view["cursor"] else "",
            f"{view['in_flight']} in flight" if view["in_flight"] else "",
            f"about {left:.0f} s left" if left is not None else "",
            f"budget {view['budget_left_s'] / 3600:.2f} h",
        ]
        say("  ".join(part for part in parts if part))
