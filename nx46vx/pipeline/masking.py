"""Stage between ensemble and masks: which rule makes the masks, chosen on validation volumes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nx46vx.errors import StoppedError
from nx46vx.inference.calibrate import Labelled, calibrate_mask
from nx46vx.inference.masks.doubt import Prediction
from nx46vx.inference.masks.parameters import MaskRule
from nx46vx.inference.predict import predict, without_unscanned
from nx46vx.logs import say
from nx46vx.model.ensemble import Ensemble
from nx46vx.model.metrics import THRESHOLDS
from nx46vx.pipeline.choose import Choice
from nx46vx.pipeline.dataset import Cases
from nx46vx.pipeline.maskrule import configured_rule
from nx46vx.pipeline.masksearch import Searched, search_rule
from nx46vx.pipeline.session import Session
from nx46vx.runtime.heartbeat import heartbeat

#: A volume (z, y, x) uint8 and the ensemble's probability of it to the probability that is used.
Refine = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class MaskChoice:
    """The rule, the probability at which a member votes for surface, and the voxel F1 and F0.5 on validation volumes.

    ``search``: figures of the search, None where there was none. ``undecided``: it was stopped, and goes on later.
    """

    rule: MaskRule
    vote_at: float
    f1: float
    f_half: float
    search: dict[str, Any] | None = None
    undecided: bool = False


def choose_rule(
    session: Session, cases: Cases, choice: Choice, refine: Refine | None = None, *, search: bool = False
) -> MaskChoice:  # fmt: skip
    """Choose the thresholds that the configuration leaves open; ``MASK_PARAMETERS`` says what was chosen.

    ``refine``: what another model makes of the ensemble's probability, where there is one. ``search``: whether
    the run is whole, so that a better rule may be searched for.

    Raises:
        StoppedError: only the margin is left, or a signal asked for the end and this would take too long.
    """
    vote_at = THRESHOLDS[choice.figures["validation"]["threshold_index"]]
    start, strong, weak = configured_rule(session.settings.mask)
    with heartbeat(session.log, "calibrate"):
        volumes = _validation(session, cases, choice.ensemble, vote_at, refine)
        found = calibrate_mask(volumes, start, strong=strong, weak=weak)
    searched = Searched(found.rule, None)
    if search and session.settings.mask.search.trials:
        searched = search_rule(session, found.rule, volumes, _names(session, cases), thresholds=strong and weak)
    rule = searched.rule
    reached = {"validation_f1": found.f1, "validation_f_half": found.f_half}
    session.log.emit("MASK_PARAMETERS", **rule.to_json(), vote_at=vote_at, **reached)
    unit = "times the expected surface" if rule.per_volume else "probability"
    say(f"masks: strong {rule.strong:.3g}, weak {rule.weak:.3g} ({unit}), validation F1 {found.f1:.3f}")
    return MaskChoice(rule, vote_at, found.f1, found.f_half, searched.figures, searched.undecided)


def predicted(
    session: Session, volume: np.ndarray, ensemble: Ensemble, vote_at: float, refine: Refine | None
) -> Prediction:
    """Probabilities of a volume, refined where there is something to refine them, and the ensemble's doubt."""
    found = predict(volume, ensemble, block=session.settings.features.block, vote_at=vote_at)
    if refine is None:
        return found
    refined = np.array(refine(volume, found.probability))
    return replace(found, probability=without_unscanned(refined, volume))


def check_time(session: Session) -> None:
    """Between two volumes: go on as long as the governor lets the packaging go on.

    Raises:
        StoppedError: only the margin is left, or a signal asked for the end and this would take too long.
    """
    if not session.governor.may_package():
        raise StoppedError(f"stopped by {session.governor.reason}", fix="run the same command again to continue")


def _validation(
    session: Session, cases: Cases, ensemble: Ensemble, vote_at: float, refine: Refine | None
) -> list[Labelled]:
    found = []
    for case in cases.of("validation")[: session.settings.mask.calibration_volumes]:
        check_time(session)
        label = np.asarray(session.label(case))
        found.append((predicted(session, session.image(case), ensemble, vote_at, refine), label))
    return found


def _names(session: Session, cases: Cases) -> list[str]:
    return [case.case_id for case in cases.of("validation")[: session.settings.mask.calibration_volumes]]
