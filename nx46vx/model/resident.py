"""How much of mapped samples stays in memory between passes: cases beyond a bound are let go once a pass is over them.

What is let go is mapped anew in the next pass, from the system's file cache as long as that has room, else from the
disk, read ahead. It changes no value.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from threading import Lock

import numpy as np

from nx46vx.model.samples import Chunk, Samples

#: Bytes of features that stay mapped.
RESIDENT_BYTES = 3 << 30
#: Cases that are read ahead of the one in work.
AHEAD = 3


class Residency:
    """The cases of a pass, those beyond ``limit`` bytes to be let go. Threads may share it; one pass at a time."""

    def __init__(self, cases: Sequence[Samples], chunks: Sequence[Chunk], limit: int = RESIDENT_BYTES) -> None:
        self._chunks = [chunk.case for chunk in chunks]
        self._parts = np.bincount(self._chunks, minlength=len(cases)).tolist()
        total, self._maps = 0, list[mmap.mmap | None]()
        for case in cases:
            found = _map_of(case.features)
            total += case.features.nbytes if found is not None else 0
            self._maps.append(found if total > limit else None)
        self.bounded = any(found is not None for found in self._maps)
        self._left: list[int] = []
        self._lock = Lock()

    def start(self) -> None:
        """A pass begins."""
        self._left = list(self._parts)

    def begin(self, number: int) -> None:
        """A thread takes this chunk: the cases after its own are wanted soon."""
        case = self._chunks[number]
        if number == 0 or self._chunks[number - 1] != case:
            for following in self._maps[case + 1 : case + 1 + AHEAD] if number == 0 else self._maps[case + AHEAD :][:1]:
                if following is not None:
                    following.madvise(mmap.MADV_WILLNEED)

    def over(self, number: int) -> None:
        """A thread is done with this chunk: with the last one of a case, that case is let go."""
        case = self._chunks[number]
        with self._lock:
            self._left[case] -= 1
            finished = self._left[case] == 0
        found = self._maps[case]
        if finished and found is not None:
            found.madvise(mmap.MADV_DONTNEED)


def _map_of(array: np.ndarray) -> mmap.mmap | None:
    """The read-only map of a file below an array; None if the array lies in memory, or the system has no such calls."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    known = isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED") and not array.flags.writeable
    return base if known and isinstance(base, mmap.mmap) else None
