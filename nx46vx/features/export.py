"""Cached samples as one Parquet table, for analysis elsewhere: a row per sample, a row group per case or part of one.

Columns: ``case_id``, ``kind`` (balanced or natural draw), ``y`` (1 surface, 0 background), ``index`` (flat voxel
index), ``group`` (32-voxel cube), then each feature of the pool, float32, and its spatial gradient magnitude as
``grad_<feature>``. The file's metadata holds, under ``nx46vx``, JSON of ``schema_version``, ``pool_version``,
``features`` and, per case, what its samples were drawn from and the digest of their arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from nx46vx.errors import UsageError, from_os_error
from nx46vx.features.cache import CaseSamples, FeatureCache
from nx46vx.features.pool import POOL_VERSION, feature_names
from nx46vx.runtime.atomic import replacing

if TYPE_CHECKING:
    import pyarrow as pa

#: Raise when columns or metadata change their meaning.
SCHEMA_VERSION = 1
_ROWS = 1 << 17  # of a row group at most: bounds the memory


def export_parquet(cache: FeatureCache, keys: Sequence[str], target: Path) -> int:
    """Write the samples of some entries to a Parquet file, whole or not at all; returns the number of rows.

    Raises:
        UsageError: no entry is named, or one holds another pool's features.
        IntegrityError: an entry is absent or damaged.
        EnvironmentFault: the file cannot be written.
    """
    import pyarrow.parquet as pq

    facts = [cache.facts(key) for key in keys]
    _check(keys, facts)
    samples = [cache.open(key) for key in keys]
    schema = _schema(facts, samples)
    rows = 0
    try:
        with (
            replacing(Path(target)) as temporary,
            pq.ParquetWriter(temporary, schema, compression="zstd", use_dictionary=["case_id", "kind"]) as writer,
        ):
            for fact, entry in zip(facts, samples, strict=True):
                for batch in _batches(entry, str(fact["kind"]), schema):
                    writer.write_batch(batch, row_group_size=_ROWS)
                    rows += batch.num_rows
    except OSError as error:
        raise from_os_error(error, "writing the sample table", target) from error
    return rows


def _check(keys: Sequence[str], facts: Sequence[dict[str, Any]]) -> None:
    if not keys:
        raise UsageError("there is nothing to export", found="no cache entry", fix="look at nx46vx cache list")
    for key, fact in zip(keys, facts, strict=True):
        if fact["pool_version"] != POOL_VERSION or fact["features"] != list(feature_names()):
            raise UsageError(
                "an entry holds the features of another version", where=f"case {fact['case_id']}, {key[:16]}...",
                found=f"pool version {fact['pool_version']} instead of {POOL_VERSION}",
                fix="leave it out, or use the version of nx46vx that made it",
            )  # fmt: skip


def _schema(facts: Sequence[dict[str, Any]], samples: Sequence[CaseSamples]) -> pa.Schema:
    import pyarrow as pa

    names = feature_names()
    about = {
        "schema_version": SCHEMA_VERSION,
        "pool_version": POOL_VERSION,
        "features": names,
        "cases": [
            {**{name: fact[name] for name in ("case_id", "kind", "seed", "limit", "image", "label")},
             "labelled_0": entry.counts[0], "labelled_1": entry.counts[1], "digest": entry.digest}
            for fact, entry in zip(facts, samples, strict=True)
        ],
    }  # fmt: skip
    fields = [
        pa.field("case_id", pa.string()), pa.field("kind", pa.string()), pa.field("y", pa.uint8()),
        pa.field("index", pa.int64()), pa.field("group", pa.int32()),
        *(pa.field(name, pa.float32()) for name in names),
        *(pa.field(f"grad_{name}", pa.float32()) for name in names),
    ]  # fmt: skip
    return pa.schema(fields, metadata={"nx46vx": orjson.dumps(about)})


def _batches(entry: CaseSamples, kind: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    for start in range(0, entry.y.size, _ROWS):
        part = slice(start, start + _ROWS)
        y = entry.y[part]
        columns: list[Any] = [
            pa.array([entry.case_id] * y.size), pa.array([kind] * y.size), pa.array(y), pa.array(entry.index[part]),
            pa.array(entry.group[part]), *(pa.array(row) for row in entry.features[:, part]),
        ]  # fmt: skip
        yield pa.record_batch(columns, schema=schema)
