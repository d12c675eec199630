"""``nx46vx verify``: proves a run directory, wherever it lies, from its primary records; reads only."""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from nx46vx.errors import UsageError
from nx46vx.paths import RunPaths
from nx46vx.pipeline.findings import Findings, unsafe_entries
from nx46vx.pipeline.primary import RunLog, read_log
from nx46vx.pipeline.verify_outside import cache_of, check_cache, check_data, check_figures, data_of
from nx46vx.pipeline.verify_plan import Plan, check_decisions, check_plan, check_settings
from nx46vx.pipeline.verify_results import Results
from nx46vx.pipeline.verify_store import Standing, check_candidates, check_store, sealed_roots
from nx46vx.pipeline.verify_student import check_student
from nx46vx.runtime.archive_names import limit_of, stays_behind
from nx46vx.settings import Settings

#: Never read, whatever is in it.
_SKIPPED = ("ray",)


def verify(
    run: Path, *, cache: Path | None = None, data: Path | None = None, executor: Executor | None = None
) -> dict[str, Any]:
    """Check a run directory that nothing writes to: chains, seals, checkpoints, and every number that it reports.

    ``cache`` and ``data``: feature cache and dataset to check as well; no path stored in the run is followed out of
    it. ``executor`` checks the writers' logs in parallel.

    Returns:
        ``ok``, ``problems`` (``path`` below the run, ``line`` or None, ``what``), ``checked`` (name -> count),
        ``not_checked`` (what is not in this copy, or that nothing vouches for).

    Raises:
        UsageError: it is no run directory.
    """
    paths = RunPaths(Path(run))
    if not paths.root.is_dir() or not any(path.exists() for path in (paths.config, paths.identity, paths.events)):
        raise UsageError("this is no run directory", where=run, found="no config.yaml", fix="check the path")
    findings = Findings(paths.root)
    with findings.guard(paths.root):
        unsafe = unsafe_entries(paths.root, _SKIPPED)
        for name in unsafe:
            findings.problem(paths.root / name, "a link or a special file; it was not followed")
        if unsafe:
            findings.skip("everything else", "links and special files have to go first")
            return findings.result()
    identity = findings.read_json(paths.identity) or {}
    run_id = str(identity.get("run_id"))
    seal = check_store(findings, paths, run_id, executor)
    log: RunLog | None = None
    with findings.guard(paths.events):
        log = read_log(paths.events, findings)
        findings.checked["events"] = log.events
    settings = check_settings(findings, paths, log)
    if log is None or settings is None:
        findings.skip("plan and results", "log or configuration cannot be read")
        return findings.result()
    _check_identity(findings, paths, identity, log)
    plan = check_plan(findings, paths, settings, run_id, log)
    check_decisions(findings, paths, log)
    if plan is not None:
        standings: dict[str, Standing] = {}
        if plan.fit is not None:
            with findings.guard(paths.plan):
                standings = check_candidates(findings, paths, plan.fit, log, log.complete)
        results = Results(findings, paths, settings, plan, log, standings, identity)
        with findings.guard(paths.root):
            results.check(seal.root if seal is not None else None, sealed_roots(paths.events))
        if plan.fit is not None:
            with findings.guard(paths.root):
                check_student(findings, paths, settings, plan, log, results.report)
        with findings.guard(paths.root):
            _check_outside(findings, paths, settings, plan, log, results, cache, data)
    _name_the_rest(findings, paths)
    return findings.result()


def _name_the_rest(findings: Findings, paths: RunPaths) -> None:
    if paths.ray.exists():
        findings.skip("ray/", "Ray's own files; nothing of ours is read back from there")
    known = {"events", "checkpoints", "masks", "uncertainty", "mask_search"}
    for name in sorted(path.name for path in paths.root.iterdir()):
        if name not in known and limit_of(name) is None and not stays_behind(name) and not stays_behind(f"{name}/"):
            findings.skip(name, "no file of a run")


def _check_identity(findings: Findings, paths: RunPaths, identity: dict[str, Any], log: RunLog) -> None:
    boot = log.newest.get("BOOT")
    if boot is not None:
        findings.compare(paths.identity, boot["run_id"], identity.get("run_id"), "run_id")


def _check_outside(
    findings: Findings, paths: RunPaths, settings: Settings, plan: Plan, log: RunLog, results: Results,
    cache: Path | None, data: Path | None,
) -> None:  # fmt: skip
    images = check_data(findings, data_of(paths, settings, data), plan)
    samples = check_cache(findings, cache_of(paths, settings, cache), plan, log)
    if results.ensemble is not None and results.report is not None:
        check_figures(findings, paths, plan, log, samples, images, results.ensemble, results.report)
