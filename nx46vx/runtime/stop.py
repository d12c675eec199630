"""Stopping: the first SIGINT or SIGTERM asks for a resumable end, a second SIGINT ends at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from nx46vx.errors import EXIT_INTERRUPTED_TWICE
from nx46vx.logs import leave_terminal


class StopFlag:
    """Set once, by a signal; ``reason`` says by which."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason = ""

    def set(self, reason: str) -> None:
        if not self._event.is_set():
            self.reason = reason
            self._event.set()

    def __call__(self) -> bool:
        return self._event.is_set()

    @contextmanager
    def on_signals(self) -> Iterator[StopFlag]:
        """Handle SIGINT and SIGTERM for the time of a run. Only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        old = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            if not self._event.is_set():  # once asked to stop, a second Ctrl-C counts until the process is over
                for number, handler in old.items():
                    signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._event.is_set() and number == signal.SIGINT:
            leave_terminal()
            os._exit(EXIT_INTERRUPTED_TWICE)
        self.set(signal.Signals(number).name)
