"""Where events go, as the rooms below ``events`` see it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np


class EventSink(Protocol):
    """Takes one event: a name that users search for, and JSON-able fields (NumPy scalars are fine)."""

    def emit(self, event: str, /, **fields: Any) -> None: ...

    def emit_many(self, event: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """``emit`` for the fields of each row in turn; cheaper for the many events of a block."""
        ...

    def sync(self) -> Mapping[str, Any]:
        """Make everything emitted so far durable; return the log's anchor (head digest, count)."""
        ...


class NullSink:
    """Drops every event; for library use and tests."""

    def emit(self, event: str, /, **fields: Any) -> None:
        return None

    def emit_many(self, event: str, rows: Iterable[Mapping[str, Any]]) -> None:
        return None

    def sync(self) -> Mapping[str, Any]:
        return {"writer": "none", "head": "", "count": 0}


class MemorySink:
    """Keeps events in a list as ``(event, fields)``; for tests."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def emit(self, event: str, /, **fields: Any) -> None:
        self.events.append((event, fields))

    def emit_many(self, event: str, rows: Iterable[Mapping[str, Any]]) -> None:
        self.events += [(event, dict(fields)) for fields in rows]

    def sync(self) -> Mapping[str, Any]:
        return {"writer": "memory", "head": "", "count": len(self.events)}

    def named(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name == event]


def trace_array(sink: EventSink, name: str, array: np.ndarray, **fields: Any) -> None:
    """Emit ``ARRAY_TRACE``: shape, dtype, min, max, mean and SHA-512 of an array that crosses a stage."""
    data = np.ascontiguousarray(array)
    sink.emit(
        "ARRAY_TRACE",
        array=name,
        shape=list(data.shape),
        dtype=str(data.dtype),
        min=float(data.min()) if data.size else None,
        max=float(data.max()) if data.size else None,
        mean=float(data.mean(dtype=np.float64)) if data.size else None,
        sha512=hashlib.sha512(data.data.cast("B") if data.size else b"").hexdigest(),
        **fields,
    )
