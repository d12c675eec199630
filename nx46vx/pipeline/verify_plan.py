"""Verifying what a run set out to do: identity, configuration, plan, decisions, against the log and each other."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nx46vx.data.cases import Case
from nx46vx.data.discovery import TEST_IMAGES, TRAIN_IMAGES, TRAIN_LABELS
from nx46vx.data.splits import make_split
from nx46vx.errors import NX46Error
from nx46vx.events.chain import RESERVED
from nx46vx.features.pool import POOL_VERSION, feature_names
from nx46vx.features.request import SampleRequest
from nx46vx.model.candidates import Grid
from nx46vx.model.fitplan import FitPlan
from nx46vx.paths import RunPaths
from nx46vx.pipeline.findings import Findings
from nx46vx.pipeline.planfile import PLAN_VERSION
from nx46vx.pipeline.primary import RunLog
from nx46vx.pipeline.recompute import coverage_pct
from nx46vx.pipeline.signature import MODEL_SIGNATURE, program_identity
from nx46vx.runtime.digest import digest_json
from nx46vx.settings import Settings, load_settings, result_keys

_NOT_OF_THE_DECISION = RESERVED | {"policy", "replayed"}


@dataclass(frozen=True)
class Plan:
    """``plan.json`` as read. ``requests``: the samples it was trained on; None where this program makes others."""

    value: dict[str, Any]
    train: tuple[Case, ...]
    test: tuple[Case, ...]
    fit: FitPlan | None
    requests: tuple[SampleRequest, ...] | None

    @property
    def by_id(self) -> dict[str, Case]:
        return {case.case_id: case for case in self.train}


def check_settings(findings: Findings, paths: RunPaths, log: RunLog | None) -> Settings | None:
    """``config.yaml`` is readable, and every key that decides a result is what the first session said."""
    if findings.read(paths.config) is None:
        return None
    try:
        settings = load_settings(paths.config, environ={})
    except NX46Error as error:
        findings.problem(paths.config, f"{error.what}: {error.found}")
        return None
    boot = log.newest.get("BOOT") if log is not None else None
    if boot is not None:
        findings.compare(paths.config, boot["config"], result_keys(settings))
    return settings


def check_plan(findings: Findings, paths: RunPaths, settings: Settings, run_id: str, log: RunLog) -> Plan | None:
    """``plan.json`` against configuration and log; None where it cannot be read or there is none yet."""
    if not paths.plan.exists() and not log.candidates:
        findings.skip("plan.json", "the run has none yet")
        return None
    value = findings.read_json(paths.plan)
    plan: Plan | None = None
    if value is not None:
        with findings.guard(paths.plan):
            plan = _parsed(value, settings)
            _check_data(findings, paths, settings, plan, log)
            _check_grid(findings, paths, settings, run_id, plan, log)
    return plan


def check_decisions(findings: Findings, paths: RunPaths, log: RunLog) -> None:
    """Recorded decisions are those that the log tells of."""
    if not paths.decisions.exists() and not log.growth and not log.epoch_best:
        return
    value = findings.read_json(paths.decisions)
    if value is None:
        return
    with findings.guard(paths.decisions):
        growth = {
            neurons: {key: item for key, item in event.items() if key not in _NOT_OF_THE_DECISION}
            for neurons, event in log.growth.items()
        }
        for kind, told in (("growth", growth), ("epoch_best", log.epoch_best)):
            found = value.get(kind, {})
            if not log.handed_in:  # killed after a decision was recorded and before the log told of it
                found = {key: item for key, item in found.items() if key in told}
            findings.compare(paths.decisions, told, found, kind)
        weighed = log.newest.get("PHASE_WEIGHT_CALIBRATION")
        if weighed is not None:
            told = {"weights": weighed["weights"]}
            findings.compare(paths.decisions, told, value.get("progress", {}), "progress")
        for name in {"MASK_SEARCH", "MASK_SEARCH_SKIPPED"} & log.session:
            event = log.newest[name]
            told = {"trials": {"trials": event.get("trials", 0), "reason": event["reason"]}}
            findings.compare(paths.decisions, told, value.get("mask_search", {}), "mask_search")
        for kind in sorted(value.keys() - {"mask_search", "growth", "epoch_best", "progress", "student"}):
            findings.skip(f"decisions.json, {kind}", "nothing else records it")


def _parsed(value: dict[str, Any], settings: Settings) -> Plan:
    train, test = (tuple(Case.from_json(case) for case in value[key]) for key in ("train_pairs", "test"))
    fit = FitPlan.from_json(value["fit"]) if value["fit"] is not None else None
    by_id = {case.case_id: case for case in train}
    same = value["identity"]["preprocessing"] == f"pool-{POOL_VERSION}"
    features, requests = settings.features, None
    if same:
        limits = {"train": features.max_samples_per_volume}
        for role in ("validation", "holdout"):
            limits[role] = features.validation_samples_per_volume
        requests = tuple(
            SampleRequest(by_id[case_id], role, settings.seed, limit, features.block)  # type: ignore[arg-type]
            for role, limit in limits.items()
            for case_id in value["split"][role]
        )
    return Plan(value, train, test, fit, requests)


def _check_data(findings: Findings, paths: RunPaths, settings: Settings, plan: Plan, log: RunLog) -> None:
    value, path = plan.value, paths.plan
    split = make_split(
        plan.by_id, seed=settings.seed, validation_fraction=settings.data.validation_fraction,
        holdout_fraction=settings.data.holdout_fraction,
    )  # fmt: skip
    findings.compare(path, split.to_json(), value["split"], "split")
    coverage = value["coverage"]
    findings.compare(
        path, coverage_pct(len(plan.train), int(coverage["pair_count_discovered"])),
        coverage["train_pair_coverage_pct_effective"], "coverage.train_pair_coverage_pct_effective",
    )  # fmt: skip
    if (audit := log.newest.get("TRAIN_DATASET_AUDIT")) is not None:
        findings.compare(
            path, audit["pair_count_discovered"], coverage["pair_count_discovered"], "coverage.pair_count_discovered"
        )
        findings.compare(path, audit["pair_count_selected_for_training"], len(plan.train), "number of train_pairs")
        if audit["pair_count_usable"] == len(plan.train):
            content = [[[c.case_id, c.image_digest, c.label_digest] for c in part] for part in (plan.train, plan.test)]
            findings.compare(path, digest_json(content), value["dataset"], "dataset")
    if (planned := log.newest.get("TRAIN_COVERAGE_PLAN")) is not None:
        told = {key: planned[key] for key in ("coverage_gap_reason", "coverage_gap_is_justified")}
        findings.compare(path, told, {key: coverage[key] for key in told}, "coverage")
    if (found := log.newest.get("DATASET_DISCOVERY")) is not None:
        findings.compare(path, found["digest"], value["dataset"], "dataset")
        if found["usable_pairs"] == len(plan.train):
            shapes = Counter("x".join(map(str, case.shape)) for case in (*plan.train, *plan.test))
            findings.compare(path, found["sizes"], dict(shapes), "shapes")
            totals = [sum(case.counts[label] for case in plan.train if case.counts) for label in range(3)]
            findings.compare(path, list(found["class_voxels"].values()), totals, "counts")
    for cases, place in ((plan.train, TRAIN_IMAGES), (plan.test, TEST_IMAGES)):
        for case in cases:
            _check_place(findings, path, case.image, case.case_id, place, log)
            if case.label is not None:
                _check_place(findings, path, case.label, case.case_id, TRAIN_LABELS, log)


def _check_place(findings: Findings, plan: Path, file: Path, case_id: str, place: str, log: RunLog) -> None:
    """A file's path in the plan, which is never followed, is one that the log saw."""
    if (file.stem, file.parent.name) != (case_id, place) or str(file.parent.parent) not in log.data_dirs:
        findings.problem(plan, f"{file} is not where the log found case {case_id}")


def _check_grid(findings: Findings, paths: RunPaths, settings: Settings, run_id: str, plan: Plan, log: RunLog) -> None:
    value, path, fit = plan.value, paths.plan, plan.fit
    grid = Grid.from_settings(settings.grid)
    neurons = range(settings.grid.meta_neurons if fit is None else len(fit.neurons))
    identity = {
        "config": digest_json(result_keys(settings)), "data": value["dataset"],
        "grid": digest_json(settings.grid.model_dump(mode="json")), "model_signature": MODEL_SIGNATURE,
    }  # fmt: skip
    expected = {
        "plan_version": PLAN_VERSION, "run_id": run_id, "reduced": settings.reduced,
        "max_iter": settings.grid.max_iter, "candidates": [one.to_json() for one in grid.candidates(neurons)],
    }  # fmt: skip
    if plan.requests is not None:
        identity["features"] = program_identity()["features"]
        expected["feature_pool"] = list(feature_names())
    findings.compare(path, expected, {key: value[key] for key in expected})
    findings.compare(path, identity, {key: value["identity"].get(key) for key in identity}, "identity")
    if (planned := log.newest.get("PLAN")) is not None and value["estimate"] is not None:
        findings.compare(path, planned["estimate"], value["estimate"], "estimate")
    if fit is None:
        return
    if log.boots:  # the session that froze the fit is one of these
        for key in ("version", "numeric_environment"):
            if value[key] not in [boot[key] for boot in log.boots]:
                findings.problem(path, f"{key} is that of no session in the log")
    digests = value.get("feature_digests")
    if log.features and (digests is None or digest_json(digests) not in log.features):
        findings.problem(path, "feature_digests are those of no session in the log")
    stored = value["fit"]
    told = {
        "run_id": run_id, "seed": settings.seed, "pool": value["feature_pool"], "l1": list(grid.l1),
        "l2": list(grid.l2), "max_iter": settings.grid.max_iter, "method": settings.solver.method,
        "block": settings.solver.block_iterations, "identity": value["identity"],
        "neurons": [spec.to_json() for spec in fit.neurons],
    }  # fmt: skip
    if plan.requests is not None:
        for role in ("train", "validation"):
            told[f"{role}_keys"] = [request.key for request in plan.requests if request.role == role]
    findings.compare(path, told, {key: stored[key] for key in told}, "fit")
    for number, event in log.neurons.items():
        if number < len(fit.neurons):
            findings.compare(path, event["digest"], fit.spec(number).digest, f"fit.neurons[{number}].digest")
