"""What a family costs: processor seconds of a volume's features with and without it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from nx46vx.bench.families import CandidateFamily
from nx46vx.bench.frame import in_turn
from nx46vx.bench.pool_table import WHOLE, families_of_the_pool
from nx46vx.bench.scipy_pool import gradient
from nx46vx.data.synthetic import make_case
from nx46vx.features.blocks import iter_blocks
from nx46vx.features.extractors import standardise
from nx46vx.features.pool import FEATURES, feature_names
from nx46vx.features.reference import VolumeReference, measure_reference

#: Edge of a competition volume, to which costs are scaled by the number of voxels.
EDGE = 320


def family_costs(edge: int, repetitions: int, families: Sequence[CandidateFamily]) -> dict[str, list[float]]:
    """Seconds of one processor for 320^3 voxels, features and gradients, in each repetition.

    ``WHOLE``: all the pool. A family of the pool: what it adds to the others; what features share is free for all but
    the last that needs it. A candidate: its plain computation by itself, once.
    """
    volume, _ = make_case((edge, edge, edge), scroll=1, seed=1)
    reference, scale = measure_reference(volume), (EDGE / edge) ** 3

    def pool(names: Sequence[str]) -> float:
        started = time.thread_time()
        for found in iter_blocks(volume, reference, names, block=edge):
            del found
        return scale * (time.thread_time() - started)

    sides = {WHOLE: lambda: pool(feature_names())}
    for family in families_of_the_pool():
        rest = [spec.name for spec in FEATURES if spec.family != family]
        sides[family] = lambda rest=rest: pool(rest)  # type: ignore[misc]
    seconds = in_turn(sides, repetitions)
    costs = {WHOLE: list(seconds[WHOLE])}
    for family in families_of_the_pool():
        costs[family] = [all_of_it - rest for all_of_it, rest in zip(seconds[WHOLE], seconds[family], strict=True)]
    v = standardise(volume, reference)
    return costs | {one.family: [scale * _plainly(one, v, reference)] for one in families}


def _plainly(family: CandidateFamily, v: np.ndarray, reference: VolumeReference) -> float:
    started = time.thread_time()
    for field in family.compute(v, reference):
        gradient(field)
    return time.thread_time() - started
