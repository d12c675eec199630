"""Proof of where each phase ran: what asked for a GPU, what worked there and for how long, and what did not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from nx46vx.runtime.device import DeviceChoice
from nx46vx.runtime.gpu_memory import GpuMemory, read_gpus
from nx46vx.runtime.sink import EventSink

#: Phases whose work a GPU can do, and, of those that this program computes on the CPU all the same, why.
PHASES: dict[str, str] = {
    "features": "",
    "train_supervised": "",
    "student": "",
    "student_fusion": "",
    "mask_rule": "validation volumes are segmented by the CPU's kernels",
    "segment": "volumes are segmented by the CPU's kernels",
}

#: What ``GpuLedger.figures`` names.
KPIS = ("gpu_phase_coverage_pct", "gpu_time_ratio", "cpu_fallback_count")


@dataclass
class PhaseUse:
    """One phase: how long it took, and of that a GPU. ``reason``: why the GPU has no part in it, if that is known.

    ``tell`` says that it runs on the CPU after all, which was ``told`` then.
    """

    phase: str
    asked: bool
    reason: str = ""
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    tell: Callable[[str], None] | None = None
    told: bool = False

    def on_gpu(self, seconds: float) -> None:
        """A GPU worked for so long, as its own clock says."""
        self.gpu_seconds += seconds

    def nothing_to_do(self) -> None:
        """All of it was done before: a GPU would have had no part in it."""
        self.asked = False

    def fall_back(self, reason: str) -> None:
        """The rest of it, or all of it, runs on the CPU: said at once, and once."""
        if self.asked and not self.told and self.tell is not None:
            self.told = True
            self.tell(reason)

    @property
    def fell_back(self) -> bool:
        return self.asked and self.gpu_seconds == 0.0


@dataclass
class GpuLedger:
    """The phases of a session. ``wanted``: the configuration asks for a GPU, or leaves it to what there is; ``share``:
    it even says how much of one a trial takes."""

    sink: EventSink
    device: DeviceChoice
    wanted: bool = True
    share: bool = False
    memory: Callable[[], tuple[tuple[GpuMemory, ...], str]] = read_gpus
    clock: Callable[[], float] = time.monotonic
    phases: list[PhaseUse] = field(default_factory=list)
    fallbacks: int = 0

    def announce(self) -> None:
        """At the start: every GPU that is there and cannot be used is a fallback already."""
        if not self.wanted:
            return
        for failure in self.device.failures:
            self.fallback("device", failure)
        if self.share and self.device.name == "cpu":
            self.fallback("resources.gpus_per_trial", self.device.reason)

    def fallback(self, what: str, reason: str) -> None:
        """Something that asked for the GPU runs on the CPU."""
        self.fallbacks += 1
        self.sink.emit("GPU_FALLBACK_DETECTED", what=what, reason=reason)

    @contextmanager
    def phase(self, name: str) -> Iterator[PhaseUse]:
        """Around the work of one phase; a phase that no GPU could help with leaves no trace."""
        use = PhaseUse(name, self.wanted and self.device.name == "cuda" and name in PHASES, PHASES.get(name, ""))
        use.tell = partial(self.fallback, name)
        if name not in PHASES:
            yield use
            return
        started = self.clock()
        self.sink.emit("GPU_PHASE_START", phase=name, device=self.device.label, asked=use.asked)
        self._snapshot(name, "start")
        try:
            yield use
        finally:
            use.seconds = self.clock() - started
            self.phases.append(use)
            self._snapshot(name, "end")
            self.sink.emit(
                "GPU_PHASE_END", phase=name, asked=use.asked, on_gpu=use.gpu_seconds > 0, seconds=use.seconds,
                gpu_seconds=use.gpu_seconds,
            )  # fmt: skip
        if use.fell_back and not use.told:
            self.fallback(name, use.reason or "no pass ran on the GPU")

    def figures(self) -> dict[str, Any]:
        """``gpu_phase_coverage_pct``: of the phases that asked for a GPU, how many it worked in. ``gpu_time_ratio``:
        its synchronised seconds over theirs. Both null if none asked. ``cpu_fallback_count``: of all kinds."""
        asked = [use for use in self.phases if use.asked]
        seconds = sum(use.seconds for use in asked)
        return {
            "gpu_phase_coverage_pct": 100.0 * sum(not use.fell_back for use in asked) / len(asked) if asked else None,
            "gpu_time_ratio": sum(use.gpu_seconds for use in asked) / seconds if seconds else None,
            "cpu_fallback_count": self.fallbacks,
        }

    def _snapshot(self, phase: str, moment: str) -> None:
        if self.device.name != "cuda":
            return
        gpus, reason = self.memory()
        self.sink.emit("GPU_MEMORY_SNAPSHOT", phase=phase, moment=moment, gpus=[vars(g) for g in gpus], reason=reason)
