"""Reading events back: every writer's lines merged by time, over plain and packed segments, in bounded memory."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from nx46vx.errors import IntegrityError, from_os_error
from nx46vx.events import chain
from nx46vx.events.packing import stream_lines
from nx46vx.events.segment import SegmentPaths, list_segments, list_writers
from nx46vx.runtime.files import REAL_FILES, Files


class EventFilter:
    """``event`` selects by the field ``event`` or ``substage``, ``trial`` by ``candidate_id`` or the writer's name."""

    def __init__(self, event: str | None = None, trial: str | None = None) -> None:
        self._event, self._trial = event, trial
        self._needles = [orjson.dumps(value) for value in (event, trial) if value is not None]

    def may_want(self, line: bytes) -> bool:
        """A cheap look at the raw line: False only if the record is surely not wanted."""
        return all(needle in line for needle in self._needles)

    def wants(self, record: dict[str, Any]) -> bool:
        if self._event is not None and self._event not in (record.get("event"), record.get("substage")):
            return False
        return self._trial is None or self._trial in (record.get("candidate_id"), record.get("writer"))


def iter_events(
    folder: Path, *, event: str | None = None, trial: str | None = None, writer: str | None = None,
    superseded: bool = True, files: Files = REAL_FILES,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Events of all writers below ``folder`` (``events/`` of a run) in ``(ts_ns, writer, seq)`` order.

    A writer's own lines always keep their order, also where its clock went back. See :class:`EventFilter` for
    ``event`` and ``trial``; ``superseded=False`` leaves out the lines that a resumed writer repeated. A torn last line
    is left out. The chain is not checked here (``verify_log`` does).

    Raises:
        IntegrityError: a line is no JSON object, or a packed segment is damaged; names file and line.
        EnvironmentFault: a file cannot be read.
    """
    folder = Path(folder)
    selection = EventFilter(event, trial)
    names = [writer] if writer is not None else list_writers(files, folder)
    streams = [_keyed(files, folder / name, selection, superseded) for name in names if files.exists(folder / name)]
    for _, _, _, record in heapq.merge(*streams, key=lambda item: item[:3]):
        yield record


def writer_lines(files: Files, folder: Path) -> Iterator[tuple[SegmentPaths, int, bytes]]:
    """Whole lines of a writer's folder in order: segment, line number in it from 1, raw line."""
    try:
        for paths in list_segments(files, folder):
            number = 0
            while files.exists(paths.plain) or files.exists(paths.packed):
                try:
                    for line in islice(stream_lines(files, paths), number, None):
                        number += 1
                        yield paths, number, line
                    break
                except FileNotFoundError:  # packed away while it was read: go on there
                    continue
    except OSError as error:
        raise from_os_error(error, "reading the event log", error.filename or folder) from error


def parse_line(line: bytes, paths: SegmentPaths, number: int) -> dict[str, Any]:
    try:
        return chain.parse(line)
    except ValueError as error:
        where = f"{paths.folder / f'{paths.number:08d}'}, line {number}"
        raise IntegrityError("the event log is damaged", where=where, found=f"no event: {error}") from error


def _superseded(files: Files, folder: Path) -> list[range]:
    """The lines (by ``seq``) that a writer repeated after a resume."""
    ranges = []
    for paths, number, line in writer_lines(files, folder):
        if b'"event":"SUPERSEDES"' in line:
            record = parse_line(line, paths, number)
            if record["event"] == "SUPERSEDES":
                first, last = record.get("first_seq"), record.get("last_seq")
                if not isinstance(first, int) or not isinstance(last, int):
                    where = f"{paths.folder / f'{paths.number:08d}'}, line {number}"
                    raise IntegrityError("the event log is damaged", where=where, found="it repeats no lines")
                ranges.append(range(first, last + 1))
    return ranges


def _keyed(
    files: Files, folder: Path, selection: EventFilter, superseded: bool
) -> Iterator[tuple[int, str, int, dict[str, Any]]]:
    dropped = [] if superseded else _superseded(files, folder)
    latest = 0
    for paths, number, line in writer_lines(files, folder):
        if not selection.may_want(line):
            continue
        record = parse_line(line, paths, number)
        if not selection.wants(record) or any(record.get("seq") in lines for lines in dropped):
            continue
        latest = max(latest, int(record.get("ts_ns") or 0))
        yield latest, folder.name, int(record.get("seq") or 0), record
