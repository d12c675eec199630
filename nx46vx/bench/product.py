"""The product's own sides, as a run leaves them: one candidate, the ensemble, the student, and both fused."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from nx46vx.bench.fitted import ensemble_of
from nx46vx.bench.quality_methods import Probabilities, Training
from nx46vx.features.spread import usable_cpus
from nx46vx.inference.masks.doubt import Prediction
from nx46vx.inference.predict import predict
from nx46vx.model.ensemble import Ensemble
from nx46vx.model.metrics import sigmoid
from nx46vx.pipeline.decisions import Decisions
from nx46vx.pipeline.session import settings_of
from nx46vx.pipeline.student import KIND
from nx46vx.runtime.checkpoint import CheckpointStore

if TYPE_CHECKING:
    from nx46vx.pipeline.fuse import Student

_BLOCK = 160
_SEARCHED = ("features", "freeze", "train_supervised")


class WholeEnsemble(Probabilities):
    """The ensemble, with its members' doubt."""

    stages: ClassVar[tuple[str, ...]] = (*_SEARCHED, "ensemble")

    def __init__(self) -> None:
        self.ensemble, self.vote_at = Ensemble((), 0.0), 0.5

    def fit(self, training: Training) -> None:
        self.ensemble, self.vote_at = ensemble_of(training.folder), float(training.report["masks"]["vote_at"])

    def predict(self, volume: np.ndarray) -> Prediction:
        return predict(volume, self.ensemble, block=_BLOCK, vote_at=self.vote_at)


class SingleCandidate(WholeEnsemble):
    """The candidate with the best objective on validation samples, alone."""

    stages: ClassVar[tuple[str, ...]] = _SEARCHED

    def fit(self, training: Training) -> None:
        super().fit(training)
        best = next(csv.DictReader(io.StringIO(training.paths.leaderboard.read_text())))["candidate_id"]
        (member,) = (one for one in self.ensemble.members if one.candidate_id == best)
        self.ensemble = Ensemble((replace(member, weight=1.0),), 0.0)


class UNet(Probabilities):
    """The student alone."""

    stages: ClassVar[tuple[str, ...]] = ("student",)

    def __init__(self) -> None:
        self.student: Student | None = None

    def fit(self, training: Training) -> None:
        self.student = load_student(training)

    def logits(self, volume: np.ndarray) -> np.ndarray:
        """Logits of surface, (z, y, x) float32."""
        assert self.student is not None
        return self.student.logits(volume, self.student.symmetries)

    def predict(self, volume: np.ndarray) -> Prediction:
        return Prediction.certain(sigmoid(self.logits(volume).astype(np.float64)).astype(np.float32))


class Fused(UNet):
    """Ensemble and student with the weights that the run fitted, whether or not its rule would keep them."""

    stages: ClassVar[tuple[str, ...]] = (*WholeEnsemble.stages, "student", "student_fusion")

    def __init__(self) -> None:
        super().__init__()
        self.neurons = WholeEnsemble()
        self.weights: dict[str, float] = {}

    def fit(self, training: Training) -> None:
        super().fit(training)
        self.neurons.fit(training)
        self.weights = fusion_of(training)["weights"]

    def predict(self, volume: np.ndarray) -> Prediction:
        from nx46vx.student.fusion import Fusion

        alone = self.neurons.predict(volume)
        fusion = Fusion.from_json(self.weights)
        return replace(alone, probability=fusion.probability(alone.probability, self.logits(volume)))


def fusion_of(training: Training) -> dict[str, Any]:
    """What the run decided about fusing: weights, folds, verdict."""
    found: dict[str, Any] = Decisions(training.paths.decisions).get(KIND, "fusion")
    return found


def load_student(training: Training) -> Student:
    """The run's best student with the weights of its best epoch, without averaging over symmetries."""
    from nx46vx.pipeline.fuse import Student
    from nx46vx.student.inference import trained_network
    from nx46vx.student.spec import StudentSpec
    from nx46vx.student.symmetry import Symmetry

    settings, decided = settings_of(training.paths.root), fusion_of(training)
    spec = StudentSpec(
        training.plan.run_id, settings.seed, decided["variant"], settings.student, (), (), decided["epochs"],
        threads=usable_cpus(),
    )  # fmt: skip
    store = CheckpointStore(
        training.paths.checkpoints, run_id=training.plan.run_id, identity=training.plan.identity
    )  # fmt: skip
    checkpoint = store.latest(spec.owner)
    assert checkpoint is not None
    return Student(spec, trained_network(spec, checkpoint.arrays()), 1, (Symmetry(),))
