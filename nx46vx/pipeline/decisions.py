"""Decisions that a resumed run must take the same way: kept durable, replayed, never taken twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, field_validator

from nx46vx.runtime.atomic import write_json
from nx46vx.runtime.progress import PHASES
from nx46vx.runtime.record import read_record, understood


class _Recorded(BaseModel):
    """What can stand in the file. Figures that were no numbers stand as null."""

    growth: dict[str, _Growth] = {}
    epoch_best: dict[str, float] = {}
    progress: _Progress | None = None
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, dict[str, Any]]


class _Growth(BaseModel):
    neurons: int
    grow: bool
    reason: str
    figures: dict[str, float | None] | None


class _Progress(BaseModel):
    weights: dict[str, float]

    @field_validator("weights")
    @classmethod
    def _whole(cls, weights: dict[str, float]) -> dict[str, float]:
        if set(weights) != set(PHASES) or not all(0 <= weight <= 1 for weight in weights.values()):
            raise ValueError("not the weights of the phases")
        return weights


class Decisions:
    """A small JSON file of decisions by kind and key. Writing one makes it durable at once.

    Raises:
        IntegrityError: it cannot be read, or holds what no decision is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._all: dict[str, dict[str, Any]] = {}
        try:
            self._all = read_record(path)
        except FileNotFoundError:
            return
        with understood(path):
            _Recorded.model_validate_json(orjson.dumps(self._all), strict=True)

    def get(self, kind: str, key: object) -> Any:
        """A recorded decision, or None."""
        return self._all.get(kind, {}).get(str(key))

    def put(self, kind: str, key: object, value: Any) -> None:
        self._all.setdefault(kind, {})[str(key)] = value
        write_json(self._path, self._all)
