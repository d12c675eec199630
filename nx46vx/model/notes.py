"""Events of those who have no log of their own: kept until someone who has one asks for them."""

from __future__ import annotations

import threading
from typing import Any


class Notes:
    """Name and fields of events, in order. Safe to use from many threads."""

    def __init__(self) -> None:
        self._kept: list[tuple[str, dict[str, Any]]] = []
        self._lock = threading.Lock()

    def add(self, event: str, /, **fields: Any) -> None:
        with self._lock:
            self._kept.append((event, fields))

    def take(self) -> list[tuple[str, dict[str, Any]]]:
        """Everything since the last time."""
        with self._lock:
            taken, self._kept = self._kept, []
            return taken
