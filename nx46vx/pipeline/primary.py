"""The primary records of a run: what its events say, line by line, without what a resume repeated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nx46vx.events import iter_events
from nx46vx.pipeline.findings import Findings

Event = Mapping[str, Any]

#: Events of the driver of which the newest counts.
_NEWEST = frozenset(
    {
        "BOOT", "PHASE_WEIGHT_CALIBRATION", "PLAN", "DATASET_DISCOVERY", "TRAIN_DATASET_AUDIT",
        "TRAIN_COVERAGE_PLAN", "SPLIT", "ENSEMBLE", "MASK_PARAMETERS", "GLOBAL_STATS", "RUN_PROFILE_SUMMARY",
        "STUDENT_DECISION", "STUDENT_ENDED", "STUDENT_FUSION", "EXEC_COMPLETE", "MASK_SEARCH", "MASK_SEARCH_SKIPPED",
    }
)  # fmt: skip

#: Of these, the ones that tell of a result; a run that is retrained has none yet.
_OF_A_RESULT = (
    "PLAN", "SPLIT", "ENSEMBLE", "MASK_PARAMETERS", "GLOBAL_STATS", "STUDENT_DECISION", "STUDENT_ENDED",
    "STUDENT_FUSION", "EXEC_COMPLETE",
)  # fmt: skip


@dataclass
class CandidateLog:
    """What the writer of one candidate, or student, recorded: iterations that count; KPIs and ends of epochs by
    iteration; a student's epochs by number."""

    iterations: int = 0
    kpis: dict[int, Event] = field(default_factory=dict)
    ends: dict[int, Event] = field(default_factory=dict)
    epochs: dict[int, Event] = field(default_factory=dict)
    payloads: dict[int, str] = field(default_factory=dict)  # checkpoint number -> SHA-512 of its payload

    def newest_kpi(self, iteration: int) -> Event | None:
        """The newest evaluation up to an iteration."""
        return self.kpis.get(max((at for at in self.kpis if at <= iteration), default=-1))


@dataclass
class RunLog:
    """What all writers recorded. ``session``: names of the driver's events since the newest ``BOOT``."""

    candidates: dict[str, CandidateLog] = field(default_factory=dict)
    newest: dict[str, Event] = field(default_factory=dict)
    neurons: dict[int, Event] = field(default_factory=dict)
    growth: dict[str, Event] = field(default_factory=dict)
    epoch_best: dict[str, float] = field(default_factory=dict)
    traces: dict[tuple[str, str], Event] = field(default_factory=dict)  # (array, case id)
    thresholds: dict[str, Event] = field(default_factory=dict)  # case id -> its MASK_THRESHOLDS
    mask_trials: dict[int, Event] = field(default_factory=dict)  # number -> its MASK_TRIAL
    skipped: dict[str, str] = field(default_factory=dict)
    boots: list[Event] = field(default_factory=list)
    data_dirs: set[str] = field(default_factory=set)
    datasets: set[str] = field(default_factory=set)
    features: set[str] = field(default_factory=set)  # digests over all samples' digests, of each session
    fence: int = 0
    session: set[str] = field(default_factory=set)
    events: int = 0

    @property
    def complete(self) -> bool:
        """The newest session brought the run to its end."""
        return "EXEC_COMPLETE" in self.session

    @property
    def handed_in(self) -> bool:
        """The newest session handed in a submission, whole or partial."""
        return "GLOBAL_STATS" in self.session


def read_log(folder: Path, findings: Findings) -> RunLog:
    """One pass over all events; what does not fit becomes a problem of its writer's log.

    Raises:
        IntegrityError: a segment cannot be read.
    """
    log = RunLog()
    for event in iter_events(folder, superseded=False):
        log.events += 1
        writer, name = str(event["writer"]), str(event["event"])
        log.fence = max(log.fence, int(event["fence"]))
        if writer == "driver":
            _from_driver(log, name, event)
        else:
            with findings.guard(folder / writer):
                _from_candidate(log.candidates.setdefault(writer, CandidateLog()), name, event, findings, folder)
    return log


def _from_driver(log: RunLog, name: str, event: Event) -> None:
    if name in _NEWEST:
        log.newest[name] = event
    log.session = {name} if name == "BOOT" else log.session | {name}
    if name == "BOOT":
        log.boots.append(event)
    elif name == "DATASET_DISCOVERY":
        log.data_dirs.add(str(event["data_dir"]))
        log.datasets.add(str(event["digest"]))
        log.skipped = {str(case_id): str(reason) for case_id, reason in event["skipped"]}
    elif name == "FEATURES_DIGEST":
        log.features.add(str(event["digest"]))
    elif name == "RESUME_INCOMPATIBLE" and event.get("action"):  # what was decided and handed in before is set aside
        for table in (log.neurons, log.growth, log.epoch_best, log.traces, log.thresholds, log.mask_trials):
            table.clear()
        for one in _OF_A_RESULT:
            log.newest.pop(one, None)
    elif name == "RETRAIN_MISMATCHED":
        for owner in (*event["retrained"], *event["dropped"]):
            log.candidates.pop(str(owner), None)
    elif name == "META_NEURON":
        log.neurons[int(event["meta_neuron"])] = event
    elif name == "AUTO_TUNE_POLICY_DECISION" and event.get("policy") == "growth":
        log.growth[str(event["neurons"])] = event
    elif name == "PROGRESS_UPDATE" and event.get("substage") == "epoch_done":
        log.epoch_best[str(int(event["index"]) - 1)] = event["best_objective"]
    elif name == "MASK_TRIAL":
        log.mask_trials[int(event["number"])] = event
    elif name == "MASK_THRESHOLDS":
        log.thresholds[str(event["case_id"])] = event
    elif name == "ARRAY_TRACE" and "case_id" in event:
        log.traces[str(event["array"]), str(event["case_id"])] = event


def _from_candidate(log: CandidateLog, name: str, event: Event, findings: Findings, folder: Path) -> None:
    substage = event.get("substage")
    if substage == "fit_prox_iter":
        if event["iter"] != log.iterations + 1:
            findings.problem(
                folder / str(event["writer"]), f"iteration {event['iter']} follows iteration {log.iterations}"
            )
        log.iterations = int(event["iter"])
    elif substage == "fit_kpi":
        log.kpis[int(event["iter"])] = event
    elif name == "CANDIDATE_DONE":
        log.ends[int(event["iter"])] = event
    elif name == "STUDENT_EPOCH":
        log.epochs[int(event["epoch"])] = event
    elif name == "CHECKPOINT_COMMIT":
        log.payloads[int(event["number"])] = str(event["sha512_payload"])
