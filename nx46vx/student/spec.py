"""What a student's training is made of, as plain data: enough to train it, or go on with it, in any process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nx46vx.data.cases import Case
from nx46vx.runtime.digest import digest_json
from nx46vx.settings import StudentSettings
from nx46vx.student.symmetry import Symmetry, allowed

#: Changes when equal settings, cases and seeds come to mean other weights.
STUDENT_SIGNATURE = "residual-unet-1"
Variant = Literal["3d", "2.5d"]
#: Label of the voxels that count for nothing.
IGNORED = 2
#: What a student's name in the checkpoint store and in the event log begins with; no candidate's does.
OWNER_PREFIX = "student-"

#: Keys that say whether and how it is run and used, not what is learned.
_NOT_LEARNED = (
    "enabled", "variants", "loader_workers", "checkpoint_steps", "overlap", "tta", "fusion_cases", "fusion_min_gain",
    "epochs", "micro_batch",
)  # fmt: skip


@dataclass(frozen=True)
class StudentSpec:
    """One student. ``epochs``: as many as the time left allowed; ``threads``: samples computed at once on a CPU;
    ``gpu``: which of this process's GPUs it is, where ``device`` is ``cuda``."""

    run_id: str
    seed: int
    variant: Variant
    settings: StudentSettings
    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    epochs: int
    device: str = "cpu"
    threads: int = 1
    gpu: int = 0

    @property
    def owner(self) -> str:
        """Its name in the checkpoint store and in the event log."""
        return owner_of(self.variant)

    @property
    def patch(self) -> tuple[int, int, int]:
        """Edges (z, y, x) of a training patch and of a window, in voxels."""
        return self.settings.patch if self.variant == "3d" else self.settings.slab

    @property
    def symmetries(self) -> tuple[Symmetry, ...]:
        """Those that training patches are moved by."""
        return allowed(self.settings.symmetries, self.patch)

    @property
    def total_steps(self) -> int:
        return self.epochs * self.settings.steps_per_epoch

    @property
    def data_digest(self) -> str:
        """Names the content of the cases, not their place."""
        return digest_json(
            [[[case.case_id, case.image_digest, case.label_digest] for case in part]
             for part in (self.train, self.validation)]
        )  # fmt: skip

    @property
    def signature(self) -> str:
        """Equal where the same weights come out at every step."""
        learned = self.settings.model_dump(mode="json", exclude=set(_NOT_LEARNED))
        return digest_json([STUDENT_SIGNATURE, self.variant, self.seed, self.epochs, self.data_digest, learned])


def owner_of(variant: str) -> str:
    return f"{OWNER_PREFIX}{variant}"
