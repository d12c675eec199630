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
from nx46vx.pipeline.masksearch import IMPORTANCE, best_rule, figures_of, leaderboard_text
from nx46vx.pipeline.primary import Event, RunLog
from nx46vx.pipeline.segment import PER_VOLUME
from nx46vx.report.bars import bars_svg
from nx46vx.runtime.files import REAL_FILES
from nx46vx.settings import Settings
from trainables.mask_task import PARTS


def masks_figures(log: RunLog, test: Sequence[Case], foreground: Mapping[str, float]) -> dict[str, Any]:
    """The report's ``masks``: the rule as the log has it, thresholds computed again from each volume's counts.

    Raises:
        KeyError, ValueError: the log holds malformed events.
    """
    event = log.newest["MASK_PARAMETERS"]
    search, results = search_figures(log)
    rule = best_rule(results, rule_of(event))
    thresholds = {}
    for case in test:
        if case.case_id in foreground:
            parameters = rule.at(VolumeProfile.from_json(log.thresholds[case.case_id]))
            thresholds[case.case_id] = {name: getattr(parameters, name) for name in PER_VOLUME}
    return {
        "rule": rule.to_json(), "vote_at": event["vote_at"], "validation_f1": event["validation_f1"],
        "validation_f_half": event["validation_f_half"],
        "thresholds": thresholds, "foreground": dict(foreground), "search": search,
    }  # fmt: skip


def search_figures(log: RunLog) -> tuple[dict[str, Any] | None, dict[int, Event]]:
    """The report's figures of the mask search from its trials' events, and those trials; None where there was none."""
    if "MASK_SEARCH_SKIPPED" in log.session:
        return figures_of({}, {}, 0, log.newest["MASK_SEARCH_SKIPPED"]["reason"]), {}
    if "MASK_SEARCH" not in log.session:
        return None, {}
    event = log.newest["MASK_SEARCH"]
    results = {number: log.mask_trials[number] for number in range(int(event["trials"]))}
    return figures_of(results, event["importance"], len(results), event["reason"]), results


def check_search(findings: Findings, paths: RunPaths, log: RunLog) -> None:
    """Leaderboard and plot follow from the log, and the journal holds the trials that the log tells of."""
    if "MASK_SEARCH" not in log.session:
        return
    with findings.guard(paths.mask_search):
        figures, results = search_figures(log)
        assert figures is not None
        findings.compare(paths.mask_search, log.newest["MASK_SEARCH"]["leaderboard"], figures["leaderboard"])
        for path, text in (
            (paths.mask_leaderboard, leaderboard_text(results)),
            (paths.mask_importance, bars_svg(IMPORTANCE, figures["importance"])),
        ):
            if findings.read(path) not in (text.encode(), None):
                findings.problem(path, "it does not follow from the log's trials")
        findings.checked["mask trials"] += len(results)
    try:
        from search.mask_study import read_results
    except ImportError:
        findings.skip(paths.mask_journal.name, "Optuna is not installed here")
        return
    with findings.guard(paths.mask_journal):
        kept = read_results(paths.mask_journal)
        for number, event in results.items():
            told = {part: event[part] for part in PARTS}
            found = {part: kept[number][1][part] for part in PARTS} if number in kept else None
            findings.compare(paths.mask_journal, told, found, f"trial {number}")


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
