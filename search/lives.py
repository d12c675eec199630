"""What each engine did over all its lives: one that died and was started again begins to count from nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Statistics of one life that add up over lives; of ``gpu_peak_bytes`` the largest counts.
ADDED = ("busy_seconds", "figures_seconds", "gpu_seconds", "lane_iterations")


class Lives:
    """Statistics as engines told them, by engine and life. What a life did after it last told is not known."""

    def __init__(self) -> None:
        self._told: dict[int, dict[str, Mapping[str, Any]]] = {}

    def tell(self, engine: int, stats: Mapping[str, Any]) -> None:
        """``FitEngine.stats`` of one life, named by ``life``; a later word of the same life takes the earlier one's
        place."""
        lives = self._told.setdefault(engine, {})
        known = lives.get(stats["life"])
        if known is None or stats["busy_seconds"] >= known["busy_seconds"]:
            lives[stats["life"]] = stats

    def total(self, engine: int) -> dict[str, Any]:
        """``FitEngine.stats`` over all lives, and ``restarts``; what computes is the newest life's."""
        lives = list(self._told[engine].values())
        return {
            **lives[-1], **{name: sum(one[name] for one in lives) for name in ADDED},
            "gpu_peak_bytes": max(one["gpu_peak_bytes"] for one in lives), "restarts": len(lives) - 1,
        }  # fmt: skip
