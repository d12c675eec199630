"""Stage four: the leaderboard, the ensemble, and how they do on cases that chose nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nx46vx.data.cases import Case
from nx46vx.inference.baseline import best_intensity_threshold, class_histograms
from nx46vx.logs import say
from nx46vx.model.ensemble import Ensemble
from nx46vx.model.metrics import average_precision, count_at_thresholds, sigmoid
from nx46vx.model.samples import Samples
from nx46vx.pipeline.best import best_members, evaluate
from nx46vx.pipeline.combining import combined, combined_logits
from nx46vx.pipeline.dataset import Cases
from nx46vx.pipeline.fit import FitResult
from nx46vx.pipeline.session import Session
from nx46vx.report.tables import leaderboard_csv
from nx46vx.runtime.atomic import write_json, write_text


@dataclass(frozen=True)
class Choice:
    """The ensemble and the figures that the report shows of it."""

    ensemble: Ensemble
    figures: dict[str, Any]


def choose(session: Session, cases: Cases, fit: FitResult) -> Choice:
    """Write ``leaderboard.csv`` and ``ensemble.json``; measure everything on validation and hold-out samples."""
    whole = [record for record in fit.records.values() if int(record["iter"]) >= fit.plan.max_iter]
    write_text(session.paths.leaderboard, leaderboard_csv(whole))
    store = session.store(fit.plan)
    members = best_members(fit.plan, fit.records, store, session.log)
    ensemble, validation = combined(members, fit.data, seed=session.settings.seed, sink=session.log)
    scores = combined_logits(ensemble, validation, fit.data.pool, fit.data.validation)
    threshold_at = count_at_thresholds(sigmoid(scores), validation.y).best()
    figures: dict[str, Any] = {
        "validation": _figures(validation.logits, scores, validation.y, threshold_at),
        "members": [
            {
                "candidate_id": m.candidate_id,
                "meta_neuron": m.spec.meta_neuron,
                "view": list(m.spec.view),
                "weight": m.weight,
                "helps": m in ensemble.active,
            }
            for m in ensemble.members
        ],
        "holdout": _holdout(session, cases, fit, ensemble, threshold_at),
        "joint": ensemble.joint.to_json() if ensemble.joint is not None else None,
    }
    write_ensemble(session, ensemble, complete=fit.complete)
    session.log.emit("ENSEMBLE", intercept=ensemble.intercept, **figures)
    hold = figures["holdout"]
    say(
        f"hold-out: F0.5 {hold['ensemble_f_half']:.3f} against {hold['intensity_f_half']:.3f} of the best intensity "
        f"threshold; average precision {hold['ensemble_average_precision']:.3f} against "
        f"{hold['best_member_average_precision']:.3f} of the best single member"
    )
    return Choice(ensemble, figures)


def write_ensemble(session: Session, ensemble: Ensemble, *, complete: bool) -> None:
    """Write ``ensemble.json``; ``complete``: nothing of the run is left undone."""
    marks = {"reduced": session.settings.reduced, "complete": complete}
    write_json(session.paths.ensemble, {**marks, **ensemble.to_json()})


def _holdout(session: Session, cases: Cases, fit: FitResult, ensemble: Ensemble, threshold_at: int) -> dict[str, Any]:
    """Figures on the hold-out cases; the intensity threshold is tuned on the training cases."""
    holdout = evaluate(ensemble.members, fit.data.pool, fit.holdout)
    scores = combined_logits(ensemble, holdout, fit.data.pool, fit.holdout)
    baseline = best_intensity_threshold(_histograms(session, case) for case in cases.of("train"))
    counted = np.add.reduce([_sampled_histograms(session, cases, samples) for samples in fit.holdout])
    return {
        **_figures(holdout.logits, scores, holdout.y, threshold_at),
        "intensity_threshold": baseline.value,
        "intensity_above": baseline.above,
        "intensity_f_half": baseline.f_half(counted),
        "intensity_histograms": counted.tolist(),
    }


def _figures(logits: np.ndarray, scores: np.ndarray, y: np.ndarray, threshold_at: int) -> dict[str, Any]:
    counts = count_at_thresholds(sigmoid(scores), y)
    single = [average_precision(row, y) for row in logits]
    return {
        "samples": int(y.size),
        "positives": counts.positives,
        "threshold_index": threshold_at,
        "true_positives": counts.true_positives.tolist(),
        "false_positives": counts.false_positives.tolist(),
        "ensemble_f_half": float(counts.f_beta(0.5)[threshold_at]),
        "ensemble_average_precision": average_precision(scores, y),
        "best_member_average_precision": max(single),
        "member_average_precision": single,
    }


def _histograms(session: Session, case: Case) -> np.ndarray:
    return class_histograms(session.image(case), session.label(case))


def _sampled_histograms(session: Session, cases: Cases, samples: Samples) -> np.ndarray:
    """Grey values of a case's sampled voxels by class, so that both sides are judged on the same voxels."""
    grey = session.image(cases.by_id[samples.case_id]).reshape(-1)[samples.index]
    return class_histograms(grey, np.asarray(samples.y))
