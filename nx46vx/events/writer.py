"""The event log of one writer: every event is one line, one write, chained to the line before."""

from __future__ import annotations

import os
import platform
import queue
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from nx46vx.errors import IntegrityError, NX46Error, StoppedError, UsageError, from_os_error
from nx46vx.events import chain
from nx46vx.events.packing import close_segment
from nx46vx.events.recover import recover
from nx46vx.events.seal import retire_run_seal
from nx46vx.events.segment import valid_writer
from nx46vx.events.tail import Closed, Tail
from nx46vx.runtime.files import REAL_FILES, Files, make_folder

_LIVE: weakref.WeakSet[EventLog] = weakref.WeakSet()

#: Most lines that are made before they are written.
_GROUP = 64

#: Segments waiting to be packed whose lines stay in memory; those of later ones are read back and followed instead.
_LINES_OF = 2

#: Lines between two looks of the background thread from which on it takes the program to be busy, and segments that may
#: wait meanwhile: packing takes more time than writing did.
_BUSY, _WAITING = 1000, 8


class EventLog:
    """An :class:`~nx46vx.runtime.sink.EventSink` that writes ``folder/<writer>/<segment>.jsonl``.

    Opening an existing writer's folder closes what an earlier process left (a torn last line goes to
    ``<segment>.torn``) and continues the chain in a new segment; the first line is ``WRITER_OPEN``, which says what it
    continues. Threads may share one log; signal handlers should not emit (set a flag there instead).

    ``background_sync_s``: every so many seconds a thread makes the log durable, and packs closed segments unless many
    events are being written; None: no thread, closed segments are packed at once.

    Raises:
        UsageError: a writer name that cannot be a folder's.
        IntegrityError: the log on disk is damaged before its tail; names file and line.
        StoppedError: a writer with a higher fencing epoch has taken this log over.
        EnvironmentFault: the file system refuses. After a failed sync every later call raises it again.
    """

    def __init__(
        self, folder: Path, writer: str, *, run_id: str, fence: int = 0, files: Files = REAL_FILES,
        segment_bytes: int = 8 << 20, background_sync_s: float | None = 1.0,
    ) -> None:  # fmt: skip
        if not valid_writer(writer):
            raise UsageError("not a writer's name", where=folder, found=repr(writer), fix="use letters, digits, ._=+@-")
        self.folder = Path(folder) / writer
        self.writer, self.run_id, self.fence = writer, run_id, fence
        self._files = files
        self._lock = threading.Lock()  # the chain's state
        self._sync_lock = threading.Lock()  # file handles; taken before _lock, never after
        self._open = True
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self.written, self.seconds = 0, 0.0  # lines by this writer, and the time that making them took
        self._to_pack: queue.SimpleQueue[Closed] = queue.SimpleQueue()
        try:
            make_folder(files, self.folder)
            found = recover(files, self.folder, writer, fence)
            retire_run_seal(files, Path(folder))
            self._tail = Tail(files, self.folder, found.position, found.next_segment, segment_bytes)
        except OSError as error:
            raise from_os_error(error, "opening the event log", self.folder) from error
        self._opened_at = found.position.count
        try:
            self.emit(
                "WRITER_OPEN", continues_count=found.position.count, continues_head=found.position.head,
                quarantined_bytes=found.torn_bytes, quarantined_files=list(found.torn_files),
                segment=found.next_segment, pid=os.getpid(), host=platform.node(),
            )  # fmt: skip
        except NX46Error:
            files.close(self._tail.handle)
            raise
        _LIVE.add(self)
        if background_sync_s is not None:
            self._thread = threading.Thread(
                target=self._keep_durable, args=(background_sync_s,), name=f"log {writer}", daemon=True
            )
            self._thread.start()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def count(self) -> int:
        """Lines in this writer's chain, over all its segments."""
        return self._tail.count

    @property
    def head(self) -> str:
        """Digest of the last line."""
        return self._tail.head

    def emit(self, event: str, /, **fields: Any) -> None:
        """Write one event. It is in the operating system's hands when this returns, on disk after ``sync``."""
        self._write(event, (fields,))

    def emit_many(self, event: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write events of one name, given their fields, as ``emit`` would one after the other; one write each."""
        remaining = iter(rows)
        while group := list(islice(remaining, _GROUP)):
            self._write(event, group)

    def sync(self) -> Mapping[str, Any]:
        """Make every line durable; returns the anchor: ``writer``, ``head`` (digest of the last line), ``count``."""
        tail = self._tail
        with self._sync_lock:
            with self._lock:
                tail.check()
                anchor = {"writer": self.writer, "head": tail.head, "count": tail.count}
                dirty, tail.dirty = tail.dirty, False
            if dirty:
                try:
                    self._files.fdatasync(tail.handle)
                except OSError as error:
                    raise tail.refuse(from_os_error(error, "syncing the event log", tail.paths.plain)) from error
            if not self._files.exists(tail.paths.plain):
                raise tail.refuse(StoppedError("another process writes this log now", where=tail.paths.plain))
        return anchor

    def supersede(self, after_count: int, reason: str) -> int:
        """State that the lines from ``after_count`` on that an earlier process wrote will be repeated.

        ``after_count`` is the count in the anchor of the checkpoint that is resumed from. Returns how many lines are
        superseded; emits ``SUPERSEDES`` (``first_seq``, ``last_seq``) if there is any.

        Raises:
            IntegrityError: the log is shorter than the checkpoint says.
        """
        if after_count > self._opened_at:
            raise IntegrityError(
                "the end of the event log is missing", where=self.folder,
                found=f"{self._opened_at} lines, the checkpoint counted {after_count}",
                fix="put the log back as it was, or start a new run",
            )  # fmt: skip
        lines = self._opened_at - after_count
        if lines:
            self.emit("SUPERSEDES", first_seq=after_count, last_seq=self._opened_at - 1, lines=lines, reason=reason)
        return lines

    def close(self) -> None:
        """Make the log durable and let go of it; the last segment stays open for a next writer. Harmless twice."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopping = True
            self._wake.set()
            thread.join()
        if not self._open:
            return
        try:
            if self._tail.refusal is None:
                self.sync()
        finally:
            with self._sync_lock, self._lock:
                self._open = False
                self._tail.refuse(UsageError("the event log is closed", where=self.folder))
                self._files.close(self._tail.handle)
            self._pack_closed()

    def seal(self) -> None:
        """Close the log at a normal end: its last segment is packed and sealed too. Harmless on a closed log."""
        if not self._open:
            return
        if self._tail.refusal is not None:
            raise self._tail.refusal.with_traceback(None)
        self.close()
        try:
            close_segment(self._files, self._tail.paths, self.writer, self._tail.start, self._tail.lines)
        except OSError as error:
            raise from_os_error(error, "sealing the event log", self._tail.paths.plain) from error

    def _write(self, event: str, rows: Sequence[Mapping[str, Any]]) -> None:
        for fields in rows:
            if not chain.RESERVED.isdisjoint(fields):
                taken = sorted(chain.RESERVED & set(fields))
                raise UsageError("an event uses the log's own field names", where=event, found=taken)
        started = time.perf_counter()
        with self._lock:
            tail = self._tail
            tail.check()
            seq, head, lines = tail.count, tail.head, []
            for fields in rows:
                record = {
                    "ts_ns": time.time_ns(), "seq": seq, "writer": self.writer, "run_id": self.run_id,
                    "fence": self.fence, "event": event, "prev": head, **fields,
                }  # fmt: skip
                line = chain.encode(record)
                lines.append(line)
                seq, head = seq + 1, chain.digest(line)
            full = tail.append(lines, head)
            self.written += len(lines)
            self.seconds += time.perf_counter() - started
        if full:
            self._rotate()

    def _rotate(self) -> None:
        """Go on in the next segment and have the full one packed."""
        with self._sync_lock, self._lock:
            closed = self._tail.rotate()
        if closed is not None:
            if self._to_pack.qsize() >= _LINES_OF:
                closed.lines.clear()
            self._to_pack.put(closed)
            if self._thread is None:
                self._pack_closed()
            elif self._to_pack.qsize() > _WAITING:
                self._wake.set()

    def _pack_closed(self, leave: int = 0) -> None:
        """Pack segments that are full, all but ``leave`` of them. A full disk leaves one as it is; the next opening
        packs it."""
        while self._to_pack.qsize() > leave:
            try:
                full = self._to_pack.get_nowait()
            except queue.Empty:  # another thread was quicker
                return
            try:
                close_segment(self._files, full.paths, self.writer, full.start, full.lines)
            except OSError as error:
                if self._tail.refusal is None:
                    self.emit("SEGMENT_PACK_FAILED", segment=full.paths.number, error=str(error))
            except NX46Error as error:
                raise self._tail.refuse(error) from error

    def _keep_durable(self, every_s: float) -> None:
        seen = 0
        while not self._stopping:
            self._wake.wait(every_s)
            self._wake.clear()
            busy, seen = self._tail.count - seen > _BUSY, self._tail.count
            try:
                self._pack_closed(_WAITING if busy and not self._stopping else 0)
                if self._tail.dirty:
                    self.sync()
            except NX46Error:
                if self._tail.refusal is not None:  # the next emit raises it
                    return

    def _disown(self) -> None:
        """In a forked child: the log stays the parent's."""
        self._lock, self._sync_lock, self._thread = threading.Lock(), threading.Lock(), None
        self._tail.refuse(
            UsageError("a forked process uses its parent's event log", where=self.folder, fix="open one of its own")
        )


def _disown_all() -> None:
    for log in list(_LIVE):
        log._disown()


os.register_at_fork(after_in_child=_disown_all)
