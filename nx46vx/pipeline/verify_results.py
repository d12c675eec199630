"""Verifying what a run hands in: leaderboard, ensemble, masks, submission, report, each recomputed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nx46vx.data.cases import Case
from nx46vx.data.volume_io import read_volume
from nx46vx.events import chain
from nx46vx.paths import RunPaths
from nx46vx.pipeline.findings import Findings
from nx46vx.pipeline.primary import CandidateLog, RunLog
from nx46vx.pipeline.profiling import short
from nx46vx.pipeline.recompute import Record, candidate_record, ensemble_value, report_figures, search_figures
from nx46vx.pipeline.verify_masks import check_maps, check_search, masks_figures
from nx46vx.pipeline.verify_plan import Plan
from nx46vx.pipeline.verify_store import Standing
from nx46vx.report.summary import report_markdown
from nx46vx.report.tables import LEADERBOARD_COLUMNS, leaderboard_csv, read_leaderboard
from nx46vx.runtime.digest import digest_file
from nx46vx.runtime.files import REAL_FILES
from nx46vx.runtime.gpu_phases import KPIS
from nx46vx.runtime.sink import NullSink
from nx46vx.settings import Settings
from nx46vx.submission.gate import check_submission


@dataclass
class Results:
    """One run's results under verification, as far as the log's newest session made them."""

    findings: Findings
    paths: RunPaths
    settings: Settings
    plan: Plan
    log: RunLog
    standings: Mapping[str, Standing]
    identity: Mapping[str, Any]
    records: dict[str, Record] = field(default_factory=dict)
    ensemble: dict[str, Any] | None = None
    report: dict[str, Any] | None = None

    def check(self, seal_root: str | None, roots: list[str]) -> None:
        """Everything that is there; on a complete run everything has to be."""
        self._recompute_records()
        self._check_leaderboard()
        self._check_ensemble()
        foreground = self._check_masks()
        check_maps(self.findings, self.paths, self.settings, self.plan.test, self.log)
        check_search(self.findings, self.paths, self.log)
        files = self._check_submission(foreground)
        self._check_profile()
        self._check_report(foreground, files, seal_root, roots)

    def _there(self, path: Any, due: bool) -> bool:
        """Whether a file is there and has to agree with the records. ``due``: the log says that it was made."""
        if path.exists():
            if not due:
                self.findings.skip(path.name, "the run has gone on since it was made")
            return due
        if due:
            self.findings.problem(path, "is missing, and the log says that it was made")
        else:
            self.findings.skip(path.name, "the run has not made it yet")
        return False

    def _recompute_records(self) -> None:
        fit = self.plan.fit
        for candidate in fit.candidates if fit is not None else ():
            name, log = candidate.candidate_id, self.log.candidates.get(candidate.candidate_id, CandidateLog())
            if fit is None or name not in self.standings:
                continue
            path, standing = self.paths.events / name, self.standings[name]
            with self.findings.guard(path):
                record = candidate_record(fit, candidate, log, standing.state, standing.seconds, self.findings, path)
                if record is not None:
                    self.records[name] = record

    def _check_leaderboard(self) -> None:
        path, findings = self.paths.leaderboard, self.findings
        if not self._there(path, "ENSEMBLE" in self.log.session):
            return
        whole = {k: record for k, record in self.records.items() if record["iter"] >= self.settings.grid.max_iter}
        with findings.guard(path):
            if findings.read(path) == leaderboard_csv(whole.values()).encode():
                findings.checked["leaderboard rows"] = len(whole)
                findings.checked["numbers"] += len(whole) * len(LEADERBOARD_COLUMNS)
                return
            rows = read_leaderboard(path)
            for number, row in enumerate(rows, start=2):
                name = row["candidate_id"]
                record = whole.get(name)
                if record is None:
                    findings.problem(path, f"{name}: the records hold no such finished candidate", number)
                    continue
                findings.compare(path, {key: record[key] for key in LEADERBOARD_COLUMNS}, row, name, number)
            for name in sorted(whole.keys() - {row["candidate_id"] for row in rows}):
                findings.problem(path, f"{name}: it has no row")

    def _check_ensemble(self) -> None:
        path, findings, fit = self.paths.ensemble, self.findings, self.plan.fit
        if not self._there(path, "ENSEMBLE" in self.log.session):
            return
        event, value = self.log.newest.get("ENSEMBLE"), findings.read_json(path)
        if value is None:
            return
        self.ensemble = value
        if event is None or fit is None:
            findings.problem(path, "the log holds no ENSEMBLE")
            return
        with findings.guard(path):
            marks = {"reduced": self.settings.reduced}
            if self.log.handed_in:
                marks["complete"] = bool(self.log.newest["GLOBAL_STATS"]["complete"])
            elif "complete" in value:
                marks["complete"] = value["complete"]
            states = {name: standing.state for name, standing in self.standings.items()}
            expected = ensemble_value(fit, self.records, states, event, value, marks)
            findings.compare(path, expected, value)
            findings.checked["ensemble members"] = len(expected["members"])

    def _check_masks(self) -> dict[str, float]:
        """Foreground share of each mask that is there."""
        findings, foreground = self.findings, {}
        cases = {case.case_id: case for case in self.plan.test}
        known = {f"{case_id}.tif" for case_id in cases}
        names = set(REAL_FILES.listdir(self.paths.masks)) if self.paths.masks.is_dir() else set()
        for name in sorted(names - known):
            findings.problem(self.paths.masks / name, "no test volume has this name")
        for case_id, case in cases.items():
            path = self.paths.mask(case_id)
            if not self._there(path, self.log.handed_in):
                continue
            if path.name not in names:
                findings.problem(self.paths.plan, f"test case {case_id!r} is no file name")
                continue
            with findings.guard(path):
                foreground[case_id] = self._mask_share(case, path)
        return foreground

    def _mask_share(self, case: Case, path: Any) -> float:
        mask = read_volume(path)
        trace = self.log.traces.get(("mask", case.case_id))
        found = {"shape": list(mask.shape), "sha512": hashlib.sha512(np.ascontiguousarray(mask).data).hexdigest()}
        told = {"shape": list(case.shape), "sha512": trace["sha512"] if trace is not None else found["sha512"]}
        self.findings.compare(path, told, found, "voxels")
        if trace is None:
            self.findings.problem(path, "the log holds no trace of this mask")
        if mask.max() > 1:
            self.findings.problem(path, f"it holds the value {mask.max()}")
        self.findings.checked["masks"] += 1
        return float(np.count_nonzero(mask) / mask.size)

    def _check_submission(self, foreground: Mapping[str, float]) -> list[dict[str, Any]] | None:
        path, findings = self.paths.submission, self.findings
        if not self._there(path, self.log.handed_in):
            return None
        shapes = {case.case_id: case.shape for case in self.plan.test}
        empty = [case_id for case_id, share in foreground.items() if share == 0.0]
        files: list[dict[str, Any]] | None = None
        with findings.guard(path):
            gate = check_submission(path, shapes, sink=NullSink(), empty_allowed=empty)
            for problem in gate.problems:
                findings.problem(path, problem)
            files = list(gate.files)
            for file in files:
                mask = self.paths.masks / file["name"]
                if mask.exists() and digest_file(mask) != file["sha512"]:
                    findings.problem(path, f"{file['name']}: it is not the file under masks/")
            if (done := self.log.newest.get("EXEC_COMPLETE")) is not None and self.log.complete:
                findings.compare(path, done["submission_sha512"], digest_file(path), "sha512")
        return files

    def _check_profile(self) -> None:
        """The file is the event, and its phases are those that the log timed."""
        path, findings, newest = self.paths.profile, self.findings, self.log.newest
        if not self._there(path, "RUN_PROFILE_SUMMARY" in self.log.session):
            return
        value = findings.read_json(path)
        if value is None:
            return
        with findings.guard(path):
            event = newest["RUN_PROFILE_SUMMARY"]
            told = {key: event[key] for key in value if key in event and key not in chain.RESERVED}
            findings.compare(path, {**told, "run_id": self.identity.get("run_id")}, value)
            if self.log.handed_in:
                timed = {name: part["seconds"] for name, part in value["phases"].items()}
                findings.compare(path, newest["GLOBAL_STATS"]["seconds"], timed, "phases")
            findings.checked["profile"] = 1

    def _check_report(
        self, foreground: Mapping[str, float], files: list[dict[str, Any]] | None, seal_root: str | None,
        roots: list[str],
    ) -> None:  # fmt: skip
        path, findings = self.paths.report_json, self.findings
        if not self._there(path, self.log.handed_in):
            return
        self.report = value = findings.read_json(path)
        if value is None:
            return
        complete = self.log.complete
        expected: dict[str, Any] = {"complete": complete, **({"stopped_by": None} if complete else {})}
        with findings.guard(path):
            expected |= self._expected_report(foreground, files)
        known = {key: item for key, item in value.items() if key in expected}
        findings.compare(path, expected, known)
        for key in sorted(value.keys() - expected.keys() - {"log_root", "student"}):
            findings.skip(f"report.json, {key}", "nothing else records it")
        root = value.get("log_root")
        if not complete:
            findings.compare(path, None, root, "log_root")
        elif (seal_root is not None and root != seal_root) or root not in roots:
            findings.problem(path, f"log_root is {str(root)[:32]}..., no seal of this run has this root")
        if self._there(self.paths.report_md, True):
            with findings.guard(self.paths.report_md):
                if findings.read(self.paths.report_md) != report_markdown(value).encode():
                    findings.problem(self.paths.report_md, "it does not follow from report.json")

    def _expected_report(self, foreground: Mapping[str, float], files: list[dict[str, Any]] | None) -> dict[str, Any]:
        newest, plan = self.log.newest, self.plan
        assert plan.fit is not None
        expected = {
            "reduced": self.settings.reduced,
            "version": newest["BOOT"]["version"],
            "run_id": self.identity.get("run_id"),
            **search_figures(list(self.records.values()), plan.fit, self.settings.iterations),
            "coverage": plan.value["coverage"],
            "split": plan.value["split"],
            "skipped": [list(pair) for pair in sorted(self.log.skipped.items())],
            "masks": masks_figures(self.log, plan.test, foreground),
            "submission": {
                "file": self.paths.submission.name,
                "sha512": digest_file(self.paths.submission),
                "files": files,
            },
            "seconds": newest["GLOBAL_STATS"]["seconds"],
        }
        if "RUN_PROFILE_SUMMARY" in self.log.session:  # runs of earlier versions have none
            expected["profile"] = short(dict(newest["RUN_PROFILE_SUMMARY"]))
            expected["gpu"] = {key: newest["GLOBAL_STATS"][key] for key in KPIS}
        if self.ensemble is not None:
            expected |= report_figures(newest["ENSEMBLE"], self.ensemble)
        return expected
