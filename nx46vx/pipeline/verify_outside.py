"""Verifying what lies outside a run directory, where it is at hand: feature cache entries and dataset files.

With them the ensemble's figures and the intensity threshold are computed again from samples and volumes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nx46vx.data.cases import Case
from nx46vx.data.discovery import TEST_IMAGES, TRAIN_IMAGES, TRAIN_LABELS
from nx46vx.data.volume_io import read_volume
from nx46vx.features.cache import CaseSamples, FeatureCache
from nx46vx.features.pool import feature_names
from nx46vx.inference.baseline import best_intensity_threshold, class_histograms
from nx46vx.model.ensemble import Ensemble
from nx46vx.model.metrics import average_precision, count_at_thresholds
from nx46vx.paths import RunPaths, default_cache_dir
from nx46vx.pipeline.best import evaluate
from nx46vx.pipeline.combining import combined_logits
from nx46vx.pipeline.findings import Findings
from nx46vx.pipeline.primary import RunLog
from nx46vx.pipeline.verify_plan import Plan
from nx46vx.runtime.digest import digest_file
from nx46vx.runtime.sink import NullSink
from nx46vx.settings import Settings

#: Average precision may differ in its last digits where another machine adds in another order.
_TOLERANCE = 1e-6


def cache_of(paths: RunPaths, settings: Settings, asked: Path | None) -> Path | None:
    """The feature cache to look at: the one asked for, the user's own, or one inside the run directory.

    A path that the run's configuration names elsewhere is not followed.
    """
    if asked is not None:
        return asked
    named = settings.features.cache_dir
    if named is None:
        return default_cache_dir()
    return named if _inside(named, paths.root) else None


def data_of(paths: RunPaths, settings: Settings, asked: Path | None) -> Path | None:
    """The dataset to look at, by the same rule."""
    if asked is not None:
        return asked
    named = settings.data.dir
    if named is None:
        return paths.data if paths.data.is_dir() and not paths.data.is_symlink() else None
    return named if _inside(named, paths.root) and named.is_dir() else None


def check_data(findings: Findings, folder: Path | None, plan: Plan) -> dict[str, Path]:
    """Compare every file of the dataset with the plan's digests; returns the sound images by case id."""
    if folder is None:
        findings.skip("dataset", "it is not in this copy; give it with --data DIR")
        return {}
    images: dict[str, Path] = {}
    for cases, place in ((plan.train, TRAIN_IMAGES), (plan.test, TEST_IMAGES)):
        for case in cases:
            path = folder / place / case.image.name
            if _same_file(findings, path, case.image_digest):
                images[case.case_id] = path
            if case.label is not None:
                _same_file(findings, folder / TRAIN_LABELS / case.label.name, str(case.label_digest))
    return images


def check_cache(findings: Findings, root: Path | None, plan: Plan, log: RunLog) -> dict[str, CaseSamples]:
    """Read each cache entry of the plan again: its own digests, and the traces in the log; samples by case id."""
    if plan.requests is None:
        findings.skip("feature cache", "this program computes other features than the run's")
        return {}
    if root is None:
        findings.skip("feature cache", "it is not in this copy; give it with --cache DIR")
        return {}
    cache, samples, absent = FeatureCache(root, sink=NullSink()), {}, 0
    for request in plan.requests:
        path = cache.path(request.key)
        if not path.exists():
            absent += 1
            continue
        with findings.guard(path):
            cache.verify(request.key)
            entry = cache.open(request.key, role=request.role)
            if entry.case_id != request.case.case_id:
                findings.problem(path, f"it holds case {entry.case_id}, not {request.case.case_id}")
            if entry.digest != (plan.value.get("feature_digests") or {}).get(request.key, entry.digest):
                findings.problem(path, "its samples are not those that the plan was frozen on")
            for name, array in (("features", entry.features), ("labels", entry.y)):
                trace = log.traces.get((name, entry.case_id))
                if trace is not None and _sha512(array) != trace["sha512"]:
                    findings.problem(path, f"its {name} are not those that the log traced")
            samples[entry.case_id] = entry
            findings.checked["cache entries"] += 1
    if absent:
        findings.skip("feature cache", f"{absent} of {len(plan.requests)} entries are not in {root}")
    return samples


def check_figures(
    findings: Findings, paths: RunPaths, plan: Plan, log: RunLog, samples: Mapping[str, CaseSamples],
    images: Mapping[str, Path], ensemble: Mapping[str, Any], report: Mapping[str, Any],
) -> None:  # fmt: skip
    """The report's figures of the ensemble, from the samples, and of the intensity threshold, from the volumes."""
    path = paths.report_json
    for role in ("validation", "holdout"):
        cases = [samples[case_id] for case_id in plan.value["split"][role] if case_id in samples]
        with findings.guard(path):
            if len(cases) < len(plan.value["split"][role]):
                findings.skip(f"report.json, {role}", "recomputed from the log's counts only, the cache lacks samples")
                if role == "validation" and "intercept" not in log.newest.get("ENSEMBLE", {}):
                    findings.skip("ensemble.json, intercept", "only the feature cache can tell")
            else:
                _check_role(findings, path, role, cases, Ensemble.from_json(ensemble), report[role])
    with findings.guard(path):
        _check_intensity(findings, path, plan, samples, images, report["holdout"])


def _check_role(
    findings: Findings, path: Path, role: str, cases: Sequence[CaseSamples], ensemble: Ensemble,
    found: Mapping[str, Any],
) -> None:  # fmt: skip
    seen = evaluate(ensemble.members, feature_names(), cases)
    scores = combined_logits(ensemble, seen, feature_names(), cases)
    counts = count_at_thresholds(0.5 * (1.0 + np.tanh(0.5 * scores)), seen.y)
    told = {
        "samples": int(seen.y.size), "positives": counts.positives,
        "true_positives": counts.true_positives.tolist(), "false_positives": counts.false_positives.tolist(),
    }  # fmt: skip
    findings.compare(path, told, {key: found[key] for key in told}, role)
    single = [average_precision(row, seen.y) for row in seen.logits]
    key = f"{role}.ensemble_average_precision"
    findings.close(path, average_precision(scores, seen.y), found["ensemble_average_precision"], key, _TOLERANCE)
    for number, (one, other) in enumerate(zip(single, found["member_average_precision"], strict=True)):
        findings.close(path, one, other, f"{role}.member_average_precision[{number}]", _TOLERANCE)


def _check_intensity(
    findings: Findings, path: Path, plan: Plan, samples: Mapping[str, CaseSamples], images: Mapping[str, Path],
    found: Mapping[str, Any],
) -> None:  # fmt: skip
    cases, split = plan.by_id, plan.value["split"]
    if not all(case_id in images for case_id in (*split["train"], *split["holdout"])):
        return
    threshold = best_intensity_threshold(_histograms(cases[one], images[one]) for one in split["train"])
    told = {"intensity_threshold": threshold.value, "intensity_above": threshold.above}
    if all(case_id in samples for case_id in split["holdout"]):
        counted = [
            class_histograms(read_volume(images[one]).reshape(-1)[samples[one].index], np.asarray(samples[one].y))
            for one in split["holdout"]
        ]
        told["intensity_histograms"] = np.add.reduce(counted).tolist()
    findings.compare(path, told, {key: found[key] for key in told}, "holdout")


def _histograms(case: Case, image: Path) -> np.ndarray:
    assert case.label is not None
    label = image.parent.with_name(TRAIN_LABELS) / case.label.name
    return class_histograms(read_volume(image), read_volume(label))


def _same_file(findings: Findings, path: Path, digest: str) -> bool:
    with findings.guard(path):
        if digest_file(path) == digest:
            findings.checked["dataset files"] += 1
            return True
        findings.problem(path, "it is not the file that the plan was made with")
    return False


def _inside(path: Path, root: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def _sha512(array: np.ndarray) -> str:
    data = np.ascontiguousarray(array)
    return hashlib.sha512(data.data.cast("B") if data.size else b"").hexdigest()
