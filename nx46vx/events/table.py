"""Events as an Arrow table or a Parquet file, in batches of bounded size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nx46vx.errors import IntegrityError, from_os_error
from nx46vx.events.chain import RESERVED
from nx46vx.events.reader import iter_events
from nx46vx.runtime.atomic import replacing

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 1 << 16
_FIXED = ("ts_ns", "seq", "writer", "run_id", "fence", "event", "prev", "crc32")


def read_table(folder: Path, **selection: Any) -> pa.Table:
    """All selected events (see ``iter_events`` for ``selection``) as a table, one row each, in the same order.

    Columns: the log's own fields, then every other field by name. A column is int64, float64, bool or string after
    what all its events hold; mixed ones, lists and objects are JSON text. Absent fields are null. Reads the log twice.
    """
    import pyarrow as pa

    schema = _schema(folder, selection)
    return pa.Table.from_batches(list(_batches(folder, selection, schema)), schema)


def export_parquet(folder: Path, target: Path, **selection: Any) -> int:
    """Write the table of ``read_table`` to a Parquet file, whole or not at all; returns the number of events.

    Raises:
        EnvironmentFault: the file cannot be written.
        IntegrityError: the log holds a number that fits no column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(folder, selection)
    rows = 0
    try:
        with replacing(Path(target)) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for batch in _batches(folder, selection, schema):
                writer.write_batch(batch)
                rows += batch.num_rows
    except OSError as error:
        raise from_os_error(error, "writing the event table", target) from error
    except pa.ArrowInvalid as error:
        raise IntegrityError("the event log holds what no table can", where=folder, found=error) from error
    return rows


def _schema(folder: Path, selection: dict[str, Any]) -> pa.Schema:
    import pyarrow as pa

    kinds: dict[str, set[type]] = {}
    for record in iter_events(folder, **selection):
        for name, value in record.items():
            fits = not isinstance(value, int) or value < 2**63
            kinds.setdefault(name, set()).add(type(value) if fits else str)
    fixed = {"ts_ns": pa.int64(), "seq": pa.int64(), "fence": pa.int64()}
    fields = [pa.field(name, fixed.get(name, pa.string())) for name in _FIXED]
    for name in sorted(kinds.keys() - RESERVED):
        fields.append(pa.field(name, _arrow_type(kinds[name] - {type(None)})))
    return pa.schema(fields)


def _arrow_type(kinds: set[type]) -> pa.DataType:
    import pyarrow as pa

    for wanted, arrow in (({bool}, pa.bool_()), ({int}, pa.int64()), ({int, float}, pa.float64())):
        if kinds and kinds <= wanted:
            return arrow
    return pa.string()


def _batches(folder: Path, selection: dict[str, Any], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    def batch() -> pa.RecordBatch:
        return pa.record_batch([pa.array(columns[field.name], field.type) for field in schema], schema=schema)

    text = {field.name for field in schema if field.type == pa.string()}
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for record in iter_events(folder, **selection):
        for name, column in columns.items():
            value = record.get(name)
            if value is not None and name in text and not isinstance(value, str):
                value = json.dumps(value)
            column.append(value)
        if len(columns["seq"]) == _BATCH:
            yield batch()
            columns = {name: [] for name in schema.names}
    if columns["seq"]:
        yield batch()
