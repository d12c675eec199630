"""The student's say: test-time augmentation and fusion, judged on validation cases."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from nx46vx.errors import NX46Error, StoppedError
from nx46vx.inference.predict import probability_volume
from nx46vx.logs import say
from nx46vx.model.ensemble import Ensemble
from nx46vx.model.samples import Samples
from nx46vx.pipeline.best import MAX_SAMPLES, evaluate
from nx46vx.pipeline.choose import Choice
from nx46vx.pipeline.combining import combined_logits
from nx46vx.pipeline.dataset import Cases
from nx46vx.pipeline.decisions import Decisions
from nx46vx.pipeline.fit import FitResult
from nx46vx.pipeline.session import Session
from nx46vx.pipeline.student import KIND, Trained, best_student
from nx46vx.runtime.budget import MEASURED_FACTOR
from nx46vx.runtime.gpu_phases import PhaseUse
from nx46vx.runtime.heartbeat import heartbeat

if TYPE_CHECKING:
    from nx46vx.model.gpu_clock import GpuClock
    from nx46vx.student.fusion import Fusion, FusionCase
    from nx46vx.student.spec import StudentSpec
    from nx46vx.student.symmetry import Symmetry
    from nx46vx.student.unet import Network


@dataclass(frozen=True)
class Student:
    """A trained network, and what it is averaged over."""

    spec: StudentSpec
    net: Network
    micro_batch: int
    symmetries: tuple[Symmetry, ...]

    @cached_property
    def clock(self) -> GpuClock:
        """How long a GPU worked for it."""
        import torch

        from nx46vx.model.gpu_clock import GpuClock

        return GpuClock(torch.device(self.spec.device))

    def logits(self, volume: np.ndarray, symmetries: Sequence[Symmetry]) -> np.ndarray:
        """Logits of surface, (z, y, x) float32."""
        from nx46vx.student.inference import segmenter_of
        from nx46vx.student.numerics import numerics

        with (
            numerics(self.spec.device, cudnn_benchmark=self.spec.settings.cudnn_benchmark, gpu=self.spec.gpu),
            ThreadPoolExecutor(self.spec.threads) as threads,
            self.clock.running(),
        ):
            return segmenter_of(self.net, self.spec, threads, 2 * self.micro_batch).logits(volume, symmetries)


@dataclass(frozen=True)
class Refinement:
    """The ensemble's probability of a volume, made better by the student's."""

    student: Student
    fusion: Fusion
    symmetries: tuple[Symmetry, ...]

    @property
    def gpu_seconds(self) -> float:
        """How long a GPU worked for the student so far."""
        return self.student.clock.seconds

    def __call__(self, volume: np.ndarray, probability: np.ndarray) -> np.ndarray:
        return self.fusion.probability(probability, self.student.logits(volume, self.symmetries))


def fuse_student(
    session: Session, cases: Cases, fit: FitResult, choice: Choice, trained: Trained, use: PhaseUse
) -> Refinement | None:  # fmt: skip
    """What the student adds to the ensemble, or None. Decided once, recorded and replayed; emits ``STUDENT_FUSION``.

    Its figures go into ``choice.figures["student"]``; ``use`` is told how long a GPU worked for it, or that there was
    nothing to do.

    Raises:
        StoppedError: only the time for packaging is left, or a signal.
    """
    best = best_student(session, fit.plan, trained)
    if best is None:
        use.nothing_to_do()
        return None
    from nx46vx.student.fusion import Fusion

    spec, figures = best
    decisions = Decisions(session.paths.decisions)
    recorded = decisions.get(KIND, "fusion")
    replayed = recorded is not None
    student = _load(session, fit, spec)
    if recorded is not None:
        use.nothing_to_do()
    else:
        with heartbeat(session.log, "student_fusion"):
            recorded = {**figures, **_judged(session, cases, fit, choice.ensemble, student)}
        use.on_gpu(student.clock.seconds)
        decisions.put(KIND, "fusion", recorded)
    session.log.emit("STUDENT_FUSION", replayed=replayed, **recorded)
    choice.figures["student"] = recorded
    say(f"student: {'fused' if recorded['fused'] else 'not fused'} ({recorded['fusion']['reason']})")
    if not recorded["fused"]:
        return None
    symmetries = student.symmetries if recorded["averaged"] else student.symmetries[:1]
    return Refinement(student, Fusion.from_json(recorded["weights"]), symmetries)


def _judged(session: Session, cases: Cases, fit: FitResult, ensemble: Ensemble, student: Student) -> dict[str, Any]:
    """The judgement; a student that fails here is left out, unless it was asked for."""
    try:
        return _judge(session, cases, fit, ensemble, student)
    except StoppedError:
        raise
    except (NX46Error, RuntimeError, OSError) as error:
        if session.settings.student.enabled is True:
            raise
        reason = f"{type(error).__name__}: {error}"[:500]
        session.log.emit("STUDENT_FAILED", error=reason)
        return {"fused": False, "averaged": False, "fusion": {"kept": False, "reason": f"it failed: {reason}"}}


def _load(session: Session, fit: FitResult, spec: StudentSpec) -> Student:
    from nx46vx.student.inference import trained_network
    from nx46vx.student.symmetry import for_averaging

    checkpoint = session.store(fit.plan).latest(spec.owner, session.log)
    assert checkpoint is not None
    net = trained_network(spec, checkpoint.arrays())
    micro_batch = int(checkpoint.manifest["model_state"]["micro_batch"] or 1)
    return Student(spec, net, micro_batch, for_averaging(spec.symmetries))


def _judge(session: Session, cases: Cases, fit: FitResult, ensemble: Ensemble, student: Student) -> dict[str, Any]:
    """Both verdicts, the weights, and how all three sides do on the hold-out cases, which decide nothing."""
    from nx46vx.student.fusion import TOO_LATE, fit_fusion, judge_averaging, judge_fusion

    settings, started = session.settings.student, time.monotonic()
    chosen = fit.data.validation[: settings.fusion_cases]
    plain = _cases(session, cases, fit, ensemble, student, chosen, student.symmetries[:1])
    per_volume = (time.monotonic() - started) / max(len(plain), 1)
    alone = _ensemble_seconds(session, cases, ensemble)
    averaged, tta = False, _averaging(session, cases, student, per_volume, alone)
    used = plain
    if tta is None:
        often = _cases(session, cases, fit, ensemble, student, chosen, student.symmetries)
        verdict = judge_averaging(plain, often, settings.fusion_min_gain)
        averaged, tta = verdict.kept or settings.tta is True, verdict.to_json()
        used = often if averaged else plain
    per_volume *= len(student.symmetries) if averaged else 1
    fusion, verdict = fit_fusion(used), judge_fusion(used, settings.fusion_min_gain)
    told = verdict.to_json()
    if verdict.kept and not _fits(session, cases, alone + per_volume):
        told |= {"kept": False, "reason": TOO_LATE}
    elif verdict.kept:
        session.costs.add("segment_case", alone + per_volume)  # the reserve has to know
    return {
        "fused": told["kept"], "averaged": averaged, "weights": fusion.to_json(), "fusion": told, "tta": tta,
        "seconds_per_volume": per_volume,
        "holdout": _holdout(session, cases, fit, ensemble, student, used, fusion, averaged),
    }  # fmt: skip


def _averaging(
    session: Session, cases: Cases, student: Student, per_volume: float, alone: float
) -> dict[str, Any] | None:
    """Why test-time augmentation is not even tried, or None."""
    asked, reason = session.settings.student.tta, None
    judged = sum(len(cases.of(role)[: session.settings.student.fusion_cases]) for role in ("validation", "holdout"))
    often = per_volume * len(student.symmetries)
    if asked is False or len(student.symmetries) < 2:
        reason = "not asked for" if asked is False else "no symmetry is allowed"
    elif asked == "auto" and "test_time_augmentation_off" in session.governor.actions:
        reason = "the run is late"
    elif asked == "auto" and not _fits(session, cases, alone + often, often * judged):
        reason = "too little time is left"
    return None if reason is None else {"kept": False, "reason": reason}


def _ensemble_seconds(session: Session, cases: Cases, ensemble: Ensemble) -> float:
    """What the ensemble alone takes for a volume: as measured before, or on a validation volume now."""
    known = session.costs.p95("segment_case")
    if known is not None:
        return known
    case, started = cases.of("validation")[0], time.monotonic()
    volume = session.image(case)
    probability_volume(volume, ensemble, block=session.settings.features.block)
    return time.monotonic() - started


def _fits(session: Session, cases: Cases, per_volume: float, before: float = 0.0) -> bool:
    """Whether all volumes can be segmented, at so many seconds each, in the time that is left."""
    governor = session.governor
    volumes = len(cases.dataset.test) + governor.work.calibrate_cases
    return MEASURED_FACTOR * (per_volume * volumes + before) <= governor.remaining - governor.margin


def _cases(
    session: Session, cases: Cases, fit: FitResult, ensemble: Ensemble, student: Student, chosen: Sequence[Samples],
    symmetries: tuple[Symmetry, ...],
) -> list[FusionCase]:  # fmt: skip
    """Both sides' logits on the sampled voxels of some cases."""
    from nx46vx.student.fusion import FusionCase

    found = []
    for samples in chosen:
        if not session.governor.may_package():
            raise StoppedError(f"stopped by {session.governor.reason}", fix="run the same command again to continue")
        seen = evaluate(ensemble.members, fit.data.pool, [samples])
        index = np.asarray(samples.index)[:: max(1, -(-samples.y.size // MAX_SAMPLES))]
        volume = session.image(cases.by_id[samples.case_id])
        logits = student.logits(volume, symmetries).reshape(-1)[index].astype(np.float64)
        neurons = combined_logits(ensemble, seen, fit.data.pool, [samples])
        found.append(FusionCase(samples.case_id, neurons, logits, seen.y))
    return found


def _holdout(
    session: Session, cases: Cases, fit: FitResult, ensemble: Ensemble, student: Student,
    validation: Sequence[FusionCase], fusion: Fusion, averaged: bool,
) -> dict[str, Any]:  # fmt: skip
    """F0.5 of each side on hold-out voxels, at thresholds chosen on validation."""
    from nx46vx.student.fusion import pooled_counts

    chosen = fit.holdout[: session.settings.student.fusion_cases]
    symmetries = student.symmetries if averaged else student.symmetries[:1]
    holdout = _cases(session, cases, fit, ensemble, student, chosen, symmetries)
    sides: Mapping[str, Any] = {
        "neurons": lambda neurons, student: neurons, "student": lambda neurons, student: student,
        "fused": fusion.logits,
    }  # fmt: skip
    told: dict[str, Any] = {"cases": [case.case_id for case in holdout]}
    for name, scores in sides.items():
        at = pooled_counts(validation, scores).best()
        told[f"{name}_f_half"] = float(pooled_counts(holdout, scores).f_beta(0.5)[at])
    return told
