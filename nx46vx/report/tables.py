"""The leaderboard as CSV: fixed columns, full precision, one order."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from nx46vx.errors import IntegrityError, NX46Error, from_os_error

LEADERBOARD_COLUMNS: dict[str, type] = {
    "candidate_id": str,
    "meta_neuron": int,
    "l1": float,
    "l2": float,
    "epoch": int,
    "iter": int,
    "objective": float,
    "train_loss": float,
    "val_ce": float,
    "val_f1": float,
    "val_fbeta": float,
    "val_iou": float,
    "best_threshold": float,
    "sparsity": float,
    "seconds": float,
}


def leaderboard_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """The table's text: best (lowest) objective first, then by ``candidate_id``; an objective of NaN comes last.

    Floats are written so that ``float(text)`` gives the same bits. Keys beyond the columns are left out.

    Raises:
        NX46Error: a column is missing or of another type, or a candidate stands twice with the same epoch.
    """
    table = [_plain(row) for row in rows]
    table.sort(key=_rank)
    seen: set[tuple[str, int]] = set()
    for row in table:
        if (key := (row["candidate_id"], row["epoch"])) in seen:
            raise NX46Error("a candidate stands twice in the leaderboard", where="leaderboard", found=key)
        seen.add(key)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(LEADERBOARD_COLUMNS)
    writer.writerows([_text(row[name]) for name in LEADERBOARD_COLUMNS] for row in table)
    return text.getvalue()


def read_leaderboard(path: Path) -> list[dict[str, Any]]:
    """Read a table back, in its order, and accept only what ``leaderboard_csv`` writes.

    Raises:
        IntegrityError: other columns, a value that is not written as we write it, another order, a torn last line.
        EnvironmentFault: the file cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8")
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except OSError as error:
        raise from_os_error(error, "reading the leaderboard", path) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise IntegrityError("the leaderboard is no CSV text", where=path, found=error, fix=_FIX) from error
    if not lines or lines[0] != list(LEADERBOARD_COLUMNS):
        raise IntegrityError(
            "the leaderboard has other columns", where=path, found=lines[0] if lines else "an empty file", fix=_FIX
        )
    rows = [_parse(line, f"{path}, row {number}") for number, line in enumerate(lines[1:], start=1)]
    try:
        again = leaderboard_csv(rows)
    except NX46Error as error:
        raise IntegrityError(error.what, where=path, found=error.found, fix=_FIX) from error
    if again != text:
        raise IntegrityError(
            "the leaderboard is not as it was written", where=path, found="another row order, quoting or line end",
            fix=_FIX,
        )  # fmt: skip
    return rows


_FIX = "resume the run: it writes the table again from its checkpoints"


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row's columns as str, int and float (NumPy scalars become Python's)."""
    plain: dict[str, Any] = {}
    for name, kind in LEADERBOARD_COLUMNS.items():
        value = row.get(name)
        accepted = {str: str, int: Integral, float: Real}[kind]
        if not isinstance(value, accepted) or isinstance(value, bool):
            raise NX46Error(
                f"a leaderboard row has no usable {name}", where=f"candidate {row.get('candidate_id')!r}",
                found=f"{value!r}" if name in row else "no such key", fix=f"{name} has to be a {kind.__name__}",
            )  # fmt: skip
        plain[name] = kind(value)
    return plain


def _rank(row: Mapping[str, Any]) -> tuple[bool, float, str, int]:
    objective = row["objective"]
    lost = math.isnan(objective)
    return lost, 0.0 if lost else objective, row["candidate_id"], row["epoch"]


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else repr(value)


def _parse(line: list[str], where: str) -> dict[str, Any]:
    if len(line) != len(LEADERBOARD_COLUMNS):
        raise IntegrityError(
            "a leaderboard row has another number of columns", where=where,
            found=f"{len(line)} instead of {len(LEADERBOARD_COLUMNS)}", fix=_FIX,
        )  # fmt: skip
    row: dict[str, Any] = {}
    for (name, kind), text in zip(LEADERBOARD_COLUMNS.items(), line, strict=True):
        try:
            row[name] = kind(text)
        except ValueError:
            row[name] = None
        if row[name] is None or _text(row[name]) != text:
            raise IntegrityError(
                f"{name} is not a {kind.__name__} as we write it", where=where, found=repr(text), fix=_FIX
            )
    return row
