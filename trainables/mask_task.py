"""One trial of the mask search, as a task: a rule to the competition's score of some volumes' masks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nx46vx.inference.masks.doubt import Prediction
from nx46vx.inference.masks.parameters import MaskRule
from nx46vx.inference.masks.profile import VolumeProfile
from nx46vx.inference.postprocess import mask_of
from nx46vx.inference.scoring import LabelScorer

#: Parts of a score, the score first.
PARTS = ("score", "topo", "surface_dice", "voi")
_ARRAYS = ("probability", "deviation", "disagreement", "label")


@dataclass
class MaskVolumes:
    """Predictions and labels of some cases in a folder, mapped by every process that scores masks of them."""

    folder: Path
    cases: tuple[str, ...]
    _open: dict[str, tuple[Prediction, VolumeProfile, LabelScorer]] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "cases": self.cases, "_open": {}}

    def put(self, number: int, prediction: Prediction, label: np.ndarray) -> None:
        """Write one case's arrays, by its place in ``cases``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in _ARRAYS:
            np.save(self._path(number, name), label if name == "label" else getattr(prediction, name))

    def score(self, rule: Mapping[str, Any]) -> dict[str, Any]:
        """Means over the cases of ``PARTS``, each case's under ``cases``, and the ``seconds`` it took."""
        started = time.perf_counter()
        made, cases = MaskRule(**rule), {}
        for number, case_id in enumerate(self.cases):
            prediction, profile, scorer = self._opened(number)
            score = scorer.score(mask_of(prediction, made, profile), name=f"case {case_id}")
            cases[case_id] = {part: float(getattr(score, part)) for part in PARTS}
        means = {part: sum(one[part] for one in cases.values()) / len(cases) for part in PARTS}
        return {**means, "cases": cases, "seconds": time.perf_counter() - started}

    def _opened(self, number: int) -> tuple[Prediction, VolumeProfile, LabelScorer]:
        case_id = self.cases[number]
        if case_id not in self._open:
            arrays = [np.load(self._path(number, name), mmap_mode="r", allow_pickle=False) for name in _ARRAYS]
            prediction = Prediction(arrays[0], arrays[1], arrays[2])
            scorer = LabelScorer(np.asarray(arrays[3]), name=f"the label of {case_id}")
            self._open[case_id] = prediction, VolumeProfile.of(prediction), scorer
        return self._open[case_id]

    def _path(self, number: int, name: str) -> Path:
        return self.folder / f"{number:04d}_{name}.npy"
