"""JSON of a run directory, read as data of unknown origin: a regular file of bounded size, strict, and an object."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from nx46vx.errors import IntegrityError, from_os_error
from nx46vx.runtime.archive_names import limit_of
from nx46vx.runtime.files import REAL_FILES

#: What a value of the wrong kind leads to, wherever it is used.
MALFORMED = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError)
_LIMIT = 1 << 20
_NO_FILE = {errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.EINVAL, errno.ENXIO}
_NAMES = {"plan.json": "the plan", "run.json": "the run's identity", "decisions.json": "the recorded decisions"}
_FIX = "restore the file from a copy, or start a new run directory"


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object that a file of a run directory holds.

    Raises:
        FileNotFoundError: it is not there.
        IntegrityError: a link, folder or pipe; larger than such a file can be; no JSON object; a key that stands
            twice; a number that no record has.
        EnvironmentFault: it cannot be read.
    """
    limit = limit_of(path.name) or _LIMIT
    try:
        raw = REAL_FILES.read(path, 0, limit + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in _NO_FILE:
            raise unusable(path, f"no regular file ({error.strerror})") from error
        raise from_os_error(error, f"reading {path.name}", path) from error
    if len(raw) > limit:
        raise unusable(path, f"more than {limit} bytes")
    with understood(path):
        value = parse(raw)
        if not isinstance(value, dict):
            raise ValueError(f"{type(value).__name__} instead of an object")
        return value


def parse(raw: bytes) -> Any:
    """A JSON value, strictly; what this program itself wrote is taken the fast way.

    Raises:
        ValueError: no JSON, nested too deeply, a key that stands twice, NaN, a number out of range.
    """
    value = orjson.loads(raw)  # refuses deep nesting, NaN and other encodings
    if orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE) == raw:
        return value
    return parse_strictly(raw)


def parse_strictly(raw: bytes) -> Any:
    """The same whoever wrote it, some twenty times slower."""
    try:
        return json.loads(
            raw.decode(), object_pairs_hook=_unique, parse_int=_integer, parse_float=_finite, parse_constant=_constant
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Turn whatever a value of the wrong kind leads to into an ``IntegrityError`` of the file it stands in."""
    try:
        yield
    except MALFORMED as error:
        name = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise unusable(path, f"{name}{_short(error)}") from error


def unusable(path: Path, found: str) -> IntegrityError:
    """The error of a file that is there and is not what it has to be."""
    what = _NAMES.get(path.name, path.name)
    return IntegrityError(f"{what} cannot be read", where=path, found=found, fix=_FIX)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:297]}..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:80]!r} stands twice")
    return table


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise ValueError(f"integer of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text) if len(text) <= 40 else math.inf
    if not math.isfinite(value):
        raise ValueError(f"number out of range: {text[:40]}")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no number")
