"""Verifying the log and the checkpoint store: chains, seals, anchors, payloads, and every byte of a sealed run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nx46vx.errors import IntegrityError
from nx46vx.events import verify_checkpoints_sealed, verify_log
from nx46vx.events.seal import RUN_SEAL, RunSeal, old_run_seals, read_run_seal
from nx46vx.model.candidates import Grid
from nx46vx.model.fitplan import FitPlan
from nx46vx.model.state import LaneState
from nx46vx.paths import RunPaths
from nx46vx.pipeline.findings import Findings
from nx46vx.pipeline.primary import CandidateLog, RunLog
from nx46vx.runtime.checkpoint import Checkpoint, CheckpointStore, audit_checkpoints
from nx46vx.runtime.checkpoint.folder import MANIFEST, PAYLOAD
from nx46vx.runtime.checkpoint.shelf import Shelf
from nx46vx.runtime.digest import canonical_json, digest_bytes, digest_json
from nx46vx.runtime.files import REAL_FILES
from nx46vx.runtime.sink import NullSink
from nx46vx.student.spec import OWNER_PREFIX
from trainables.task import state_of


@dataclass(frozen=True)
class Standing:
    """A candidate's newest checkpoint: its state, and the seconds spent on it."""

    state: LaneState
    seconds: float


def check_store(findings: Findings, paths: RunPaths, run_id: str, executor: Executor | None) -> RunSeal | None:
    """Check ``events/`` and ``checkpoints/`` byte for byte; returns the run's seal if there is a sound one."""
    store = CheckpointStore(paths.checkpoints, run_id=run_id, identity={})
    anchors: list[dict[str, Any]] = []
    with findings.guard(paths.checkpoints):
        for path, what in audit_checkpoints(paths.checkpoints, run_id):
            findings.problem(path, what)
        anchors = store.anchors()
        findings.checked["checkpoints"] = len(anchors)
    with findings.guard(paths.events):
        findings.add(verify_log(paths.events, anchors, executor=executor))
        findings.checked["event files"] = sum(len(files) for _, _, files in os.walk(paths.events))
    seal: RunSeal | None = None
    with findings.guard(paths.events):
        seal = _seal(paths.events)
    if seal is None:
        findings.skip("the run's seal", "there is none now, so only the chains vouch for the log's newest lines")
        return None
    with findings.guard(paths.checkpoints):
        findings.add(verify_checkpoints_sealed(paths.events, _manifest_digests(paths.checkpoints)))
    with findings.guard(paths.root):
        _check_coverage(findings, paths, seal)
    return seal


def sealed_roots(events: Path) -> list[str]:
    """Roots of the run's seal and of those it had before it went on; damaged ones are left out."""
    roots = []
    for name in [*old_run_seals(REAL_FILES, events), RUN_SEAL]:
        try:
            roots.append(read_run_seal(REAL_FILES, events / name).root)
        except (IntegrityError, OSError):
            continue
    return roots


def check_candidates(
    findings: Findings, paths: RunPaths, fit: FitPlan, log: RunLog, complete: bool
) -> dict[str, Standing]:
    """Hold each candidate's checkpoints against the plan and the log; returns where each of them stands."""
    store = CheckpointStore(paths.checkpoints, run_id=fit.run_id, identity=fit.identity)
    known = {candidate.candidate_id: candidate for candidate in fit.candidates}
    for owner in store.owners():
        if owner not in known and not owner.startswith(OWNER_PREFIX):
            findings.problem(paths.checkpoints / owner, "the plan has no such candidate")
    states: dict[str, Standing] = {}
    for name, candidate in known.items():
        written = log.candidates.get(name, CandidateLog())
        newest = None
        with findings.guard(paths.checkpoints / name):
            newest = store.latest(name, NullSink())
        if newest is None:
            if complete or written.payloads:
                findings.problem(paths.checkpoints / name, "no valid checkpoint of a candidate that was trained")
            continue
        manifest, path = newest.manifest, newest.path / MANIFEST
        era = _era(findings, path, fit, manifest["identity"], log)
        findings.compare(path, fit.data_cursor, manifest["data_cursor"], "data_cursor")
        with findings.guard(path):
            state = state_of(newest)
            states[name] = Standing(state, float(manifest["best_metrics"]["seconds"]))
            told = {
                **candidate.to_json(),
                "spec": fit.spec(candidate.meta_neuron).digest,
                "method": fit.method,
                "iterations": state.iteration,
            }
            findings.compare(path, told, manifest["model_state"], "model_state")
            epoch, within = divmod(state.iteration, era.max_iter)
            cursor = {"epoch": epoch, "iter": within, "max_iter": era.max_iter}
            cursor["candidate_index"] = era.grid.index(candidate)
            findings.compare(path, cursor, {key: manifest[key] for key in cursor}, "cursor")
            _check_against_log(findings, newest, state, written, complete)
            mark = Shelf(REAL_FILES, paths.checkpoints / name).fence()
            if not manifest["fence"] <= mark <= log.fence:
                what = f"its fencing mark {mark} is not between {manifest['fence']} and session {log.fence}"
                findings.problem(paths.checkpoints / name, what)
        findings.checked["candidates"] += 1
    return states


@dataclass(frozen=True)
class _Era:
    """The grid and ``max_iter`` under which a checkpoint was written."""

    grid: Grid
    max_iter: int


def _era(findings: Findings, path: Path, fit: FitPlan, identity: Mapping[str, str], log: RunLog) -> _Era:
    """Hold a checkpoint's identity against plan and log: its configuration is the plan's, or, for a candidate that was
    kept when the rest was retrained, that of an earlier session."""
    told = {key: value for key, value in fit.identity.items() if key not in ("config", "data", "grid")}
    era = _Era(fit.grid, fit.max_iter)
    earlier = {digest_json(boot["config"]): boot["config"] for boot in log.boots}
    config = earlier.get(identity.get("config", ""))
    if config is None or identity.get("config") == fit.identity["config"]:
        told |= {key: fit.identity[key] for key in ("config", "data", "grid")}
    else:
        keys = {key.removeprefix("grid."): value for key, value in config.items() if key.startswith("grid.")}
        told["grid"] = digest_json(keys)
        era = _Era(Grid(tuple(keys["l1"]), tuple(keys["l2"])), int(keys["max_iter"]))
        if identity.get("data") not in log.datasets:
            findings.problem(path, "identity.data is no dataset that the log knows")
    numerics = {canonical_json(boot["numeric_environment"]).decode() for boot in log.boots}
    if log.boots and identity.get("numeric_environment") not in numerics:
        findings.problem(path, "identity.numeric_environment is that of no session in the log")
    findings.compare(path, told, {key: identity.get(key) for key in told}, "identity")
    return era


def _check_against_log(
    findings: Findings, newest: Checkpoint, state: LaneState, log: CandidateLog, complete: bool
) -> None:
    path = newest.path / MANIFEST
    if state.iteration > log.iterations or (complete and state.iteration != log.iterations):
        findings.problem(path, f"it stands at iteration {state.iteration}, the log counts {log.iterations}")
    kpi = log.kpis.get(state.iteration)
    if kpi is not None:
        metrics = {key: value for key, value in newest.manifest["best_metrics"].items() if key != "seconds"}
        findings.compare(path, {key: kpi.get(key) for key in metrics}, metrics, "best_metrics")
    if (committed := log.payloads.get(newest.number)) is not None:
        findings.compare(path, committed, newest.manifest["sha512_payload"], "sha512_payload")


def _seal(events: Path) -> RunSeal | None:
    try:
        return read_run_seal(REAL_FILES, events / RUN_SEAL)
    except FileNotFoundError:
        return None


def _manifest_digests(root: Path) -> dict[str, str]:
    """Checkpoint -> SHA-512 of its manifest, as far as they can be read."""
    digests = {}
    for owner in sorted(os.listdir(root)) if root.is_dir() else []:
        shelf = Shelf(REAL_FILES, root / owner)
        if not shelf.folder.is_dir():
            continue
        for path in map(shelf.path, shelf.numbers()):
            try:
                digests[f"{owner}/{path.name}"] = digest_bytes(REAL_FILES.read(path / MANIFEST))
            except OSError:
                continue  # the audit names it
    return digests


def _check_coverage(findings: Findings, paths: RunPaths, seal: RunSeal) -> None:
    """On a sealed run nothing may stand under ``events/`` and ``checkpoints/`` that the seal does not vouch for."""
    listed = {RUN_SEAL, *seal.events}
    _check_tree(findings, paths.events, lambda name: name in listed, {os.path.dirname(name) for name in listed})
    held = {f"{name}/{file}" for name in seal.checkpoints for file in (MANIFEST, PAYLOAD)}
    owners = {name.partition("/")[0] for name in seal.checkpoints}
    # a student that failed before its first checkpoint has left nothing but its mark
    owners |= {name for name in _listing(paths.checkpoints) if name.startswith(OWNER_PREFIX)}

    def mark(name: str) -> bool:  # the empty file that says which session wrote here last
        owner, _, file = name.partition("/")
        return owner in owners and file.startswith("fence-") and not (paths.checkpoints / name).stat().st_size

    _check_tree(findings, paths.checkpoints, lambda name: name in held or mark(name), owners | set(seal.checkpoints))
    for owner in sorted(owners):
        marks = [name for name in _listing(paths.checkpoints / owner) if name.startswith("fence-")]
        if len(marks) != 1:
            findings.problem(paths.checkpoints / owner, f"it has {len(marks)} fencing marks instead of one")


def _check_tree(findings: Findings, root: Path, wanted: Callable[[str], bool], folders: set[str]) -> None:
    for place, inner, files in os.walk(root):
        for name in sorted([*files, *inner]):
            path = Path(place) / name
            relative = str(path.relative_to(root))
            known = relative in folders if name in inner and not path.is_symlink() else wanted(relative)
            if not known and not findings.names(path):
                findings.problem(path, "it is not in the run's seal")


def _listing(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []
