"""What samples are wanted of a case, and the content address that follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from nx46vx.data.discovery import Case
from nx46vx.features.pool import POOL_VERSION, feature_names
from nx46vx.runtime.digest import digest_json

Role = Literal["train", "validation", "holdout"]


@dataclass(frozen=True)
class SampleRequest:
    """Samples wanted of one case. ``block`` says how they are computed and changes nothing of them."""

    case: Case
    role: Role
    seed: int
    limit: int
    block: int

    @property
    def kind(self) -> Literal["balanced", "natural"]:
        """Training samples are balanced, all others keep the natural prevalence."""
        return "balanced" if self.role == "train" else "natural"

    @property
    def facts(self) -> dict[str, Any]:
        """All that decides the samples' bits."""
        return {
            "image": self.case.image_digest,
            "label": self.case.label_digest,
            "case_id": self.case.case_id,
            "kind": self.kind,
            "seed": self.seed,
            "limit": self.limit,
            "pool_version": POOL_VERSION,
            "features": list(feature_names()),
        }

    @cached_property
    def key(self) -> str:
        """Content address, SHA-512 (hex) of ``facts``: no path and no block size in it."""
        return digest_json(self.facts)

    @property
    def estimated_bytes(self) -> int:
        """Most that the samples can take on disk."""
        per_sample = 2 * len(feature_names()) * 4 + 1 + 8 + 4  # features and gradients, y, index, group
        voxels = math.prod(self.case.shape) if self.case.counts is None else sum(self.case.counts[:2])
        return min(self.limit, voxels) * per_sample + (16 << 10)
