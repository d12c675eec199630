"""Leave one scroll out: what each family adds to the pool, what candidates add, and whether orientation matters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nx46vx.bench.families import CandidateFamily
from nx46vx.bench.judges import Scores, average_precision, boosted_trees, wide_neuron
from nx46vx.bench.pool_samples import UPRIGHT, ScrollSamples, column_names
from nx46vx.features.pool import FEATURES, feature_names
from nx46vx.model.samples import FitData

WHOLE = "whole pool"
JUDGES: Mapping[str, Callable[[FitData, Sequence[str]], Scores]] = {"neuron": wide_neuron, "trees": boosted_trees}


@dataclass(frozen=True)
class Verdict:
    """Average precision of one set of features by one judge: on each held-out scroll as it lies (scrolls,), and how
    much it changes when that scroll is turned (scrolls, rotations)."""

    upright: np.ndarray
    changes: np.ndarray

    def gain(self, whole: Verdict) -> np.ndarray:
        """What it has more than the whole pool, scroll by scroll."""
        return self.upright - whole.upright

    @property
    def largest_change(self) -> float:
        """The change of largest magnitude."""
        return float(self.changes.flat[int(np.argmax(np.abs(self.changes)))])


def families_of_the_pool() -> tuple[str, ...]:
    """The pool's families, in its order."""
    return tuple(dict.fromkeys(spec.family for spec in FEATURES))


def feature_sets(families: Sequence[CandidateFamily]) -> dict[str, tuple[str, ...]]:
    """Features of each row of the table: the whole pool, it without each family, it with each candidate family."""
    rows = {WHOLE: feature_names()}
    for family in families_of_the_pool():
        rows[f"without {family}"] = tuple(spec.name for spec in FEATURES if spec.family != family)
    return rows | {f"with {one.family}": (*feature_names(), *one.names) for one in families}


def folds(scrolls: Sequence[ScrollSamples], columns: Sequence[str]) -> list[tuple[FitData, ScrollSamples]]:
    """For each scroll the data of all others to fit on, and that scroll."""
    found = []
    for held_out in scrolls:
        others = [one.fitted for one in scrolls if one.scroll != held_out.scroll]
        found.append((FitData(tuple(columns), others, others[:1]), held_out))  # nothing is chosen on the second
    return found


def leave_one_out(
    scrolls: Sequence[ScrollSamples], families: Sequence[CandidateFamily]
) -> dict[str, dict[str, Verdict]]:
    """Verdicts by row of the table and judge."""
    sets = feature_sets(families)
    found: dict[str, dict[str, list[list[float]]]] = {row: {judge: [] for judge in JUDGES} for row in sets}
    for data, held_out in folds(scrolls, column_names(families)):
        for row, view in sets.items():
            for judge, fit in JUDGES.items():
                scores = fit(data, view)
                found[row][judge].append(
                    [average_precision(held_out.y, scores(features)) for features in held_out.judged.values()]
                )
    return {
        row: {judge: _verdict(np.array(values)) for judge, values in judged.items()} for row, judged in found.items()
    }  # fmt: skip


def turned_features(scrolls: Sequence[ScrollSamples], families: Sequence[CandidateFamily]) -> dict[str, float]:
    """How much each feature changes when a volume is turned: root mean square over its spread, the worst case."""
    worst: dict[str, float] = {}
    for scroll in scrolls:
        upright = scroll.judged[UPRIGHT]
        for row, name in enumerate(column_names(families)):
            spread = float(upright[row].std()) or 1.0
            for features in scroll.judged.values():
                off = float(np.sqrt(np.mean((features[row].astype(np.float64) - upright[row]) ** 2))) / spread
                worst[name] = max(worst.get(name, 0.0), off)
    return worst


def mean_and_error(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Mean and its standard error; the error of a single value is not known (NaN)."""
    found = np.asarray(values, np.float64)
    return float(found.mean()), float(found.std(ddof=1) / np.sqrt(found.size)) if found.size > 1 else float("nan")


def _verdict(values: np.ndarray) -> Verdict:
    return Verdict(values[:, 0], values[:, 1:] - values[:, :1])
