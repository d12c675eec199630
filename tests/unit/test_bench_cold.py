"""The pass over a cache on disk only: its memory keeps the bound that it was given."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from nx46vx.bench.children import in_child
from nx46vx.bench.cold import GIB, WORKING_BYTES, cold_figures
from nx46vx.bench.stage import PER_CASE, Stage
from nx46vx.features.cache import FeatureCache
from nx46vx.runtime.sink import NullSink

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/self/status tells the memory")


def test_a_pass_keeps_no_more_than_its_bound_and_all_where_it_may(tmp_path: Path) -> None:
    """Features are most of what a pass takes: with no bound all of them stay, with one of none only those in work."""
    stage = Stage.make(tmp_path, 25 * PER_CASE, 1000, 4)
    cache = FeatureCache(stage.cache, sink=NullSink())
    files = [cache.path(key) / "features.npy" for key in stage.plan.train_keys]
    size = sum(file.stat().st_size for file in files)
    taken = {}
    for bound in (0, 1 << 40):
        told = in_child(
            "nx46vx.bench.cold", "cold_pass", root=str(stage.root), cache=str(stage.cache),
            files=[str(file) for file in files], resident_bytes=bound,
        )  # fmt: skip
        assert told["samples"] == 25 * PER_CASE and told["seconds"] > 0
        taken[bound] = told["peak_bytes"] - told["before_bytes"]
    assert taken[0] < told["threads"] * size // 25 + WORKING_BYTES < size // 2
    assert size // 2 < taken[1 << 40] < size + WORKING_BYTES


def test_the_figures_set_memory_against_the_bound_and_the_cache(tmp_path: Path) -> None:
    found = {figure.name: figure for figure in cold_figures(2 * PER_CASE, 0, 1, tmp_path)}
    memory, size = found["cold_pass_memory_gib"], found["cold_cache_gib"].median
    assert size == pytest.approx(2 * PER_CASE * 48 * 4 / GIB, rel=1e-3)
    assert memory.at_most is not None and 0 < memory.median <= memory.at_most < 1
    assert found["cold_cache_over_memory"].median == pytest.approx(size / memory.median)
    assert memory.median < found["cold_process_gib"].median
    assert math.isfinite(found["cold_pass_over_reading"].median)
    assert list(tmp_path.iterdir()) == []
