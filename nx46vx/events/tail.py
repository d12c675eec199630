"""The end of a writer's chain, and the file that it is being written to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nx46vx.errors import IntegrityError, NX46Error, from_os_error
from nx46vx.events.segment import Position, SegmentPaths
from nx46vx.runtime.files import Files, remove_file, write_all


@dataclass(frozen=True)
class Closed:
    """A segment that is full: where it starts, and the lines that were written to it (no newlines)."""

    paths: SegmentPaths
    start: Position
    lines: list[bytes]


class Tail:
    """Appends lines to the open segment and opens the next one; one thread at a time.

    ``refusal``: once set, nothing may be written any more (a failed sync, another process's bytes in the file).
    A write that fails for want of space refuses nothing: the next one finishes or drops it first. ``lines``: the open
    segment's, kept until it is closed, when the file has to hold exactly these.
    """

    def __init__(self, files: Files, folder: Path, position: Position, number: int, segment_bytes: int) -> None:
        self._files, self._folder, self._segment_bytes = files, folder, segment_bytes
        self.count, self.head = position.count, position.head
        self.refusal: NX46Error | None = None
        self.dirty, self._bytes, self._full_at = False, 0, segment_bytes
        self._pending: tuple[bytes, Sequence[bytes], str] | None = None  # begun, and not known to be done
        self._open(number)

    def append(self, lines: Sequence[bytes], head: str) -> bool:
        """Write some lines, one write each, the last of which has the digest ``head``; whether the segment is full now.

        Raises:
            EnvironmentFault: the file system refuses.
        """
        data = lines[0] + b"\n" if len(lines) == 1 else b"\n".join((*lines, b""))
        self._pending = data, lines, head
        write, handle = self._write, self.handle
        try:
            for line in lines:
                ended = line + b"\n"
                written = write(handle, ended)
                if written != len(ended):
                    write_all(self._files, handle, ended[written:])
        except OSError as error:
            raise from_os_error(error, "writing to the event log", self.paths.plain) from error
        self._advance(data, lines, head)
        return self._bytes >= self._full_at

    def check(self) -> None:
        """Get ready for the next lines: raise what refuses them, finish or drop a write that was cut short.

        If nothing of it was written it is dropped: whoever emitted it was told so.
        """
        if self.refusal is not None:
            raise self.refusal.with_traceback(None)
        if self._pending is None:
            return
        data, lines, head = self._pending
        try:
            there = self._files.read(self.paths.plain, self._bytes)
            if not data.startswith(there):
                raise self.refuse(IntegrityError("another process writes to this log", where=self.paths.plain))
            if there:
                write_all(self._files, self.handle, data[len(there) :])
        except OSError as error:
            raise from_os_error(error, "writing to the event log", self.paths.plain) from error
        if there:
            self._advance(data, lines, head)
        else:
            self._pending = None

    def refuse(self, error: NX46Error) -> NX46Error:
        """From now on nothing is written; gives what to raise."""
        self.refusal = self.refusal or error
        return error

    def rotate(self) -> Closed | None:
        """If the segment is full, make it durable and go on in the next; returns the full one.

        Raises:
            EnvironmentFault: a sync failed; the log is refused from now on.
        """
        if self._bytes < self._full_at or self.refusal is not None:
            return None
        handle, closed = self.handle, Closed(self.paths, self.start, self.lines)
        try:
            self._files.fdatasync(handle)
        except OSError as error:
            raise self.refuse(from_os_error(error, "closing a log segment", closed.paths.plain)) from error
        try:
            self._open(closed.paths.number + 1)
        except OSError:  # no room for a new file: this one goes on, and the next try comes a little later
            self._full_at = self._bytes + self._segment_bytes // 8
            return None
        self._files.close(handle)
        return closed

    def _advance(self, data: bytes, lines: Sequence[bytes], head: str) -> None:
        count, size = self.count + len(lines), self._bytes + len(data)
        self.lines += lines
        # nothing is called from here on, so no signal handler comes in between
        self.head, self.count, self._bytes, self.dirty, self._pending = head, count, size, True, None

    def _open(self, number: int) -> None:
        paths = SegmentPaths(self._folder, number)
        handle = self._files.create(paths.plain)
        try:
            self._files.fsync_folder(self._folder)
        except OSError as error:
            self._files.close(handle)
            remove_file(self._files, paths.plain)
            raise self.refuse(from_os_error(error, "opening a log segment", paths.plain)) from error
        self.paths, self.handle, self._write = paths, handle, self._files.write
        self.start = Position(self.count, self.head)
        self.lines: list[bytes] = []
        self._bytes, self._full_at, self.dirty = 0, self._segment_bytes, False
