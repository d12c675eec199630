"""nx46vx bench masks: what each step from probability to mask adds to the competition's score of held-out volumes.

An ensemble is fitted on generated volumes, the rule's thresholds are chosen on others, and the masks of further ones,
of scrolls that neither saw, are scored: with all steps, with each step left out, by the rule that the search finds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nx46vx.bench.dependencies import need
from nx46vx.bench.fitted import HELD_OUT, PARTS, choosing, ensemble_of, fitted_run, generated
from nx46vx.bench.frame import Figure, Outcome
from nx46vx.inference.calibrate import calibrate_mask
from nx46vx.inference.masks.doubt import Prediction
from nx46vx.inference.masks.parameters import MaskRule
from nx46vx.inference.masks.profile import VolumeProfile
from nx46vx.inference.postprocess import mask_of
from nx46vx.inference.predict import predict
from nx46vx.inference.scoring import LabelScorer, VolumeScore
from nx46vx.pipeline.maskrule import configured_rule
from nx46vx.pipeline.masksearch import best_rule
from nx46vx.settings import MaskSettings
from trainables.mask_task import MaskVolumes

#: What leaving a step out means.
STEPS: Mapping[str, Mapping[str, Any]] = {
    "doubt as a filter": {"max_doubt": 1.0, "max_disagreement": 0.5},
    "slice support": {"slice_support": False},
    "slice bridging": {"slice_gap": 0},
    "closing": {"z_radius": 0, "xy_radius": 0},
    "separation": {"split_levels": 0},
    "tunnel plugging": {"tunnel_radius": 0},
    "hole plugging": {"hole_size": 0},
    "border": {"border": 0},
    "dust removal": {"dust_min_size": 0},
}


@dataclass(frozen=True)
class Sizes:
    """Edge of the volumes, how many there are of each kind, samples of each for the fit, and trials of the search."""

    edge: int = 128
    fitted: int = 9
    chosen_on: int = 3
    held_out: int = 8
    samples: int = 20_000
    trials: int = 48


QUICK = Sizes(edge=64, fitted=6, chosen_on=1, held_out=2, samples=4000, trials=8)
Labelled = tuple[Prediction, np.ndarray]


def measure(sizes: Sizes, mask: MaskSettings | None = None) -> Outcome:
    """Scores of every variant; a figure's values are those of the held-out volumes."""
    mask = mask or MaskSettings()
    with tempfile.TemporaryDirectory(prefix="nx46vx-bench-") as folder:
        report = fitted_run(Path(folder), edge=sizes.edge, cases=sizes.fitted, samples=sizes.samples)
        ensemble, vote_at = ensemble_of(Path(folder)), float(report["masks"]["vote_at"])

    def predicted(volumes: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[Labelled]:
        return [(predict(volume, ensemble, block=160, vote_at=vote_at), label) for volume, label in volumes]

    chosen_on = predicted(choosing(sizes.edge, sizes.chosen_on))
    held_out = predicted(generated(sizes.edge, sizes.held_out, HELD_OUT))
    started = time.perf_counter()
    variants = _variants(chosen_on, mask)
    calibrating = time.perf_counter() - started
    variants["after the search"] = _searched(chosen_on, variants["all steps"], sizes.trials)
    scores, seconds = _scored(held_out, variants)
    figures = [
        Figure(f"{_key(name)}_{part}", f"{name}: {part.replace('_', ' ')}", tuple(getattr(s, part) for s in found))
        for name, found in scores.items()
        for part in PARTS
    ]
    figures.append(Figure("mask_s", "seconds of a mask, all steps", tuple(seconds), "s"))
    table = {
        name: {part: statistics.fmean(getattr(s, part) for s in found) for part in PARTS}
        for name, found in scores.items()
    }
    rule = variants["all steps"].to_json()
    return Outcome("masks", figures, {**asdict(sizes), "rule": rule, "calibration_s": calibrating, "means": table})


def table(outcome: Outcome) -> str:
    """Means over the held-out volumes as Markdown, and what each variant has less than all steps."""
    means = outcome.sizes["means"]
    whole = means["all steps"]
    rows = ["| Variant | Score | Topo | SurfaceDice | VOI | All steps have more by |", "|---|---|---|---|---|---|"]
    for name, parts in means.items():
        less = "" if name == "all steps" else f"{whole['score'] - parts['score']:+.4f}"
        rows.append("| " + " | ".join([name, *(f"{parts[part]:.4f}" for part in PARTS), less]) + " |")
    return "\n".join(rows)


def _key(name: str) -> str:
    return name.replace(" ", "_").replace(",", "")


def _variants(choosing: Sequence[Labelled], mask: MaskSettings) -> dict[str, MaskRule]:
    """Rules by name, each with thresholds chosen for it; a step is left out of the chosen rule, all else the same."""
    start, *_ = configured_rule(mask)
    whole = calibrate_mask(choosing, start, strong=True, weak=True).rule
    found = {"all steps": whole}
    found |= {f"without {name}": replace(whole, **off) for name, off in STEPS.items()}
    found["without hysteresis"] = replace(whole, strong=whole.weak)
    common, *_ = configured_rule(mask.model_copy(update={"thresholds": "global"}))
    found["one threshold for all volumes"] = calibrate_mask(choosing, common, strong=True, weak=True).rule
    sure = replace(start, doubt_weight=0.0)
    found["doubt does not move thresholds"] = calibrate_mask(choosing, sure, strong=True, weak=True).rule
    bare = replace(start, **{key: value for off in STEPS.values() for key, value in off.items()})
    found["hysteresis alone"] = calibrate_mask(choosing, bare, strong=True, weak=True).rule
    return found


def _searched(choosing: Sequence[Labelled], start: MaskRule, trials: int) -> MaskRule:
    """The rule that the search finds from ``start``, by the score of the volumes that chose the thresholds."""
    need("Optuna", "optuna")
    from search.mask_search import MaskJob, TrialSource, search_inline
    from search.mask_study import MaskStudy

    with tempfile.TemporaryDirectory(prefix="nx46vx-bench-") as name:
        folder = Path(name)
        volumes = MaskVolumes(folder / "volumes", tuple(str(number) for number in range(len(choosing))))
        for number, (prediction, label) in enumerate(choosing):
            volumes.put(number, prediction, label)
        study = MaskStudy(
            folder / "journal.log", start=start, thresholds=True, binding="bench", seed=0,
            batch=MaskSettings().search.batch, trials=trials,
        )  # fmt: skip
        source = TrialSource(study, may_go_on=lambda: True, on_done=lambda *_: None)
        search_inline(MaskJob(source, volumes, folder, 0, 1, lambda: False))
        return best_rule(study.results(), start)


def _scored(
    held_out: Sequence[Labelled], variants: Mapping[str, MaskRule]
) -> tuple[dict[str, list[VolumeScore]], list[float]]:
    scores: dict[str, list[VolumeScore]] = {name: [] for name in variants}
    seconds = []
    for prediction, label in held_out:
        scorer, profile = LabelScorer(label), VolumeProfile.of(prediction)
        for name, rule in variants.items():
            started = time.perf_counter()
            made = mask_of(prediction, rule, profile)
            if name == "all steps":
                seconds.append(time.perf_counter() - started)
            scores[name].append(scorer.score(made))
    return scores, seconds
