"""The last stage: package, gate, report."""

from __future__ import annotations

from typing import Any

from nx46vx import __version__
from nx46vx.errors import IntegrityError
from nx46vx.events.seal import seal_run
from nx46vx.logs import say
from nx46vx.pipeline.choose import Choice
from nx46vx.pipeline.dataset import Cases
from nx46vx.pipeline.fit import FitResult
from nx46vx.pipeline.session import Session
from nx46vx.report.summary import report_markdown
from nx46vx.runtime.atomic import write_json, write_text
from nx46vx.runtime.digest import digest_file
from nx46vx.submission.gate import check_submission
from nx46vx.submission.package import write_submission


def package(session: Session, cases: Cases, foreground: dict[str, float]) -> dict[str, Any]:
    """Zip the masks, read the zip back, and hold it against the competition's rules.

    Raises:
        IntegrityError: a rule is broken.
    """
    paths = session.paths
    with session.io.counting("package"):
        write_submission(paths.submission, {case.case_id: paths.mask(case.case_id) for case in cases.dataset.test})
    empty = [case_id for case_id, share in foreground.items() if share == 0.0]
    gate = check_submission(
        paths.submission, {case.case_id: case.shape for case in cases.dataset.test}, sink=session.log,
        empty_allowed=empty, io=session.io,
    )  # fmt: skip
    if not gate.ok:
        raise IntegrityError(
            "the submission breaks the competition's rules", where=paths.submission, found="; ".join(gate.problems),
            fix="delete the masks folder and run the same command again",
        )  # fmt: skip
    with session.io.counting("package"):
        digest = digest_file(paths.submission)
    return {"file": paths.submission.name, "sha512": digest, "files": list(gate.files)}


def report(
    session: Session, cases: Cases, fit: FitResult, choice: Choice, segmented: dict[str, Any],
    submission: dict[str, Any], seconds: dict[str, float], measured: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Write ``report.md`` and return ``report.json``'s value, which ``finish`` writes; ``measured`` goes into it."""
    goal = session.settings.iterations
    best = min(fit.records.values(), key=lambda r: (float(r["objective"]), str(r["candidate_id"])))
    value = {
        "complete": fit.complete,
        "stopped_by": None if fit.complete else session.governor.reason,
        "candidates_complete": sum(int(r["iter"]) >= goal for r in fit.records.values()),
        "candidates_planned": len(fit.plan.candidates),
        "iterations_done": sum(int(r["iter"]) for r in fit.records.values()),
        "iterations_planned": len(fit.plan.candidates) * goal,
        "reduced": session.settings.reduced,
        "version": __version__,
        "run_id": session.run_id,
        "candidates": len(fit.records),
        "meta_neurons": len(fit.plan.neurons),
        "iterations_per_candidate": min(int(r["iter"]) for r in fit.records.values()),
        "worst_optimality_gap": max(float(r["optimality_gap"]) for r in fit.records.values()),
        "best_candidate": {k: best[k] for k in ("candidate_id", "objective", "val_fbeta", "val_f1", "val_ce")},
        "coverage": cases.to_json()["coverage"],
        "split": cases.split.to_json(),
        "skipped": [list(pair) for pair in cases.dataset.skipped],
        **choice.figures,
        "masks": segmented,
        "submission": submission,
        "seconds": dict(seconds),
        **measured,
    }
    write_text(session.paths.report_md, report_markdown(value))
    return value


def hand_in(session: Session, value: dict[str, Any]) -> None:
    """The report of a partial submission: not marked complete, so the run goes on next time."""
    write_json(session.paths.report_json, value)


def finish(session: Session, fit: FitResult, value: dict[str, Any]) -> dict[str, Any]:
    """Close the run: ``EXEC_COMPLETE``, every log sealed, and last ``report.json``, which marks it finished."""
    session.log.emit("EXEC_COMPLETE", submission_sha512=value["submission"]["sha512"], reduced=session.settings.reduced)
    session.log.seal()
    store = session.store(fit.plan)
    store.tidy()
    value = {**value, "log_root": seal_run(session.paths.events, store.manifest_digests())}
    write_json(session.paths.report_json, value)
    say(f"log sealed, root {value['log_root'][:32]}...")
    return value
