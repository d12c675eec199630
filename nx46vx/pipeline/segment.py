"""Stage five: one mask per test volume, with thresholds of its own, and the maps of how sure it is."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from nx46vx.data.cases import Case
from nx46vx.data.volume_io import read_volume
from nx46vx.inference.masks.doubt import Prediction
from nx46vx.inference.masks.profile import VolumeProfile
from nx46vx.inference.postprocess import make_mask
from nx46vx.logs import say
from nx46vx.model.ensemble import Ensemble
from nx46vx.pipeline.dataset import Cases
from nx46vx.pipeline.masking import MaskChoice, Refine, check_time, predicted
from nx46vx.pipeline.session import Session
from nx46vx.runtime.heartbeat import heartbeat
from nx46vx.runtime.sink import trace_array

#: What of a volume's parameters follows from its own distribution.
PER_VOLUME = ("strong_th", "weak_th", "max_deviation", "max_disagreement")


def segment(
    session: Session,
    cases: Cases,
    ensemble: Ensemble,
    chosen: MaskChoice,
    *,
    counts: bool,
    refine: Refine | None = None,
) -> dict[str, Any]:
    """Write ``masks/ID.tif`` for every test case; returns the rule, and thresholds and foreground share of each.

    ``counts``: whether this is the final ensemble, so that the work counts as progress. ``refine``: what another model
    makes of the ensemble's probability, where there is one.
    """
    foreground: dict[str, float] = {}
    thresholds: dict[str, dict[str, float]] = {}
    with heartbeat(session.log, "segment"), contextlib.closing(_volumes(session, cases.dataset.test)) as volumes:
        for number, (case, volume) in enumerate(volumes, start=1):
            started = time.monotonic()
            prediction = predicted(session, volume, ensemble, chosen.vote_at, refine)
            trace_array(session.log, "probability", prediction.probability, case_id=case.case_id)
            _keep_maps(session, case.case_id, prediction)
            profile = VolumeProfile.of(prediction)
            parameters = chosen.rule.at(profile)
            thresholds[case.case_id] = {name: getattr(parameters, name) for name in PER_VOLUME}
            session.log.emit("MASK_THRESHOLDS", case_id=case.case_id, **thresholds[case.case_id], **profile.to_json())
            mask = make_mask(prediction, parameters)
            trace_array(session.log, "mask", mask, case_id=case.case_id)
            session.write(session.paths.mask(case.case_id), mask, compression=None)
            foreground[case.case_id] = float(np.count_nonzero(mask) / mask.size)
            session.costs.add("segment_case", time.monotonic() - started)
            if counts:
                session.progress.set("segment", number / len(cases.dataset.test))
            session.log.emit(
                "PROGRESS_UPDATE", stage="segment", file=case.case_id, index=number, total=len(cases.dataset.test)
            )
            say(f"masks: {number} of {len(cases.dataset.test)}: {case.case_id}, {100 * foreground[case.case_id]:.2f} %")
    session.costs.save()
    return {
        "rule": chosen.rule.to_json(), "vote_at": chosen.vote_at, "validation_f1": chosen.f1,
        "validation_f_half": chosen.f_half,
        "thresholds": thresholds, "foreground": foreground, "search": chosen.search,
    }  # fmt: skip


def _keep_maps(session: Session, case_id: str, prediction: Prediction) -> None:
    if session.settings.mask.keep_maps:
        for name in session.paths.MAPS:
            values = getattr(prediction, name)
            trace_array(session.log, name, values, case_id=case_id)
            session.write(session.paths.map(case_id, name), values)


def _volumes(session: Session, cases: Sequence[Case]) -> Generator[tuple[Case, np.ndarray]]:
    """The cases' volumes, one after the other; in an accelerated run the next is read while one is worked on."""
    ahead: Future[np.ndarray] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as reader:
        for case, following in itertools.zip_longest(cases, cases[1:]):
            check_time(session)
            volume = ahead.result() if ahead is not None else session.image(case)
            ahead = None
            if following is not None and "prefetch" in session.governor.actions:
                ahead = reader.submit(_in_memory, session, following)
            yield case, volume


def _in_memory(session: Session, case: Case) -> np.ndarray:
    with session.io.counting("read_volumes"):
        return np.array(read_volume(case.image, case_id=case.case_id))
