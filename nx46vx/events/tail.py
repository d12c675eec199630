"""The end of a writer's chain, and the file that it is being written to."""

from __future__ import annotations

from hashlib import sha512
from pathlib import Path

from nx46vx.errors import IntegrityError, NX46Error, from_os_error
from nx46vx.events.segment import Position, SegmentPaths
from nx46vx.runtime.files import Files, remove_file, write_all


class Tail:
    """Appends lines to the open segment and opens the next one; one thread at a time.

    ``refusal``: once set, nothing may be written any more (a failed sync, another process's bytes in the file).
    A write that fails for want of space refuses nothing: the next line finishes or drops it first.
    """

    def __init__(self, files: Files, folder: Path, position: Position, number: int, segment_bytes: int) -> None:
        self._files, self._folder, self._segment_bytes = files, folder, segment_bytes
        self.count, self.head = position.count, position.head
        self.refusal: NX46Error | None = None
        self.dirty, self._bytes, self._full_at = False, 0, segment_bytes
        self._pending: bytes | None = None  # a line whose write has begun and is not known to be done
        self._open(number)

    def append(self, line: bytes) -> bool:
        """Write one line; whether the segment is full now.

        Raises:
            EnvironmentFault: the file system refuses.
        """
        data = self._pending = line + b"\n"
        try:
            written = self._write(self.handle, data)
            if written != len(data):
                write_all(self._files, self.handle, data[written:])
        except OSError as error:
            raise from_os_error(error, "writing to the event log", self.paths.plain) from error
        self._advance(line)
        return self._bytes >= self._full_at

    def check(self) -> None:
        """Get ready for the next line: raise what refuses it, finish or drop a line whose write was cut short.

        A line of which nothing was written is dropped: whoever emitted it was told so.
        """
        if self.refusal is not None:
            raise self.refusal.with_traceback(None)
        if self._pending is None:
            return
        pending = self._pending
        try:
            there = self._files.read(self.paths.plain, self._bytes)
            if not pending.startswith(there):
                raise self.refuse(IntegrityError("another process writes to this log", where=self.paths.plain))
            if there:
                write_all(self._files, self.handle, pending[len(there) :])
        except OSError as error:
            raise from_os_error(error, "writing to the event log", self.paths.plain) from error
        if there:
            self._advance(pending[:-1])
        else:
            self._pending = None

    def refuse(self, error: NX46Error) -> NX46Error:
        """From now on nothing is written; gives what to raise."""
        self.refusal = self.refusal or error
        return error

    def rotate(self) -> tuple[SegmentPaths, Position] | None:
        """If the segment is full, make it durable and go on in the next; returns the full one and where it starts.

        Raises:
            EnvironmentFault: a sync failed; the log is refused from now on.
        """
        if self._bytes < self._full_at or self.refusal is not None:
            return None
        paths, handle, start = self.paths, self.handle, self.start
        try:
            self._files.fdatasync(handle)
        except OSError as error:
            raise self.refuse(from_os_error(error, "closing a log segment", paths.plain)) from error
        try:
            self._open(paths.number + 1)
        except OSError:  # no room for a new file: this one goes on, and the next try comes a little later
            self._full_at = self._bytes + self._segment_bytes // 8
            return None
        self._files.close(handle)
        return paths, start

    def _advance(self, line: bytes) -> None:
        head, count, size = sha512(line).hexdigest(), self.count + 1, self._bytes + len(line) + 1
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
        self._bytes, self._full_at, self.dirty = 0, self._segment_bytes, False
