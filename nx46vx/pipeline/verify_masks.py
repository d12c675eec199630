"""Verifying what the masks were made with: each volume's thresholds from its counted distribution, and its maps."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from nx46vx.data.cases import Case
from nx46vx.data.volume_io import read_volume
from nx46vx.inference.masks.parameters import MaskRule
from nx46vx.inference.masks.profile import VolumeProfile
from nx46vx.paths import RunPaths
from nx46vx.pipeline.findings import Findings
from nx46vx.pipeline.primary import Event, RunLog
from nx46vx.pipeline.segment import PER_VOLUME
from nx46vx.runtime.files import REAL_FILES
from nx46vx.settings import Settings


def masks_figures(log: RunLog, test: Sequence[Case], foreground: Mapping[str, float]) -> dict[str, Any]:
    """The report's ``masks``: the rule as the log has it, thresholds computed again from each volume's counts.

    Raises:
        KeyError, ValueError: the log holds malformed events.
    """
    event = log.newest["MASK_PARAMETERS"]
    rule = rule_of(event)
    thresholds = {}
    for case in test:
        if case.case_id in foreground:
            parameters = rule.at(VolumeProfile.from_json(log.thresholds[case.case_id]))
            thresholds[case.case_id] = {name: getattr(parameters, name) for name in PER_VOLUME}
    return {
        "rule": rule.to_json(), "vote_at": event["vote_at"], "validation_f_half": event["validation_f_half"],
        "thresholds": thresholds, "foreground": dict(foreground),
    }  # fmt: skip


def rule_of(event: Event) -> MaskRule:
    """The rule that an event names."""
    return MaskRule(**{one.name: event[one.name] for one in fields(MaskRule)})


def check_maps(findings: Findings, paths: RunPaths, settings: Settings, test: Sequence[Case], log: RunLog) -> None:
    """Each map of doubt is the array that the log traced; no other file lies beside them."""
    folder = paths.uncertainty
    names = set(REAL_FILES.listdir(folder)) if folder.is_dir() else set()
    wanted = {(case.case_id, name): paths.map(case.case_id, name) for case in test for name in paths.MAPS}
    for name in sorted(names - {path.name for path in wanted.values()}):
        findings.problem(folder / name, "no map of a test volume has this name")
    for (case_id, name), path in wanted.items():
        trace = log.traces.get((name, case_id))
        if path.name not in names:
            if log.handed_in and settings.mask.keep_maps:
                findings.problem(path, "is missing, and the log says that it was made")
            continue
        if not log.handed_in:
            continue
        with findings.guard(path):
            found = hashlib.sha512(np.ascontiguousarray(read_volume(path)).data).hexdigest()
            findings.compare(path, trace["sha512"] if trace is not None else None, found, "voxels")
            findings.checked["maps of doubt"] += 1
