"""Cached samples as a table: every bit of them, with the versions they belong to; the commands that list and export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from nx46vx.cli.app import app
from nx46vx.errors import IntegrityError, UsageError
from nx46vx.features import export as export_module
from nx46vx.features.cache import FeatureCache
from nx46vx.features.entry import write_entry
from nx46vx.features.export import export_parquet
from nx46vx.features.pool import POOL_VERSION, feature_names
from nx46vx.runtime.sink import NullSink

NAMES = feature_names()


def put(cache: FeatureCache, number: int, samples: int, **changes: object) -> str:
    """An entry of random arrays under a made-up key."""
    rng = np.random.default_rng(number)
    arrays = {
        "features": rng.standard_normal((2 * len(NAMES), samples)).astype(np.float32),
        "y": rng.integers(0, 2, samples).astype(np.uint8),
        "index": rng.integers(0, 2**40, samples),
        "group": rng.integers(0, 1000, samples).astype(np.int32),
    }
    facts = {
        "case_id": f"case{number}", "kind": "balanced", "seed": 3, "limit": 400, "image": "a" * 8, "label": "b" * 8,
        "pool_version": POOL_VERSION, "features": list(NAMES),
    } | changes  # fmt: skip
    key = f"{number:02x}" * 64
    write_entry(cache.path(key), arrays, case_id=f"case{number}", counts=(number, 2 * number), facts=facts)
    return key


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache", sink=NullSink())


def test_a_table_holds_every_bit_of_the_samples(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "_ROWS", 128)  # several row groups for a case
    keys = [put(cache, 1, 300), put(cache, 2, 50)]
    target = tmp_path / "out" / "samples.parquet"
    assert export_parquet(cache, keys, target) == 350
    table = pq.read_table(target)
    samples = [cache.open(key) for key in keys]
    assert table["case_id"].to_pylist() == ["case1"] * 300 + ["case2"] * 50
    for name in ("y", "index", "group"):
        expected = np.concatenate([getattr(s, name) for s in samples])
        assert table[name].to_numpy().dtype == expected.dtype
        assert np.array_equal(table[name].to_numpy(), expected)
    for row, name in enumerate([*NAMES, *(f"grad_{name}" for name in NAMES)]):
        expected = np.concatenate([s.features[row] for s in samples])
        assert table[name].to_numpy().tobytes() == expected.tobytes()
    assert pq.ParquetFile(target).num_row_groups == 4
    about = orjson.loads(table.schema.metadata[b"nx46vx"])
    assert (about["schema_version"], about["pool_version"]) == (1, POOL_VERSION)
    assert about["features"] == list(NAMES)
    assert [case["digest"] for case in about["cases"]] == [s.digest for s in samples]
    assert about["cases"][1] | {"digest": ""} == {
        "case_id": "case2", "kind": "balanced", "seed": 3, "limit": 400, "image": "a" * 8, "label": "b" * 8,
        "labelled_0": 2, "labelled_1": 4, "digest": "",
    }  # fmt: skip


def test_what_cannot_be_exported_is_refused_and_leaves_no_file(cache: FeatureCache, tmp_path: Path) -> None:
    target = tmp_path / "samples.parquet"
    old = put(cache, 1, 10, pool_version=POOL_VERSION - 1)
    with pytest.raises(UsageError, match=r"another version.*case1"):
        export_parquet(cache, [old], target)
    with pytest.raises(UsageError, match="nothing to export"):
        export_parquet(cache, [], target)
    with pytest.raises(IntegrityError):
        export_parquet(cache, ["ff" * 64], target)
    assert list(tmp_path.glob("*parquet*")) == []


def test_list_tells_of_every_entry_and_of_damage(cache: FeatureCache) -> None:
    keys = [put(cache, number, 10 * number) for number in (1, 2, 3)]
    (cache.path(keys[1]) / "y.npy").unlink()
    said = CliRunner().invoke(app, ["cache", "list", "--cache", str(cache.root)])
    assert said.exit_code == 0, said.output
    first, second, third, total = said.output.splitlines()
    assert first.startswith(f"case1: 10 samples, balanced, seed 3, pool version {POOL_VERSION}, ")
    assert second.startswith(f"damaged: {keys[1][:16]}: y.npy")
    assert third.startswith("case3: 30 samples")
    assert total.startswith("3 entries, ")
    told = orjson.loads(CliRunner().invoke(app, ["cache", "list", "--cache", str(cache.root), "--json"]).output)
    assert [entry["key"] for entry in told] == keys
    assert told[0]["bytes"] == sum(file.stat().st_size for file in cache.path(keys[0]).iterdir())


def test_export_takes_the_cases_or_keys_that_are_named(cache: FeatureCache, tmp_path: Path) -> None:
    keys = [put(cache, number, 10 * number) for number in (1, 2, 3)]
    target = tmp_path / "samples.parquet"

    def rows(*options: str) -> int:
        said = CliRunner().invoke(app, ["cache", "export", str(target), "--cache", str(cache.root), *options, "--json"])
        assert said.exit_code == 0, said.output
        told = orjson.loads(said.output)
        assert told["rows"] == pq.read_metadata(target).num_rows
        return int(told["rows"])

    assert rows() == 60
    assert rows("--case", "case3", "--case", "case1") == 40
    assert rows("--key", keys[1][:8]) == 20
    said = CliRunner().invoke(app, ["cache", "export", str(target), "--cache", str(cache.root), "--case", "nobody"])
    assert isinstance(said.exception, UsageError)
