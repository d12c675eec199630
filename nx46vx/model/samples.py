"""The samples of a fit, as the model sees them: mapped case files, cut in chunks of fixed bounds.

Chunk bounds depend only on the data, so sums over chunks have the same bits on any machine and thread count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np

CHUNK = 16_384

#: From this many cases on a bootstrap draws cases, below it spatial blocks of cases.
CASE_BOOTSTRAP_MIN = 20


class Samples(Protocol):
    """One case's samples: features (2M, n) float32 (M features, then their spatial gradients), labels (n,), flat voxel
    indices (n,), spatial block ids (n,), labelled voxels of the volume by class."""

    @property
    def case_id(self) -> str: ...
    @property
    def features(self) -> np.ndarray: ...
    @property
    def y(self) -> np.ndarray: ...
    @property
    def index(self) -> np.ndarray: ...
    @property
    def group(self) -> np.ndarray: ...
    @property
    def counts(self) -> tuple[int, int]: ...


@dataclass(frozen=True)
class Chunk:
    """Samples ``start:stop`` of one case."""

    case: int
    start: int
    stop: int


def cut(cases: Sequence[Samples], size: int = CHUNK) -> list[Chunk]:
    """Chunks of at most ``size`` samples, of nearly equal size within a case."""
    chunks = []
    for index, case in enumerate(cases):
        total = case.y.size
        pieces = math.ceil(total / size)
        bounds = [total * piece // pieces for piece in range(pieces + 1)] if pieces else [0]
        chunks += [Chunk(index, start, stop) for start, stop in pairwise(bounds)]
    return chunks


@dataclass
class FitData:
    """Training samples (balanced) and validation samples (natural prevalence) over one feature pool."""

    pool: tuple[str, ...]
    train: Sequence[Samples]
    validation: Sequence[Samples]
    chunk: int = CHUNK
    train_chunks: list[Chunk] = field(init=False)
    validation_chunks: list[Chunk] = field(init=False)

    def __post_init__(self) -> None:
        self.train_chunks = cut(self.train, self.chunk)
        self.validation_chunks = cut(self.validation, self.chunk)

    @property
    def train_samples(self) -> int:
        return sum(case.y.size for case in self.train)

    @property
    def validation_samples(self) -> int:
        return sum(case.y.size for case in self.validation)

    @property
    def natural_prior(self) -> float:
        """Share of surface among the labelled voxels of the training volumes."""
        negatives = sum(case.counts[0] for case in self.train)
        positives = sum(case.counts[1] for case in self.train)
        return positives / (positives + negatives)

    @cached_property
    def train_groups(self) -> tuple[list[np.ndarray], int]:
        """Bootstrap group of each training sample, per case (int32), and the number of groups."""
        return group_ids(self.train)

    def rows(self, view: Sequence[str]) -> np.ndarray:
        """Feature rows of a view: its F features, then their F spatial gradients."""
        at = [self.pool.index(name) for name in view]
        return np.array(at + [len(self.pool) + row for row in at], dtype=np.int64)


def group_ids(cases: Sequence[Samples]) -> tuple[list[np.ndarray], int]:
    """Groups of samples that are drawn together: cases when there are enough of them, else spatial blocks."""
    if len(cases) >= CASE_BOOTSTRAP_MIN:
        return [np.full(case.y.size, index, np.int32) for index, case in enumerate(cases)], len(cases)
    ids, total = [], 0
    for case in cases:
        unique, inverse = np.unique(case.group, return_inverse=True)
        ids.append((inverse + total).astype(np.int32))
        total += unique.size
    return ids, total
