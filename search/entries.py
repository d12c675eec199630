"""Feature cache entries on their way through Ray to machines that do not share the driver's cache: once to each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nx46vx.features.transfer import read_part, receive, sizes_of


class EntrySource:
    """Hands out the driver's entries, piece by piece."""

    def __init__(self, cache: str) -> None:
        self._cache = Path(cache)
        self._sent: dict[str, int] = {}

    def sizes(self, key: str) -> dict[str, int]:
        sizes = sizes_of(self._cache, key)
        self._sent[key] = self._sent.get(key, 0) + 1
        return sizes

    def part(self, key: str, name: str, offset: int, size: int) -> bytes:
        return read_part(self._cache, key, name, offset, size)

    def sent(self) -> dict[str, int]:
        """How many times each entry was asked for."""
        return self._sent


def start_source(cache: Path, node: str) -> Any:
    """The source, on the machine (Ray's id) that has the cache."""
    options: dict[str, Any] = {
        "num_cpus": 0, "max_restarts": -1, "max_task_retries": -1,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
    }  # fmt: skip
    source: Any = ray.remote(**options)(EntrySource)
    return source.remote(str(cache))


def _asked(method: Any, *arguments: Any) -> Any:
    return ray.get(method.remote(*arguments))


def fetch_missing(keys: Sequence[str], cache: Path, source: Any) -> int:
    """Bring the entries that a cache on this machine lacks; how many that were.

    Raises:
        IntegrityError: an entry is damaged at its source, or on its way.
        EnvironmentFault: the cache cannot be written to.
    """
    brought = 0
    for key in keys:
        brought += receive(cache, key, partial(_asked, source.sizes, key), partial(_asked, source.part, key))
    return brought
