"""Where the time of a session's search goes; seconds of processes that work side by side add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any


@dataclass
class Tally:
    """All seconds but the first three are summed over processes.

    ``search``: wall, from an executor's start to its end; ``ray_init`` of it until Ray was there, also where that was
    before, for the features or to join a cluster; ``engine_busy``: an engine's in passes, the busiest one's; ``gpu``:
    the longest that a GPU worked, synchronised; ``trial_log``, ``trial_checkpoint``: trials' in their event logs and in
    the store. ``engine_restarts``: engines that died and were started again; what they did until they last told of it
    is in the sums.
    """

    search_seconds: float = 0.0
    ray_init_seconds: float = 0.0
    engine_busy_seconds: float = 0.0
    gpu_seconds: float = 0.0
    trial_log_seconds: float = 0.0
    trial_checkpoint_seconds: float = 0.0
    lane_iterations: int = 0
    trial_events: int = 0
    trial_checkpoints: int = 0
    trials: int = 0
    gpu_peak_bytes: int = 0
    engine_restarts: int = 0

    @property
    def overhead_seconds(self) -> float:
        """Wall time of the search that neither started Ray nor waited for the engine."""
        return max(self.search_seconds - self.ray_init_seconds - self.engine_busy_seconds, 0.0)

    def add_trial(self, spent: Mapping[str, float]) -> None:
        """What one trial spent, as its task counted it."""
        self.trial_log_seconds += float(spent["log_seconds"])
        self.trial_checkpoint_seconds += float(spent["checkpoint_seconds"])
        self.trial_events += int(spent["events"])
        self.trial_checkpoints += int(spent["checkpoints"])
        self.trials += 1

    def add_engines(self, stats: Sequence[Mapping[str, Any]]) -> None:
        """What the engines of one search say at its end."""
        self.engine_busy_seconds += max((float(one["busy_seconds"]) for one in stats), default=0.0)
        self.gpu_seconds += max((float(one["gpu_seconds"]) for one in stats), default=0.0)
        self.lane_iterations += sum(int(one["lane_iterations"]) for one in stats)
        self.gpu_peak_bytes = max([self.gpu_peak_bytes, *(int(one["gpu_peak_bytes"]) for one in stats)])
        self.engine_restarts += sum(int(one.get("restarts", 0)) for one in stats)

    def add(self, other: Tally) -> None:
        """Another search of the same session."""
        for each in fields(self):
            joined = max if each.name == "gpu_peak_bytes" else sum
            setattr(self, each.name, joined((getattr(self, each.name), getattr(other, each.name))))


def engine_fields(tally: Tally) -> dict[str, Any]:
    """The figures of ``ENGINE_STATS``."""
    return {
        "busy_seconds": tally.engine_busy_seconds, "gpu_seconds": tally.gpu_seconds,
        "lane_iterations": tally.lane_iterations, "ray_init_seconds": tally.ray_init_seconds,
        "search_seconds": tally.search_seconds, "overhead_seconds": tally.overhead_seconds,
        "trial_log_seconds": tally.trial_log_seconds, "trial_checkpoint_seconds": tally.trial_checkpoint_seconds,
        "trial_events": tally.trial_events, "trial_checkpoints": tally.trial_checkpoints,
        "restarts": tally.engine_restarts,
    }  # fmt: skip


def kernels(stats: Sequence[Mapping[str, Any]]) -> list[str]:
    """What computed in the engines, and why that."""
    return sorted({f"{one['kernel']}: {one['kernel_reason']}" for one in stats})
