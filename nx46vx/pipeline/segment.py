"""Stage five: mask thresholds from validation volumes, then one mask per test volume."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from nx46vx.data.cases import Case
from nx46vx.data.volume_io import read_volume, write_volume
from nx46vx.errors import StoppedError
from nx46vx.inference.calibrate import Calibration, calibrate_mask
from nx46vx.inference.postprocess import MaskParameters, make_mask
from nx46vx.inference.predict import probability_volume
from nx46vx.logs import say
from nx46vx.model.ensemble import Ensemble
from nx46vx.pipeline.dataset import Cases
from nx46vx.pipeline.session import Session
from nx46vx.runtime.heartbeat import heartbeat
from nx46vx.runtime.sink import trace_array

#: A volume (z, y, x) uint8 and the ensemble's probability of it to the probability that is used.
Refine = Callable[[np.ndarray, np.ndarray], np.ndarray]


def segment(
    session: Session, cases: Cases, ensemble: Ensemble, *, counts: bool, refine: Refine | None = None
) -> dict[str, Any]:
    """Write ``masks/ID.tif`` for every test case; returns the parameters and the foreground share of each.

    ``counts``: whether this is the final ensemble, so that the work counts as progress. ``refine``: what another model
    makes of the ensemble's probability, where there is one.
    """
    with heartbeat(session.log, "calibrate"):
        calibration = _calibrate(session, cases, ensemble, refine)
    parameters = calibration.parameters
    session.log.emit("MASK_PARAMETERS", **vars(parameters), validation_f_half=calibration.f_half)
    say(f"masks: strong {parameters.strong_th}, weak {parameters.weak_th}, validation F0.5 {calibration.f_half:.3f}")
    foreground = {}
    with heartbeat(session.log, "segment"), contextlib.closing(_volumes(session, cases.dataset.test)) as volumes:
        for number, (case, volume) in enumerate(volumes, start=1):
            started = time.monotonic()
            probability = _probability(session, volume, ensemble, refine)
            trace_array(session.log, "probability", probability, case_id=case.case_id)
            mask = make_mask(probability, parameters)
            trace_array(session.log, "mask", mask, case_id=case.case_id)
            write_volume(session.paths.mask(case.case_id), mask, compression=None)
            foreground[case.case_id] = float(np.count_nonzero(mask) / mask.size)
            session.costs.add("segment_case", time.monotonic() - started)
            if counts:
                session.progress.set("segment", number / len(cases.dataset.test))
            session.log.emit(
                "PROGRESS_UPDATE", stage="segment", file=case.case_id, index=number, total=len(cases.dataset.test)
            )
            say(f"masks: {number} of {len(cases.dataset.test)}: {case.case_id}, {100 * foreground[case.case_id]:.2f} %")
    session.costs.save()
    return {"parameters": vars(parameters), "validation_f_half": calibration.f_half, "foreground": foreground}


def _volumes(session: Session, cases: Sequence[Case]) -> Generator[tuple[Case, np.ndarray]]:
    """The cases' volumes, one after the other; in an accelerated run the next is read while one is worked on."""
    ahead: Future[np.ndarray] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as reader:
        for case, following in itertools.zip_longest(cases, cases[1:]):
            _check(session)
            volume = ahead.result() if ahead is not None else read_volume(case.image, case_id=case.case_id)
            ahead = None
            if following is not None and "prefetch" in session.governor.actions:
                ahead = reader.submit(_in_memory, following)
            yield case, volume


def _in_memory(case: Case) -> np.ndarray:
    return np.array(read_volume(case.image, case_id=case.case_id))


def _calibrate(session: Session, cases: Cases, ensemble: Ensemble, refine: Refine | None) -> Calibration:
    mask = session.settings.mask
    strong = None if mask.strong_th == "auto" else mask.strong_th
    weak = None if mask.weak_th == "auto" else mask.weak_th
    volumes = []
    for case in cases.of("validation")[: mask.calibration_volumes]:
        _check(session)
        assert case.label is not None
        label = np.asarray(read_volume(case.label, case_id=case.case_id))
        volume = read_volume(case.image, case_id=case.case_id)
        volumes.append((_probability(session, volume, ensemble, refine), label))

    def make(strong_th: float, weak_th: float) -> MaskParameters:
        return MaskParameters(strong_th, weak_th, mask.z_radius, mask.xy_radius, mask.dust_min_size)

    return calibrate_mask(volumes, strong=strong, weak=weak, make=make)


def _check(session: Session) -> None:
    """Between two volumes: go on as long as the governor lets the packaging go on.

    Raises:
        StoppedError: only the margin is left, or a signal asked for the end and this would take too long.
    """
    if not session.governor.may_package():
        raise StoppedError(f"stopped by {session.governor.reason}", fix="run the same command again to continue")


def _probability(session: Session, volume: np.ndarray, ensemble: Ensemble, refine: Refine | None) -> np.ndarray:
    probability = probability_volume(volume, ensemble, block=session.settings.features.block)
    return probability if refine is None else refine(volume, probability)
