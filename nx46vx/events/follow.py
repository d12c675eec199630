"""Events as they are written, by any writer of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nx46vx.errors import IntegrityError, from_os_error
from nx46vx.events import chain
from nx46vx.events.packing import unpack
from nx46vx.events.reader import EventFilter
from nx46vx.events.segment import SegmentPaths, list_segments, list_writers
from nx46vx.runtime.files import REAL_FILES, Files

_CHUNK = 1 << 20


def follow_events(
    folder: Path, *, event: str | None = None, trial: str | None = None, from_start: bool = False,
    poll_s: float = 0.5, stop: Callable[[], bool] = lambda: False, files: Files = REAL_FILES,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Yield selected events (see ``iter_events``) as they appear, until ``stop()`` is true and all is read.

    Starts at the log's end, or with ``from_start`` at its beginning; new writers are followed from their beginning.
    Each look at the log is in ``(ts_ns, writer, seq)`` order.

    Raises:
        IntegrityError: a line is no JSON object.
        EnvironmentFault: a file cannot be read.
    """
    folder = Path(folder)
    selection = EventFilter(event, trial)
    tails: dict[str, _Tail] = {}
    first = True
    while True:
        last = stop()
        found: list[dict[str, Any]] = []
        try:
            for writer in list_writers(files, folder):
                tail = tails.setdefault(writer, _Tail(files, folder / writer))
                for line in tail.new_lines():
                    if (from_start or not first) and selection.may_want(line):
                        record = _parsed(line, folder / writer)
                        if selection.wants(record):
                            found.append(record)
        except OSError as error:
            raise from_os_error(error, "reading the event log", error.filename or folder) from error
        yield from sorted(found, key=lambda record: (record["ts_ns"], record["writer"], record["seq"]))
        if last:
            return
        first = False
        time.sleep(poll_s)


class _Tail:
    """Where one writer has been read to: segment, and bytes of its lines."""

    def __init__(self, files: Files, folder: Path) -> None:
        self._files, self._folder = files, folder
        self._segment, self._offset = 0, 0

    def new_lines(self) -> Iterator[bytes]:
        while True:
            paths = SegmentPaths(self._folder, self._segment)
            numbers = [one.number for one in list_segments(self._files, self._folder)]
            if self._segment not in numbers:
                return
            yield from self._lines_of(paths)
            if self._segment + 1 not in numbers:  # as it was before this segment was read to its end
                return
            self._segment, self._offset = self._segment + 1, 0

    def _lines_of(self, paths: SegmentPaths) -> Iterator[bytes]:
        while True:
            try:
                raw = self._files.read(paths.plain, self._offset, _CHUNK)
            except FileNotFoundError:  # packed by now
                if not self._files.exists(paths.packed):
                    return
                raw = unpack(self._files.read(paths.packed), paths.packed)[self._offset :]
            whole = raw[: raw.rfind(b"\n") + 1]
            if not whole and len(raw) == _CHUNK:  # a line longer than a chunk
                raw = self._files.read(paths.plain, self._offset)
                whole = raw[: raw.rfind(b"\n") + 1]
            if not whole:
                return
            self._offset += len(whole)
            yield from whole.split(b"\n")[:-1]


def _parsed(line: bytes, where: Path) -> dict[str, Any]:
    try:
        return chain.parse(line)
    except ValueError as error:
        raise IntegrityError("the event log is damaged", where=where, found=f"no event: {error}") from error
