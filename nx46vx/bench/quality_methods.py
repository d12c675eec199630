"""One interface for whatever makes masks, and what the methods that start from probabilities have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import orjson

from nx46vx.data.discovery import TRAIN_IMAGES, TRAIN_LABELS
from nx46vx.data.volume_io import read_volume
from nx46vx.features.cache import FeatureCache
from nx46vx.features.pool import feature_names
from nx46vx.inference.masks.doubt import Prediction
from nx46vx.inference.masks.parameters import MaskParameters, MaskRule, Steps
from nx46vx.inference.masks.profile import VolumeProfile
from nx46vx.inference.postprocess import make_mask, mask_of
from nx46vx.inference.predict import without_unscanned
from nx46vx.inference.scoring import LabelScorer
from nx46vx.model.fitplan import FitPlan
from nx46vx.model.samples import FitData
from nx46vx.paths import RunPaths
from nx46vx.pipeline.maskrule import configured_rule
from nx46vx.pipeline.planshape import fit_of, load_plan
from nx46vx.runtime.sink import NullSink
from nx46vx.settings import MaskSettings

#: A set of free parameters, as plain values; ``scale``, if there is one, is what ``prepare`` depends on.
Choice = Mapping[str, Any]
Labelled = tuple[np.ndarray, np.ndarray]
#: Times the expected surface that the strong threshold lets through, and how many times that the weak one does.
STRONG, WEAK = (0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.3, 1.7), (1.0, 1.5, 2.5)
#: What a voxel outside a mask has, so that steps may fill it.
_POSSIBLE = np.float32(1e-6)


@dataclass(frozen=True)
class Training:
    """What ``fitted_run`` left in ``folder``: volumes, samples, and whatever the run learned from them."""

    folder: Path

    @property
    def paths(self) -> RunPaths:
        return RunPaths(self.folder / "run")

    @cached_property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = orjson.loads(self.paths.report_json.read_bytes())
        return report

    @cached_property
    def plan(self) -> FitPlan:
        plan = fit_of(load_plan(self.paths.plan), self.paths.plan)
        assert plan is not None
        return plan

    def volumes(self) -> list[Labelled]:
        """The training volumes and their labels, (z, y, x) uint8."""
        names, data = self.report["split"]["train"], self.paths.data
        return [
            (read_volume(data / TRAIN_IMAGES / f"{name}.tif"), read_volume(data / TRAIN_LABELS / f"{name}.tif"))
            for name in names
        ]

    def samples(self) -> FitData:
        """The samples that the grid was fitted and ranked on."""
        cache = FeatureCache(self.folder / "features", sink=NullSink())
        train, validation = (
            [cache.open(key) for key in keys] for keys in (self.plan.train_keys, self.plan.validation_keys)
        )
        return FitData(feature_names(), train, validation)


class Method(ABC):
    """Fit, prepare a volume, finish its mask under a choice of the free parameters.

    ``stages``: those of the run whose seconds belong to the fit.
    """

    stages: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def fit(self, training: Training) -> None:
        """Learn, or load what the run has learned."""

    @abstractmethod
    def choices(self) -> Sequence[Choice]:
        """The sets of free parameters that are tried on validation volumes; asked for after the fit."""

    @abstractmethod
    def prepare(self, volume: np.ndarray, choice: Choice) -> Any:
        """What a mask of a volume (z, y, x) uint8 is made from; depends on the choice's ``scale`` alone."""

    @abstractmethod
    def finish(self, prepared: Any, choice: Choice) -> np.ndarray:
        """The mask, uint8 (z, y, x) of 0 and 1."""

    @final
    def mask(self, volume: np.ndarray, choice: Choice) -> np.ndarray:
        return self.finish(self.prepare(volume, choice), choice)


def choose(method: Method, volumes: Sequence[Labelled]) -> tuple[Choice, float, int]:
    """The choice with the best mean score over volumes (the first among equals), the score, and how many were tried."""
    choices = method.choices()
    totals = [0.0] * len(choices)
    for volume, label in volumes:
        scorer, prepared = LabelScorer(label), dict[Any, Any]()
        for number, choice in enumerate(choices):
            scale = choice.get("scale")
            if scale not in prepared:
                prepared = {scale: method.prepare(volume, choice)}
            totals[number] += scorer.score(method.finish(prepared[scale], choice)).score
    best = max(range(len(choices)), key=lambda number: (totals[number], -number))
    return choices[best], totals[best] / len(volumes), len(choices)


def finished(mask: np.ndarray, volume: np.ndarray, *, clean: bool) -> np.ndarray:
    """A mask (z, y, x) of a volume, uint8: nothing where that is 0; ``clean``: after the product's default steps from
    closing to dust."""
    if not clean:
        return (mask & (volume > 0)).view(np.uint8)
    start, *_ = configured_rule(MaskSettings())
    steps = {one.name: getattr(start, one.name) for one in fields(Steps)}
    probability = without_unscanned(np.where(mask, np.float32(1), _POSSIBLE), volume)
    return make_mask(Prediction.certain(probability), MaskParameters(**steps, strong_th=0.5, weak_th=0.5))


class Probabilities(Method):
    """Methods that give each voxel a probability: the product's default steps make the mask of it. Where the volume is
    0 the probability is."""

    @abstractmethod
    def predict(self, volume: np.ndarray) -> Prediction:
        """Probabilities of a volume, and doubt where there is any."""

    def choices(self) -> Sequence[Choice]:
        return [{"strong": strong, "weak": round(strong * weak, 3)} for strong in STRONG for weak in WEAK]

    def prepare(self, volume: np.ndarray, choice: Choice) -> tuple[Prediction, VolumeProfile]:
        prediction = self.predict(volume)
        without_unscanned(prediction.probability, volume)
        return prediction, VolumeProfile.of(prediction)

    def finish(self, prepared: tuple[Prediction, VolumeProfile], choice: Choice) -> np.ndarray:
        return mask_of(prepared[0], rule_of(choice), prepared[1])


def rule_of(choice: Choice) -> MaskRule:
    """The default rule with thresholds that follow the volume, at the chosen multiples of its expected surface."""
    start, *_ = configured_rule(MaskSettings())
    return replace(start, strong=choice["strong"], weak=choice["weak"])
