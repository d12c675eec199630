"""Scores of files and folders: predictions paired with labels by name, the mean over the pairs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nx46vx.data.volume_io import read_volume
from nx46vx.errors import DataError
from nx46vx.inference.scoring.score import LabelScorer, VolumeScore
from nx46vx.inference.scoring.topology import Counts, add_counts

_SUFFIXES = (".tif", ".tiff")
_SHOWN = 5
_PARTS = ("score", "topo", "surface_dice", "voi")


@dataclass(frozen=True)
class CaseScores:
    """Scores by case; ``score``, ``topo``, ``surface_dice`` and ``voi`` are means, ``counts`` sums over the cases."""

    cases: dict[str, VolumeScore]
    score: float
    topo: float
    surface_dice: float
    voi: float
    counts: tuple[Counts, Counts, Counts]

    def to_json(self) -> dict[str, Any]:
        return {**_fields(self), "cases": {name: _fields(score) for name, score in self.cases.items()}}


def score_cases(cases: Iterable[tuple[str, np.ndarray, np.ndarray]]) -> CaseScores:
    """Score (case id, prediction, label) triples of volumes (z, y, x), one at a time.

    Raises:
        DataError: no cases, one id twice, or a pair that cannot be scored.
    """
    scores: dict[str, VolumeScore] = {}
    for name, prediction, label in cases:
        if name in scores:
            raise DataError("two pairs have the same case id", where=name, fix="score each case once")
        scorer = LabelScorer(label, name=f"case {name}, label")
        scores[name] = scorer.score(prediction, name=f"case {name}, prediction")
    if not scores:
        raise DataError("there is nothing to score", found="no cases", fix="give predictions and their labels")
    means = {part: math.fsum(getattr(score, part) for score in scores.values()) / len(scores) for part in _PARTS}
    return CaseScores(scores, **means, counts=add_counts([score.counts for score in scores.values()]))


def score_files(prediction: Path, label: Path) -> CaseScores:
    """Score two TIFFs, or two folders of TIFFs paired by name.

    Raises:
        DataError: what ``pair_files``, ``read_volume`` and ``score_cases`` refuse.
    """
    return score_cases(
        (name, read_volume(mask, case_id=name), read_volume(truth, case_id=name))
        for name, mask, truth in pair_files(prediction, label)
    )


def pair_files(prediction: Path, label: Path) -> list[tuple[str, Path, Path]]:
    """(case id, prediction, label): the case id is the label's stem, and in folders the prediction's too.

    Raises:
        DataError: a file and a folder, nothing there, an empty folder, or files without counterparts, by name.
    """
    for path in (prediction, label):
        if not path.exists():
            raise DataError("there is no such file or folder", where=path, fix="check the path")
    if prediction.is_dir() != label.is_dir():
        raise DataError(
            "a file cannot be paired with a folder", where=f"{prediction} and {label}",
            fix="give two TIFFs, or two folders",
        )  # fmt: skip
    if not label.is_dir():
        return [(label.stem, prediction, label)]
    predictions, labels = _volumes(prediction), _volumes(label)
    for here, there, folder in ((labels, predictions, prediction), (predictions, labels, label)):
        if missing := sorted(here.keys() - there.keys()):
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            raise DataError(
                f"{len(missing)} of {len(here)} cases have no counterpart", where=folder,
                found=f"no TIFF for {', '.join(missing[:_SHOWN])}{more}",
                fix="put the missing files there, or take their counterparts away",
            )  # fmt: skip
    return [(name, predictions[name], labels[name]) for name in sorted(labels)]


def _volumes(folder: Path) -> dict[str, Path]:
    """TIFFs of a folder by stem; hidden files and folders are passed over."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in _SUFFIXES or path.is_dir():
            continue
        if path.stem in found:
            names = f"{found[path.stem].name} and {path.name}"
            raise DataError("two files claim one case", where=folder, found=names, fix="keep one of them")
        found[path.stem] = path
    if not found:
        raise DataError("the folder holds no TIFF", where=folder, fix="give a folder of ID.tif files")
    return found


def _fields(score: VolumeScore | CaseScores) -> dict[str, Any]:
    parts: dict[str, Any] = {part: getattr(score, part) for part in _PARTS}
    return {**parts, "counts": {str(dimension): list(counts) for dimension, counts in enumerate(score.counts)}}
