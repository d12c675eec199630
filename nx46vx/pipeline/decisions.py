"""Decisions that a resumed run must take the same way: kept durable, replayed, never taken twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from nx46vx.errors import IntegrityError
from nx46vx.runtime.atomic import write_json


class Decisions:
    """A small JSON file of decisions by kind and key. Writing one makes it durable at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._all: dict[str, dict[str, Any]] = orjson.loads(path.read_bytes()) if path.exists() else {}
            if not isinstance(self._all, dict) or not all(isinstance(kind, dict) for kind in self._all.values()):
                raise ValueError("not a table of decisions")
        except ValueError as error:
            raise IntegrityError(
                "the recorded decisions cannot be read", where=path, found=error, fix="restore it from a copy"
            ) from error

    def get(self, kind: str, key: object) -> Any:
        """A recorded decision, or None."""
        return self._all.get(kind, {}).get(str(key))

    def put(self, kind: str, key: object, value: Any) -> None:
        self._all.setdefault(kind, {})[str(key)] = value
        write_json(self._path, self._all)
