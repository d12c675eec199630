"""torch.compile where it works, and the plain network, with an event that says why, where it does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from nx46vx.runtime.sink import EventSink


def compiled(net: torch.nn.Module, once: Callable[[Callable[..., Any]], None], sink: EventSink) -> Callable[..., Any]:
    """The network compiled, or itself; emits ``STUDENT_COMPILE``.

    ``once`` runs a forward and a backward pass with what it is given: a compilation fails there, not before.
    """
    started, failure, made = time.perf_counter(), None, net
    try:
        candidate: Any = torch.compile(net, dynamic=False)
        once(candidate)
        made = candidate
    except Exception as error:  # whatever it is, the plain network can do the work
        failure = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]
    sink.emit("STUDENT_COMPILE", compiled=failure is None, reason=failure, seconds=time.perf_counter() - started)
    return made
