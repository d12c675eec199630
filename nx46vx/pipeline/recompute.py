"""The result's numbers computed again: from counted iterations, stored counts and histograms, checkpoint payloads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nx46vx.inference.baseline import IntensityThreshold
from nx46vx.model.candidates import Candidate
from nx46vx.model.ensemble import Ensemble
from nx46vx.model.fitplan import FitPlan
from nx46vx.model.metrics import Counts, validation_figures
from nx46vx.model.solver import penalty
from nx46vx.model.state import LaneState
from nx46vx.pipeline.best import best_records
from nx46vx.pipeline.findings import Findings
from nx46vx.pipeline.primary import CandidateLog

Record = dict[str, Any]


def candidate_record(
    fit: FitPlan, candidate: Candidate, log: CandidateLog, state: LaneState, seconds: float, findings: Findings,
    path: object,
) -> Record | None:  # fmt: skip
    """A candidate's row of the merged table: metrics from the stored counts, sparsity from the checkpoint's weights.

    ``seconds``: what its checkpoint says; the log's word counts where it has one. None: it was never evaluated.

    Raises:
        KeyError, ValueError: the log holds a malformed KPI.
    """
    kpi = log.newest_kpi(state.iteration)
    if kpi is None:
        return None
    spec = fit.spec(candidate.meta_neuron)
    counts = Counts(
        np.array(kpi["val_true_positives"], np.int64), np.array(kpi["val_false_positives"], np.int64),
        int(kpi["val_positives"]), int(kpi["val_negatives"]),
    )  # fmt: skip
    figures = vars(validation_figures(kpi["val_ce"], counts, state.theta, len(spec.view), spec.log_variance))
    if kpi["iter"] == state.iteration:
        theta = state.theta[:, None]
        objective = kpi["train_loss"] + float(penalty(theta, np.array([candidate.l1]), np.array([candidate.l2]))[0])
        findings.close(path, objective, kpi["fit_objective"], "fit_objective", 1e-9)
    else:  # it was stopped between two evaluations: the weights of the last one are gone
        figures |= {key: kpi[key] for key in ("sparsity", "objective")}
    findings.compare(path, figures, {key: kpi.get(key) for key in figures}, f"fit_kpi at iteration {kpi['iter']}")
    end = log.ends.get(state.iteration)
    return {
        **candidate.to_json(),
        "epoch": -(-state.iteration // fit.max_iter),
        "iter": state.iteration,
        "train_loss": kpi["train_loss"],
        "optimality_gap": kpi["optimality_gap"],
        **figures,
        "seconds": seconds if end is None else end["seconds"],
    }


def ensemble_value(
    fit: FitPlan, records: Mapping[str, Record], states: Mapping[str, LaneState], event: Mapping[str, Any],
    found: Mapping[str, Any], marks: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """``ensemble.json`` again: each neuron's best candidate, its weights from the payload, its share from the log;
    the joint fit as the log has it.

    The log's ``ENSEMBLE`` may lack the intercept; the stored one then stands, and is judged on the feature cache.
    """
    weights = {str(member["candidate_id"]): member["weight"] for member in event["members"]}
    members = []
    for neuron, record in best_records(records).items():
        name = str(record["candidate_id"])
        members.append(
            {
                "candidate_id": name,
                "meta_neuron": neuron,
                "weight": weights.get(name),
                "theta": states[name].theta.tolist(),
                "spec": fit.spec(neuron).to_json(),
            }
        )
    intercept = event.get("intercept", found.get("intercept"))
    return {**marks, "intercept": intercept, "members": members, "joint": event.get("joint")}


def report_figures(event: Mapping[str, Any], ensemble: Mapping[str, Any]) -> dict[str, Any]:
    """The report's ``validation``, ``holdout`` and ``members`` from the counts and histograms of ``ENSEMBLE``."""
    validation, holdout = dict(event["validation"]), dict(event["holdout"])
    at = _counts(validation).best()
    for part in (validation, holdout):
        part["threshold_index"] = at
        part["ensemble_f_half"] = float(_counts(part).f_beta(0.5)[at])
        part["best_member_average_precision"] = max(part["member_average_precision"])
    histograms = np.array(holdout["intensity_histograms"], np.int64)
    threshold = IntensityThreshold(int(holdout["intensity_threshold"]), bool(holdout["intensity_above"]))
    holdout["intensity_f_half"] = threshold.f_half(histograms)
    holdout["positives"] = int(histograms[1].sum())
    holdout["samples"] = int(histograms.sum())
    heard = {member.candidate_id for member in Ensemble.from_json(ensemble).active}
    members = [
        {
            "candidate_id": member["candidate_id"], "meta_neuron": member["meta_neuron"],
            "view": list(member["spec"]["view"]), "weight": member["weight"],
            "helps": member["candidate_id"] in heard,
        }
        for member in ensemble["members"]
    ]  # fmt: skip
    return {"validation": validation, "holdout": holdout, "members": members, "joint": ensemble.get("joint")}


def search_figures(records: Sequence[Record], fit: FitPlan, goal: int) -> dict[str, Any]:
    """What the report says of the search as a whole; ``goal``: iterations that every candidate is to reach."""
    best = min(records, key=lambda record: (record["objective"], record["candidate_id"]))
    return {
        "candidates": len(records),
        "candidates_complete": sum(record["iter"] >= goal for record in records),
        "candidates_planned": len(fit.candidates),
        "iterations_done": sum(record["iter"] for record in records),
        "iterations_planned": len(fit.candidates) * goal,
        "meta_neurons": len(fit.neurons),
        "iterations_per_candidate": min(record["iter"] for record in records),
        "worst_optimality_gap": max(record["optimality_gap"] for record in records),
        "best_candidate": {
            key: best[key] for key in ("candidate_id", "objective", "val_fbeta", "val_f1", "val_ce")
        },
    }  # fmt: skip


def coverage_pct(pairs: int, discovered: int) -> float:
    return 100.0 * pairs / discovered if discovered else math.nan


def _counts(part: Mapping[str, Any]) -> Counts:
    positives, samples = int(part["positives"]), int(part["samples"])
    return Counts(
        np.array(part["true_positives"], np.int64), np.array(part["false_positives"], np.int64),
        positives, samples - positives,
    )  # fmt: skip
