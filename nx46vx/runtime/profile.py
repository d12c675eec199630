"""Where a session's time went: phases, and within the search what computed, what was written down, what only ran it."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from nx46vx.runtime.atomic import write_json
from nx46vx.runtime.memory import Memory, read_memory

SCHEMA = 1

#: Plans whose times are remembered; the newest stay.
KEPT = 100


@dataclass
class MemoryPeaks:
    """Readings of the memory, of which the largest are kept; ``read`` takes the place of ``read_memory``."""

    source: Callable[[], Memory] = read_memory
    family_bytes: int = 0
    measure: str = ""
    gpu_bytes: dict[int, int] = field(default_factory=dict)

    def read(self) -> Memory:
        memory = self.source()
        if memory.family.resident_bytes > self.family_bytes:
            self.family_bytes, self.measure = memory.family.resident_bytes, memory.family.measure
        for gpu in memory.gpus:
            self.gpu_bytes[gpu.index] = max(gpu.used_bytes, self.gpu_bytes.get(gpu.index, 0))
        return memory

    def to_json(self) -> dict[str, Any]:
        """Bytes: this process at its largest, as the system counts; all processes together, as they were looked at."""
        return {
            "driver_peak_bytes": driver_peak_bytes(), "family_peak_bytes": self.family_bytes,
            "family_measure": self.measure, "gpu_peak_bytes": {str(k): v for k, v in sorted(self.gpu_bytes.items())},
        }  # fmt: skip


def driver_peak_bytes() -> int:
    """Most memory that this process had resident at once."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(frozen=True)
class LogCost:
    """Events written, and the seconds spent on it."""

    events: int
    seconds: float


def summarise(
    *, wall_seconds: float, phases: Mapping[str, float], search: Mapping[str, float], driver_log: LogCost,
    io: Mapping[str, Any], samples: int, candidates: int, memory: Mapping[str, Any],
    previous: Mapping[str, float] | None,
) -> dict[str, Any]:  # fmt: skip
    """The figures of ``RUN_PROFILE_SUMMARY``.

    Args:
        wall_seconds: of the session, until now.
        phases: seconds by stage.
        search: the fields of ``search.tally.Tally``; seconds of processes side by side add up there.
        driver_log: the driver's own log.
        io: the fields of ``runtime.io_clock.IoClock.figures``.
        samples: training samples.
        candidates: finished in this session.
        memory: peaks.
        previous: seconds of an earlier run of the same plan (``wall_seconds``, ``train_seconds``), if one is known.
    """
    train, busy = phases.get("train_supervised", 0.0), search["engine_busy_seconds"]
    cells = samples * search["lane_iterations"]
    log = search["trial_log_seconds"] + driver_log.seconds
    parts = {
        "compute": busy,
        "event_log": log,
        "checkpoints": search["trial_checkpoint_seconds"],
        "io": io["wall_seconds"],
        "ray_init": search["ray_init_seconds"],
        "search_overhead": search["overhead_seconds"],
    }
    return {
        "schema": SCHEMA,
        "wall_seconds": wall_seconds,
        "phases": {name: _part(seconds, wall_seconds) for name, seconds in phases.items()},
        "outside_phases": _part(max(wall_seconds - sum(phases.values()), 0.0), wall_seconds),
        "parts": {name: _part(seconds, wall_seconds) for name, seconds in parts.items()},
        "io": dict(io),
        "search": dict(search),
        "event_log": {
            "events": driver_log.events + int(search["trial_events"]), "driver_events": driver_log.events,
            "driver_seconds": driver_log.seconds, "trial_seconds": search["trial_log_seconds"],
        },
        "answers": {
            "fit_share_of_search_pct": _share(busy, search["search_seconds"]),
            "log_share_of_compute_pct": _share(log, busy),
            "checkpoint_share_of_compute_pct": _share(search["trial_checkpoint_seconds"], busy),
            "largest_phase": max(phases, key=lambda name: phases[name]) if phases else None,
        },
        "rates": {
            "candidates": candidates,
            "candidates_per_second": candidates / train if train else None,
            "ns_per_sample_lane_iteration": 1e9 * busy / cells if cells else None,
            "iterations_per_second": search["lane_iterations"] / busy if busy else None,
        },
        "memory": dict(memory),
        "speedup": _speedup(previous, wall_seconds, train),
    }  # fmt: skip


def _part(seconds: float, whole: float) -> dict[str, float | None]:
    return {"seconds": seconds, "share_pct": _share(seconds, whole)}


def _share(part: float, whole: float) -> float | None:
    return 100.0 * part / whole if whole else None


def _speedup(previous: Mapping[str, float] | None, wall: float, train: float) -> dict[str, float] | None:
    """How many times faster than before; null without an earlier run of the same plan."""
    if previous is None or not wall or not train:
        return None
    before = {name: float(previous[name]) for name in ("wall_seconds", "train_seconds")}
    return {
        **{f"previous_{name}": seconds for name, seconds in before.items()},
        "wall": before["wall_seconds"] / wall, "train": before["train_seconds"] / train,
    }  # fmt: skip


class RunTimes:
    """Seconds of whole runs by plan, beside the feature cache. A damaged file is begun anew: it is a convenience."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            stored = orjson.loads(path.read_bytes())
            self._times: dict[str, dict[str, float]] = {
                str(plan): {name: float(times[name]) for name in ("wall_seconds", "train_seconds")}
                for plan, times in stored.items()
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            self._times = {}

    def get(self, plan: str) -> dict[str, float] | None:
        """The last whole run of a plan (digest)."""
        return self._times.get(plan)

    def put(self, plan: str, wall_seconds: float, train_seconds: float) -> None:
        """Remember one, durably."""
        self._times.pop(plan, None)
        self._times[plan] = {"wall_seconds": wall_seconds, "train_seconds": train_seconds}
        write_json(self._path, dict(list(self._times.items())[-KEPT:]))
