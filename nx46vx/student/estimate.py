"""How long a student would take, from a rehearsal of one step and of a few windows."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nx46vx.runtime.sink import EventSink
from nx46vx.student.numerics import numerics
from nx46vx.student.spec import StudentSpec
from nx46vx.student.trainer import Trainer
from nx46vx.student.windows import window_starts

#: Expected times are multiplied by this, as the governor does with what it reserves.
SAFETY = 1.5
#: Least share of the configured epochs that is worth beginning.
WORTHWHILE = 0.25


@dataclass(frozen=True)
class Estimate:
    """Seconds of one training step and of one window."""

    step: float
    window: float

    def volume(self, spec: StudentSpec, shape: Sequence[int]) -> float:
        """Seconds of one volume through the network."""
        overlap = spec.settings.overlap
        starts = [len(window_starts(size, edge, overlap)) for size, edge in zip(shape, spec.patch, strict=True)]
        return self.window * math.prod(starts)

    def epoch(self, spec: StudentSpec) -> float:
        """Seconds of an epoch with its validation."""
        judged = sum(self.volume(spec, case.shape) for case in spec.validation)
        return self.step * spec.settings.steps_per_epoch + judged


def rehearse(spec: StudentSpec, sink: EventSink) -> Estimate:
    """Time a step and some windows on made-up patches; trains nothing."""
    with numerics(spec.device, cudnn_benchmark=spec.settings.cudnn_benchmark, gpu=spec.gpu):
        trainer = Trainer(spec, sink)
        try:
            step = trainer.rehearse()
            segmenter = trainer.segmenter(trainer.average)
            deep = spec.patch[0] * (1 + segmenter.batch)  # windows enough for all threads
            noise = np.random.default_rng(0).integers(0, 256, (deep, *spec.patch[1:]), np.uint8)
            windows = len(window_starts(deep, spec.patch[0], spec.settings.overlap))
            segmenter.logits(noise[: spec.patch[0]])
            started = time.perf_counter()
            segmenter.logits(noise)
            return Estimate(step, (time.perf_counter() - started) / windows)
        finally:
            trainer.close()


def affordable(
    asked: int, seconds_per_epoch: float, seconds_after: float, until_stop: float
) -> tuple[int, dict[str, Any]]:
    """How many of ``asked`` epochs fit before the stop, with what comes after them; 0 if too few to be worth it."""
    fits = int((until_stop / SAFETY - seconds_after) / max(seconds_per_epoch, 1e-9))
    epochs = min(asked, fits) if fits >= math.ceil(WORTHWHILE * asked) else 0
    reason = "the time left allows it" if epochs else "too little time is left"
    return epochs, {
        "reason": reason, "epochs_that_fit": max(fits, 0), "seconds_per_epoch": seconds_per_epoch,
        "seconds_after": seconds_after, "until_stop_s": until_stop,
    }  # fmt: skip
