"""Talk for people, on stderr; stdout is kept for data."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_STARTED = time.monotonic()
#: Takes the talk instead of stderr, while a view that rewrites itself is on the terminal.
_view: Callable[[str], None] | None = None


def say(message: str) -> None:
    """One line of progress, with the seconds since the start. A terminal that is gone does not end the work."""
    line = f"[{time.monotonic() - _STARTED:7.1f} s] {message}"
    with contextlib.suppress(OSError, ValueError):
        if (view := _view) is not None:
            view(line)
        else:
            print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def talk_through(view: Callable[[str], None]) -> Iterator[None]:
    """Let a view print what is said, above itself."""
    global _view
    before, _view = _view, view
    try:
        yield
    finally:
        _view = before


def leave_terminal() -> None:
    """Show the cursor again at an end that cleans up nothing else; only system calls, so fit for a signal handler."""
    if _view is not None:
        with contextlib.suppress(OSError):
            os.write(2, b"\x1b[?25h\n")


class Screen:
    """Shows how far a run is, as plain lines: for notebooks, logs and pipes."""

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """The time of some work during which it shows."""
        yield

    def show(self, view: Mapping[str, Any]) -> None:
        """``view`` as the monitor gives it."""
        say(one_line(view))


def one_line(view: Mapping[str, Any]) -> str:
    """The monitor's view in one line."""
    left, best, memory = view["remaining_estimate_s"], view["best"], view["memory"]
    parts = [
        f"{view['global_progress_reel']:5.1f} %",
        f"train {view['train_progress_reel']:.1f} %",
        f"{view['candidates_done']}/{view['candidates_total']} candidates" if view["candidates_total"] else "",
        f"{view['in_flight']} in flight" if view["in_flight"] else "",
        f"cursor {tuple(view['cursor'])}" if view["cursor"] else "",
        f"best {best['objective']:.4f}" if best else "",
        f"about {left:.0f} s left" if left is not None else "",
        f"budget {view['budget_left_s'] / 3600:.2f} h",
        f"memory {100 * memory['used_share']:.0f} %",
    ]
    return "  ".join(part for part in parts if part)
