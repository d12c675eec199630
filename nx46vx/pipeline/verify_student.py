"""Verifying a student: its checkpoints against plan and log, its decisions and its verdicts computed again.

Needs no torch. What only the network itself could tell, the logits behind the folds' figures, is named as not checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nx46vx.events.chain import RESERVED
from nx46vx.model.fitplan import FitPlan
from nx46vx.paths import RunPaths
from nx46vx.pipeline.findings import Findings
from nx46vx.pipeline.primary import CandidateLog, RunLog
from nx46vx.pipeline.verify_plan import Plan
from nx46vx.runtime.checkpoint import Checkpoint, CheckpointStore
from nx46vx.runtime.checkpoint.folder import MANIFEST
from nx46vx.runtime.checkpoint.shelf import Shelf
from nx46vx.runtime.digest import canonical_json
from nx46vx.runtime.files import REAL_FILES
from nx46vx.runtime.sink import NullSink
from nx46vx.settings import Settings
from nx46vx.student.fusion import TOO_LATE, why_not
from nx46vx.student.spec import OWNER_PREFIX, StudentSpec, owner_of
from nx46vx.student.validation import EarlyStopping

#: Decision of the student's stage -> the event that tells of it.
_TOLD = {"decision": "STUDENT_DECISION", "ended": "STUDENT_ENDED", "fusion": "STUDENT_FUSION"}


def check_student(
    findings: Findings, paths: RunPaths, settings: Settings, plan: Plan, log: RunLog, report: Mapping[str, Any] | None
) -> None:
    """Everything a student left in a run directory; nothing where none was asked for and none is there.

    ``report``: ``report.json`` as far as the newest session made it.
    """
    assert plan.fit is not None
    store = CheckpointStore(paths.checkpoints, run_id=plan.fit.run_id, identity=plan.fit.identity)
    owners = [owner for owner in store.owners() if owner.startswith(OWNER_PREFIX)]
    asked = settings.student.variants if settings.student.enabled is not False else ()
    for owner in sorted({*owners} - {owner_of(variant) for variant in asked}):
        findings.problem(paths.checkpoints / owner, "the configuration asks for no such student")
    decided = _check_decisions(findings, paths, settings, log, report)
    epochs = (decided.get("decision") or {}).get("epochs")
    for position, variant in enumerate(asked):
        written = log.candidates.get(owner_of(variant), CandidateLog())
        path = paths.checkpoints / owner_of(variant)
        newest = None
        with findings.guard(path):
            newest = store.latest(owner_of(variant), NullSink())
        if newest is None:
            if written.payloads:
                findings.problem(path, "no valid checkpoint of a student that was trained")
            continue
        if epochs is None:
            findings.problem(path, "nobody decided to train this student")
            continue
        spec = _spec_of(settings, plan, variant, int(epochs))
        with findings.guard(newest.path / MANIFEST):
            _check_checkpoint(findings, plan.fit, spec, (position, len(asked)), newest, log)
            _check_epochs(findings, spec, newest, written, log.complete)
        findings.checked["students"] += 1


def _spec_of(settings: Settings, plan: Plan, variant: Any, epochs: int) -> StudentSpec:
    """The student as the run's pipeline would make it; where it runs does not matter here."""
    split, judges = plan.value["split"], settings.student.validation_cases
    train, validation = ([plan.by_id[name] for name in split[role]] for role in ("train", "validation"))
    return StudentSpec(
        plan.fit.run_id if plan.fit is not None else "", settings.seed, variant, settings.student, tuple(train),
        tuple(validation[:judges]), epochs,
    )  # fmt: skip


def _check_checkpoint(
    findings: Findings, fit: FitPlan, spec: StudentSpec, position: tuple[int, int], newest: Checkpoint, log: RunLog
) -> None:
    """Identity, signature, cursor and fencing mark of the newest checkpoint."""
    manifest, path = newest.manifest, newest.path / MANIFEST
    state, steps = manifest["model_state"], spec.settings.steps_per_epoch
    identity = manifest["identity"]
    told = {key: fit.identity[key] for key in fit.identity if key != "numeric_environment"}
    findings.compare(path, told, {key: identity.get(key) for key in told}, "identity")
    numerics = {canonical_json(boot["numeric_environment"]).decode() for boot in log.boots}
    if log.boots and identity.get("numeric_environment") not in numerics:
        findings.problem(path, "identity.numeric_environment is that of no session in the log")
    wanted = {
        "signature": spec.signature, "variant": spec.variant, "iterations": state["epoch"] * steps + state["step"],
    }  # fmt: skip
    findings.compare(path, wanted, {key: state.get(key) for key in wanted}, "model_state")
    cursor = {
        "epoch": state["epoch"], "iter": state["step"], "max_iter": steps, "candidate_index": position[0],
        "candidate_total": position[1],
    }  # fmt: skip
    findings.compare(path, cursor, {key: manifest[key] for key in cursor}, "cursor")
    data = {
        "files": len(spec.train) + len(spec.validation), "offset": state["step"], "digest": spec.data_digest,
    }  # fmt: skip
    findings.compare(path, data, {key: manifest["data_cursor"].get(key) for key in data}, "data_cursor")
    mark = Shelf(REAL_FILES, newest.path.parent).fence()
    if not manifest["fence"] <= mark <= log.fence:
        findings.problem(
            newest.path.parent, f"its fencing mark {mark} is not between {manifest['fence']} and session {log.fence}"
        )


def _check_epochs(
    findings: Findings, spec: StudentSpec, newest: Checkpoint, written: CandidateLog, complete: bool
) -> None:
    """Scores, best epoch and early stopping again, from the F0.5 of each validation volume in the log."""
    path, state = newest.path / MANIFEST, newest.manifest["model_state"]
    if (committed := written.payloads.get(newest.number)) is not None:
        findings.compare(path, committed, newest.manifest["sha512_payload"], "sha512_payload")
    if state["epoch"] > len(written.epochs) or (complete and state["epoch"] != len(written.epochs)):
        findings.problem(path, f"it stands after epoch {state['epoch']}, the log counts {len(written.epochs)}")
    stopping = EarlyStopping(spec.settings.patience, spec.settings.min_delta)
    for number in range(1, state["epoch"] + 1):
        if (event := written.epochs.get(number)) is None:
            findings.problem(path, f"the log does not tell of epoch {number}")
            return
        each = event["f_beta_each"]
        score = float(np.mean(each)) - spec.settings.stability_weight * float(np.std(each))
        findings.close(path, score, event["score"], f"score of epoch {number}", 1e-12)
        stopping.saw(number, float(event["score"]))
    findings.compare(path, stopping.to_json(), state["stopping"], "stopping")
    figures = {key: value for key, value in newest.manifest["best_metrics"].items() if key != "seconds"}
    if state["epoch"]:
        event = written.epochs[state["epoch"]]
        findings.compare(path, {key: event.get(key) for key in figures}, figures, "best_metrics")


def _check_decisions(
    findings: Findings, paths: RunPaths, settings: Settings, log: RunLog, report: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """``decisions.json``, log and report agree, and the verdicts follow from their folds; returns the decisions."""
    value = findings.read_json(paths.decisions) if paths.decisions.exists() else None
    decided: Mapping[str, Any] = (value or {}).get("student", {})
    with findings.guard(paths.decisions):
        for key, name in _TOLD.items():
            event = log.newest.get(name)
            told = None if event is None else {k: v for k, v in event.items() if k not in RESERVED | {"replayed"}}
            if told is None and not log.complete:
                continue  # killed after a decision was recorded and before the log told of it
            findings.compare(paths.decisions, told, decided.get(key), f"student.{key}")
        for key in sorted(decided.keys() - _TOLD.keys()):
            findings.problem(paths.decisions, f"student.{key} is no decision")
    fusion = decided.get("fusion")
    if report is not None and ("STUDENT_FUSION" in log.session or "student" in report):
        findings.compare(paths.report_json, fusion, report.get("student"), "student")
    if fusion is not None:
        with findings.guard(paths.decisions):
            _check_verdict(findings, paths, "fusion", fusion["fusion"], fusion["fused"])
            if fusion.get("tta") is not None:
                wanted = "folds_before" in fusion["tta"] and settings.student.tta is True
                _check_verdict(findings, paths, "tta", fusion["tta"], None if wanted else fusion["averaged"])
        findings.skip("the student's logits", "the folds' figures and the weights are taken from the log")
    return decided


def _check_verdict(findings: Findings, paths: RunPaths, name: str, told: Mapping[str, Any], used: bool | None) -> None:
    """``used``: whether what was judged is in use; None where that was asked for, whatever the verdict."""
    if used is not None:
        findings.compare(paths.decisions, told["kept"], used, f"student.{name}, whether it is used")
    before, after = told.get("folds_before") or (), told.get("folds_after") or ()
    if not before:
        findings.compare(paths.decisions, False, told["kept"], f"student.{name}.kept")
        return
    gains = [two - one for one, two in zip(before, after, strict=True)]
    expected: dict[str, Any] = {"gains": gains, "mean_gain": float(np.mean(gains))}
    reason = why_not(gains, float(told["min_gain"]))
    if reason is not None or told["reason"] != TOO_LATE:
        expected |= {"kept": reason is None, "reason": reason or "a stable gain"}
    findings.compare(paths.decisions, expected, {key: told.get(key) for key in expected}, f"student.{name}")
