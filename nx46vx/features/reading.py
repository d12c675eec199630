"""Volumes of a case, read while the case before it is computed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nx46vx.data.volume_io import read_volume
from nx46vx.errors import DataError
from nx46vx.features.request import SampleRequest
from nx46vx.runtime.io_clock import IoClock

_PIECE = 4 << 20  # bytes

#: Reads a request's label and image, each ``(z, y, x)`` uint8.
Reader = Callable[[SampleRequest], tuple[np.ndarray, np.ndarray]]


def read_case(request: SampleRequest) -> tuple[np.ndarray, np.ndarray]:
    """The label and the image of a request's case.

    Raises:
        DataError: the case has no label, or a volume cannot be read.
    """
    case = request.case
    if case.label is None:
        raise DataError("the case has no label to draw samples by", where=case.case_id, fix="use labelled cases")
    return read_volume(case.label, case_id=case.case_id), read_volume(case.image, case_id=case.case_id)


@dataclass(frozen=True)
class CountedReader:
    """A ``Reader``; ``io`` counts it."""

    io: IoClock

    def __call__(self, request: SampleRequest) -> tuple[np.ndarray, np.ndarray]:
        with self.io.counting("read_volumes"):
            return read_case(request)


class ReadAhead:
    """A ``Reader`` for requests that come in about this order: when one is asked for, the one after it is read in the
    background. One pair of volumes is held ahead, no more. Sent to another process it only reads. ``io`` counts it."""

    def __init__(self, requests: Sequence[SampleRequest], io: IoClock | None = None) -> None:
        self._lock, self._io = threading.Lock(), io or IoClock()
        self._requests, self._place = requests, {request.key: place for place, request in enumerate(requests)}
        self._begun = -1  # the furthest place that was asked for
        self._ahead: tuple[int, Future[tuple[np.ndarray, np.ndarray]]] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")

    def __call__(self, request: SampleRequest) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            place = self._place[request.key]
            ready = self._ahead[1] if self._ahead is not None and self._ahead[0] == place else None
            if place > self._begun:
                self._begun = place
                following = place + 1
                self._ahead = None  # one that was passed by is read when it is asked for after all
                if following < len(self._requests):
                    self._ahead = following, self._pool.submit(self._in_memory, self._requests[following])
        return CountedReader(self._io)(request) if ready is None else ready.result()

    def __reduce__(self) -> tuple[Any, ...]:
        return CountedReader, (self._io,)

    def close(self) -> None:
        """Stop reading ahead; who still asks is served."""
        with self._lock:
            self._begun = len(self._requests)
        self._pool.shutdown(wait=False)

    def _in_memory(self, request: SampleRequest) -> tuple[np.ndarray, np.ndarray]:
        with self._io.counting("read_volumes"):
            label, image = (np.array(part) if isinstance(part, np.memmap) else part for part in read_case(request))
        return label, image


class FilesAhead:
    """Has the system read the files of cases that other processes on this machine are about to want; ``io`` counts
    it."""

    def __init__(self, io: IoClock | None = None) -> None:
        self._pool, self._io = ThreadPoolExecutor(1, thread_name_prefix="files-ahead"), io or IoClock()

    def __call__(self, request: SampleRequest) -> None:
        """Read a case's files through, in the background. What cannot be read is for its reader to name."""
        for path in (request.case.label, request.case.image):
            if path is not None:
                self._pool.submit(self._read_through, path)

    def close(self) -> None:
        """Read nothing further."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _read_through(self, path: Path) -> None:
        piece = bytearray(_PIECE)
        with suppress(OSError), self._io.counting("read_ahead"), open(path, "rb", buffering=0) as file:
            while file.readinto(piece):
                pass
