"""The optional search over the mask rule: as much of it as the time allows, decided once, the same on every resume."""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nx46vx.inference.calibrate import Labelled
from nx46vx.inference.masks.parameters import MaskRule
from nx46vx.logs import say
from nx46vx.pipeline.decisions import Decisions
from nx46vx.pipeline.session import Session
from nx46vx.report.bars import bars_svg
from nx46vx.runtime.atomic import write_text
from nx46vx.runtime.digest import digest_json
from nx46vx.runtime.heartbeat import heartbeat
from search.resources import usable_cpus
from trainables.mask_task import PARTS, MaskVolumes

#: Rows of the leaderboard that go into the report.
SHOWN = 10
#: Title of the plot.
IMPORTANCE = "What decides whether a rule is among the best (PED-ANOVA)"


@dataclass(frozen=True)
class Searched:
    """The best rule and the report's figures. ``undecided``: stopped midway, a later session goes on."""

    rule: MaskRule
    figures: dict[str, Any] | None
    undecided: bool = False


def search_rule(
    session: Session, start: MaskRule, volumes: Sequence[Labelled], cases: Sequence[str], *, thresholds: bool
) -> Searched:
    """Search from ``start`` on validation volumes; ``thresholds``: whether those may move too.

    Where time is short, or was when it was decided, the trials scored until then count: whole batches of them.
    """
    settings, decisions = session.settings.mask.search, Decisions(session.paths.decisions)
    decided = decisions.get("mask_search", "trials")
    wanted = settings.trials if decided is None else int(decided["trials"])
    if decided is None and (short := _short_of_time(session)):
        return _decide(session, decisions, start, {}, {}, 0, short)
    if wanted == 0:
        return _decide(session, decisions, start, {}, {}, 0, str(decided["reason"]), replayed=True)
    try:
        from search.mask_search import MaskJob, TrialSource, search_inline
        from search.mask_study import MaskStudy
    except ImportError as error:
        return _decide(session, decisions, start, {}, {}, 0, f"Optuna cannot be had: {error}")
    binding = digest_json(
        {
            "volumes": [_digest(volume) for volume in volumes], "cases": list(cases), "start": start.to_json(),
            "thresholds": thresholds, "seed": session.settings.seed, "batch": settings.batch,
            "trials": settings.trials,
        }
    )  # fmt: skip
    study = MaskStudy(
        session.paths.mask_journal, start=start, thresholds=thresholds, binding=binding, seed=session.settings.seed,
        batch=settings.batch, trials=settings.trials,
    )  # fmt: skip
    for number, result in sorted(study.results().items()):
        _tell(session, number, result["rule"], result, replayed=True)
    reason = ""

    def may_go_on() -> bool:
        nonlocal reason
        reason = "" if len(study.results()) < wanted else "complete"
        reason = reason or (_short_of_time(session) if decided is None else "")
        return not reason and not session.stop()

    def done(draw: Any, result: Mapping[str, Any]) -> None:
        session.costs.add("mask_trial", float(result["seconds"]))
        _tell(session, draw.number, draw.rule, result, replayed=False)

    if len(study.results()) < wanted:
        scored = MaskVolumes(session.paths.mask_volumes, tuple(cases))
        try:
            for number, (prediction, label) in enumerate(volumes):
                with session.io.counting("write_search_volumes"):
                    scored.put(number, prediction, label)
            source = TrialSource(study, may_go_on, done)
            at_once = min(settings.batch, usable_cpus())
            job = MaskJob(source, scored, session.paths.root, session.fence, at_once, session.stop)
            with heartbeat(session.log, "mask_search"):
                if session.settings.resources.executor == "inline":
                    search_inline(job)
                else:
                    from search.mask_runner import search_through_tune

                    search_through_tune(job, session.settings.resources.ray_address)
        finally:
            shutil.rmtree(session.paths.mask_volumes, ignore_errors=True)
    results = study.results()
    whole = next((n for n in range(len(results) + 1) if n not in results), len(results))
    if decided is None and session.stop() and whole < wanted:
        return Searched(start, None, undecided=True)
    trials = wanted if whole >= wanted else whole // settings.batch * settings.batch
    chosen = {number: results[number] for number in range(trials)}
    if decided is not None and whole < wanted:
        return Searched(start, None, undecided=True)
    why = "complete" if trials >= settings.trials else str(decided["reason"]) if decided else reason or "time"
    return _decide(
        session, decisions, start, chosen, study.importance(trials), trials, why, replayed=decided is not None
    )  # fmt: skip


def figures_of(
    results: Mapping[int, Mapping[str, Any]], importance: Mapping[str, float], trials: int, reason: str
) -> dict[str, Any]:
    """What the report says of the search: how many trials and why, the best of them, what mattered."""
    ranked = _ranked(results)
    return {
        "trials": trials, "reason": reason, "importance": dict(importance),
        "start": {part: results[0][part] for part in PARTS} if results else None,
        "leaderboard": [
            {"number": number, **{part: results[number][part] for part in PARTS}} for number in ranked[:SHOWN]
        ],
    }  # fmt: skip


def best_rule(results: Mapping[int, Mapping[str, Any]], start: MaskRule) -> MaskRule:
    """The rule of the trial with the best score, the first among equals; the start where there is no trial."""
    return MaskRule(**results[_ranked(results)[0]]["rule"]) if results else start


def leaderboard_text(results: Mapping[int, Mapping[str, Any]]) -> str:
    """All trials as CSV, best first, in full precision."""
    out = io.StringIO()
    names = sorted({name for result in results.values() for name in result["rule"]})
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["number", *PARTS, *names])
    for number in _ranked(results):
        result = results[number]
        writer.writerow([number, *(repr(result[part]) for part in PARTS), *(repr(result["rule"][n]) for n in names)])
    return out.getvalue()


def _digest(volume: Labelled) -> str:
    """Of all that a trial reads of a volume."""
    prediction, label = volume
    found = hashlib.sha512()
    for array in (prediction.probability, prediction.deviation, prediction.disagreement, label):
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _ranked(results: Mapping[int, Mapping[str, Any]]) -> list[int]:
    return sorted(results, key=lambda number: (-results[number]["score"], number))


def _short_of_time(session: Session) -> str:
    """Why no further batch is begun; empty where there is time."""
    governor, settings = session.governor, session.settings
    if "optional_phases_off" in governor.actions:
        return "acceleration: optional phases are off"
    needed = (session.costs.p95("mask_trial") or 0.0) * settings.mask.search.batch
    return "time" if governor.draining or needed >= governor.until_stop else ""


def _tell(session: Session, number: int, rule: Mapping[str, Any], result: Mapping[str, Any], *, replayed: bool) -> None:
    parts = {part: result[part] for part in PARTS}
    session.log.emit(
        "MASK_TRIAL", number=number, rule=dict(rule), **parts, cases=result["cases"], seconds=result["seconds"],
        replayed=replayed,
    )  # fmt: skip


def _decide(
    session: Session, decisions: Decisions, start: MaskRule, results: Mapping[int, Mapping[str, Any]],
    importance: Mapping[str, float], trials: int, reason: str, *, replayed: bool = False,
) -> Searched:  # fmt: skip
    """Record how far the search went, write its leaderboard and plot, and choose."""
    if not replayed:
        decisions.put("mask_search", "trials", {"trials": trials, "reason": reason})
    figures = figures_of(results, importance, trials, reason)
    if trials:
        write_text(session.paths.mask_leaderboard, leaderboard_text(results))
        write_text(session.paths.mask_importance, bars_svg(IMPORTANCE, importance))
        session.log.emit("MASK_SEARCH", **figures, replayed=replayed)
        best, first = figures["leaderboard"][0]["score"], figures["start"]["score"]
        say(f"mask search: {trials} trials ({reason}), score {best:.4f} against {first:.4f} at the start")
    else:
        session.log.emit("MASK_SEARCH_SKIPPED", reason=reason, replayed=replayed)
        say(f"mask search: skipped ({reason})")
    return Searched(best_rule(results, start), figures)
