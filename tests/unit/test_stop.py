"""Signals: the first asks for an end, a second Ctrl-C is one also while a library does not listen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from nx46vx.runtime.stop import StopFlag


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request_with_its_name(number: int) -> None:
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    flag = StopFlag()
    try:
        with flag.on_signals():
            assert not flag()
            os.kill(os.getpid(), number)
            assert flag() and flag.reason == signal.Signals(number).name
    finally:
        signal.set_wakeup_fd(-1)
        for one, handler in before.items():
            signal.signal(one, handler)


def test_without_a_signal_everything_is_as_it_was() -> None:
    before = (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), threading.active_count())
    with StopFlag().on_signals() as flag:
        assert not flag()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), threading.active_count()) == before
    assert signal.set_wakeup_fd(-1) == -1


BUSY = """
import ctypes, sys
from nx46vx.runtime.stop import StopFlag
with StopFlag().on_signals() as flag:
    print("ready", flush=True)
    nap = ctypes.CDLL(None).clock_nanosleep  # a library that sleeps on through signals, without the interpreter
    class Spec(ctypes.Structure):
        _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]
    left = Spec(30, 0)
    while nap(1, 0, ctypes.byref(left), ctypes.byref(left)):
        pass
"""


@pytest.mark.parametrize(
    ("signals", "code"),
    [([signal.SIGINT, signal.SIGINT], 130), ([signal.SIGTERM, signal.SIGINT], 130), ([signal.SIGTERM] * 3, None)],
)
def test_two_interrupts_end_a_process_that_is_deep_in_a_library(signals: list[int], code: int | None) -> None:
    """Also 20 ms apart. SIGTERM never ends at once, however often it comes."""
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        for number in signals:
            process.send_signal(number)
            time.sleep(0.02)
        if code is None:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)
        else:
            assert process.wait(10) == code
    finally:
        process.kill()
        process.wait()
