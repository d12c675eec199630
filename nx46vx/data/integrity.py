"""What every file of the dataset holds, measured once and remembered by path, size and modification time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson

from nx46vx.data.volume_io import open_planes
from nx46vx.errors import DataError, NX46Error, from_os_error
from nx46vx.runtime.atomic import write_bytes
from nx46vx.runtime.digest import digest_file

_SCHEMA = 1
_MAX_ENTRIES = 50_000


class Mapper(Protocol):
    """The part of ``concurrent.futures.Executor`` that is used: results come in the order of the arguments."""

    def map(self, fn: Callable[..., Any], /, *iterables: Iterable[Any]) -> Iterator[Any]: ...


@dataclass(frozen=True)
class FileFacts:
    """``digest``: SHA-512 of the file; ``shape``: (z, y, x); ``counts``: voxels of label 0, 1, 2 (labels only)."""

    digest: str
    size: int
    shape: tuple[int, int, int]
    counts: tuple[int, int, int] | None
    mtime_ns: int = 0


def measure_file(path: Path, label: bool) -> FileFacts:
    """Hash a file and decode it once, so that damage shows now rather than hours later.

    Raises:
        DataError: unreadable or damaged, label values outside {0, 1, 2}, or changed while it was read.
    """
    before = _stat(path)
    with open_planes(path) as (shape, planes):
        counts = label_counts(planes, path) if label else None
        for _ in planes:  # an image is decoded all the same
            pass
    digest = digest_file(path)
    if (before.st_size, before.st_mtime_ns) != ((after := _stat(path)).st_size, after.st_mtime_ns):
        raise DataError("the file changed while it was read", where=path, fix="wait until it is complete; start again")
    return FileFacts(digest, before.st_size, shape, counts, before.st_mtime_ns)


def try_measure(path: Path, label: bool) -> FileFacts | NX46Error:
    """``measure_file`` with the error as a value, for mapping over an executor without losing the other files."""
    try:
        return measure_file(path, label)
    except NX46Error as error:
        return error


def label_counts(planes: Iterable[np.ndarray], where: object) -> tuple[int, int, int]:
    """Voxels of background, surface and ignored in the ``(y, x)`` uint8 planes of a label volume."""
    counts = np.zeros(256, np.int64)
    for plane in planes:
        counts += np.bincount(plane.ravel(), minlength=256)
    if counts[3:].any():
        values = ", ".join(str(value) for value in np.flatnonzero(counts))
        raise DataError(
            f"label volume holds values {{{values}}}. Allowed: 0 background, 1 surface, 2 ignored", where=where,
            fix="download again or skip the case (config `data.skip_cases`)",
        )  # fmt: skip
    return (int(counts[0]), int(counts[1]), int(counts[2]))


class DigestBook:
    """Remembers file facts between runs. A damaged book is ignored and written anew; two writers merge."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._entries = _load(self.path)
        self._fresh: dict[str, FileFacts] = {}

    def get(self, path: Path, *, label: bool = False) -> FileFacts | None:
        """The remembered facts, if the file still has the size and time it was measured with."""
        known = self._entries.get(_key(path))
        if known is None or (label and known.counts is None):
            return None
        try:
            now = os.stat(path)
        except OSError:
            return None
        return known if (now.st_size, now.st_mtime_ns) == (known.size, known.mtime_ns) else None

    def missing(self, paths: Iterable[Path], *, label: bool = False) -> list[Path]:
        """Those paths that have to be measured, in the order given."""
        return [path for path in paths if self.get(path, label=label) is None]

    def record(self, path: Path, facts: FileFacts) -> None:
        self._entries[_key(path)] = self._fresh[_key(path)] = facts

    def facts(self, path: Path, *, label: bool) -> FileFacts:
        """The remembered facts, or measured now and saved. Raises what ``measure_file`` raises."""
        known = self.get(path, label=label)
        if known is None:
            known = measure_file(path, label)
            self.record(path, known)
            self.save()
        return known

    def save(self) -> None:
        """Add what was recorded to the book on disk, under a lock, keeping what other processes added."""
        if not self._fresh:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = open(self.path.with_name(f".{self.path.name}.lock"), "ab")  # noqa: SIM115
        except OSError as error:
            raise from_os_error(error, "writing the book of digests", self.path) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            merged = _load(self.path)
            for key, facts in self._fresh.items():
                merged.pop(key, None)  # the newest go last and are dropped last
                merged[key] = facts
            kept = dict(list(merged.items())[-_MAX_ENTRIES:])
            files = {key: asdict(facts) for key, facts in kept.items()}
            write_bytes(self.path, orjson.dumps({"schema": _SCHEMA, "files": files}))
        self._entries = {**self._entries, **kept}
        self._fresh = {}


def _key(path: Path) -> str:
    return os.path.abspath(path)


def _stat(path: Path) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise DataError(
            "the file cannot be read", where=path, found=error.strerror, fix="check the path and its permissions"
        ) from error


def _load(path: Path) -> dict[str, FileFacts]:
    try:
        book = orjson.loads(path.read_bytes())
        if book["schema"] != _SCHEMA:
            return {}
        return {str(key): _facts_from(value) for key, value in book["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _facts_from(value: Mapping[str, Any]) -> FileFacts:
    """One entry of the book; anything of the wrong type or range is damage."""
    counts = value["counts"]
    numbers = [value["size"], value["mtime_ns"], *value["shape"], *(counts or ())]
    digest = value["digest"]
    if any(type(number) is not int or number < 0 for number in numbers) or len(bytes.fromhex(digest)) != 64:
        raise ValueError("not a record of file facts")
    (z, y, x) = value["shape"]
    (zeros, ones, ignored) = counts if counts is not None else (0, 0, 0)
    return FileFacts(
        digest, value["size"], (z, y, x), None if counts is None else (zeros, ones, ignored), value["mtime_ns"]
    )
