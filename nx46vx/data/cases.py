"""What a dataset is once it was checked: cases, and what was left out by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nx46vx.errors import DataError
from nx46vx.runtime.digest import digest_json

SKIPPED_BY_CONFIG = "left out by the configuration (data.skip_cases)"


@dataclass(frozen=True)
class Case:
    """One volume, with its label where there is one; ``shape`` (z, y, x), ``counts`` voxels of label 0, 1, 2."""

    case_id: str
    image: Path
    label: Path | None
    shape: tuple[int, int, int]
    image_digest: str
    label_digest: str | None
    counts: tuple[int, int, int] | None

    @property
    def prevalence(self) -> float:
        """Share of surface among the voxels labelled 0 or 1; NaN without a label."""
        if self.counts is None or self.counts[0] + self.counts[1] == 0:
            return math.nan
        return self.counts[1] / (self.counts[0] + self.counts[1])

    def to_json(self) -> dict[str, Any]:
        return {
            "case_id": self.case_id, "image": str(self.image), "label": None if self.label is None else str(self.label),
            "shape": list(self.shape), "image_digest": self.image_digest, "label_digest": self.label_digest,
            "counts": None if self.counts is None else list(self.counts),
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Case:
        try:
            (z, y, x), counts, label = value["shape"], value["counts"], value["label"]
            return cls(
                str(value["case_id"]), Path(value["image"]), None if label is None else Path(label),
                (int(z), int(y), int(x)), str(value["image_digest"]), value["label_digest"],
                None if counts is None else (int(counts[0]), int(counts[1]), int(counts[2])),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError("a saved case cannot be read", found=error, fix="plan the run again") from error


@dataclass(frozen=True)
class Dataset:
    """Usable cases, sorted by id, and everything that was left out, as ``(case_id, reason)``."""

    train: tuple[Case, ...]
    test: tuple[Case, ...]
    orphan_images: tuple[str, ...]
    orphan_labels: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def digest(self) -> str:
        """Names the content: ids and file digests, not the place."""
        return digest_json(
            [
                [[case.case_id, case.image_digest, case.label_digest] for case in part]
                for part in (self.train, self.test)
            ]
        )

    @property
    def skipped_pairs(self) -> tuple[tuple[str, str], ...]:
        """Those skips that had both an image and a label on disk."""
        orphans = {*self.orphan_images, *self.orphan_labels}
        return tuple(item for item in self.skipped if item[0] not in orphans)

    @property
    def pair_count(self) -> int:
        """Image and label pairs found on disk, usable or not."""
        return len(self.train) + len(self.skipped_pairs)
