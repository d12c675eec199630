"""Stopping: the first SIGINT or SIGTERM asks for a resumable end, a second SIGINT ends at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from nx46vx.errors import EXIT_INTERRUPTED_TWICE
from nx46vx.logs import leave_terminal

_STOPPING = (signal.SIGINT, signal.SIGTERM)


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
        """Handle SIGINT and SIGTERM for the time of a run. Only the main thread can.

        The interpreter calls handlers between two of its own steps, and what came meanwhile counts once: a second
        Ctrl-C would wait for a long call into a library, or get lost. So a thread reads signals as they arrive.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        old = {number: signal.signal(number, self._handle) for number in _STOPPING}
        arrivals, told = os.pipe()
        os.set_blocking(told, False)
        before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        watcher = threading.Thread(target=self._watch, args=(arrivals,), name="signals", daemon=True)
        watcher.start()
        try:
            yield self
        finally:
            if not self._event.is_set():  # once asked to stop, a second Ctrl-C counts until the process is over
                for number, handler in old.items():
                    signal.signal(number, handler)
                signal.set_wakeup_fd(before)
                os.close(told)
                watcher.join()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.set(signal.Signals(number).name)

    def _watch(self, arrivals: int) -> None:
        """Follow the signals, one byte each, until the other end of the pipe is closed."""
        came = 0
        with suppress(OSError), open(arrivals, "rb", buffering=0) as pipe:
            while numbers := pipe.read(64):
                for number in numbers:
                    if number not in _STOPPING:
                        continue
                    came += 1
                    self.set(signal.Signals(number).name)
                    if came > 1 and number == signal.SIGINT:
                        leave_terminal()
                        os._exit(EXIT_INTERRUPTED_TWICE)
