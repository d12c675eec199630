"""Says regularly that long work is alive."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from nx46vx.errors import NX46Error
from nx46vx.runtime.sink import EventSink

SECONDS = 10.0


@contextmanager
def heartbeat(sink: EventSink, stage: str, seconds: float = SECONDS) -> Iterator[None]:
    """Emit ``HEARTBEAT`` at the start and the end of some work, and every ``seconds`` in between."""
    over, started = threading.Event(), time.monotonic()
    process = psutil.Process()

    def beat(state: str) -> None:
        sink.emit(
            "HEARTBEAT", stage=stage, state=state, seconds=time.monotonic() - started,
            resident_bytes=process.memory_info().rss,
        )  # fmt: skip

    def loop() -> None:
        while not over.wait(seconds):
            with suppress(NX46Error):  # a log that refuses is for the work to name
                beat("working")

    beat("start")
    thread = threading.Thread(target=loop, name=f"heartbeat-{stage}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        beat("end")
