"""The feature cache: content-addressed, built once under a lock, complete or absent, mapped by every process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from nx46vx.errors import EnvironmentFault, from_os_error
from nx46vx.features.blocks import sample_features
from nx46vx.features.build import Sampling, build_case
from nx46vx.features.entry import CaseSamples, Store, entry_path, entry_problem, open_entry, read_facts, verify_entry
from nx46vx.features.reading import ReadAhead
from nx46vx.features.request import Role, SampleRequest
from nx46vx.features.spread import usable_cpus
from nx46vx.runtime.io_clock import IoClock
from nx46vx.runtime.sink import EventSink

_SPARE_BYTES = 16 << 20  # left free beside the estimate


class Executor(Protocol):
    """What the cache asks of an executor: ``concurrent.futures.Executor`` and alike."""

    def map(self, fn: Callable[..., Any], /, *iterables: Iterable[Any]) -> Iterable[Any]: ...


class FeatureCache:
    """Entries below ``root``; any number of processes and runs may use one cache at the same time.

    ``store`` says how new entries keep their features: mapped as they are, or compressed in chunks. ``io`` counts the
    reading and writing.
    """

    def __init__(self, root: Path, *, sink: EventSink, store: Store = "npy", io: IoClock | None = None) -> None:
        self.root, self._sink, self._store, self._io = Path(root), sink, store, io or IoClock()

    def path(self, key: str) -> Path:
        return entry_path(self.root, key)

    def has(self, key: str) -> bool:
        """Whether the entry is there, complete by its manifest and sizes."""
        return self.problem(key) is None

    def problem(self, key: str) -> str | None:
        """What is wrong with an entry, in a few words; None if nothing is."""
        return entry_problem(self.path(key))

    def open(self, key: str, *, role: str = "") -> CaseSamples:
        """Map one entry.

        Raises:
            IntegrityError: it is absent or damaged.
        """
        with self._io.counting("map_features"):
            return open_entry(self.path(key), role)

    def facts(self, key: str) -> dict[str, Any]:
        """What decided an entry's samples (see ``SampleRequest.facts``).

        Raises:
            IntegrityError: it is absent or damaged.
        """
        return read_facts(self.path(key))

    def entry_keys(self) -> list[str]:
        """The keys of all entries there are, sorted; whether they are sound is another question."""
        return sorted(path.name for path in (self.root / "entries").glob("??/*") if not path.name.startswith("."))

    def verify(self, key: str) -> None:
        """Read one entry's payload again and compare it with its digests.

        Raises:
            IntegrityError: names the file that differs.
        """
        verify_entry(self.path(key))

    def build(
        self,
        requests: Sequence[SampleRequest],
        *,
        executor: Executor,
        threads: int | None = None,
        on_done: Callable[[CaseSamples], None] | None = None,
        sampling: Sampling = sample_features,
    ) -> list[CaseSamples]:
        """Samples of all requests, in their order; what is present is only mapped, what is missing is computed.

        Args:
            requests: what is wanted.
            executor: missing cases are computed through its ``map``, which has to keep the order.
            threads: that share the work on one case; None: where there are fewer cases than processors, each gets some.
            on_done: called with each case's samples as they become ready; what it raises ends the build, and what
                was not begun by then is not begun.
            sampling: computes the features; one on a GPU wants an executor of threads of this process.

        Raises:
            EnvironmentFault: no room for what is missing, or the folder cannot be written to.
            DataError: a case has nothing to draw samples from.
        """
        missing = self._missing(requests)
        self._prepare(list(missing.values()))
        ahead = ReadAhead(list(missing.values()), self._io)
        share = threads or max(1, usable_cpus() // max(1, len(missing)))
        build = partial(
            build_case, threads=share, read=ahead, store=self._store, sampling=sampling, io=self._io
        )  # fmt: skip
        done = iter(executor.map(build, [self.root] * len(missing), missing.values()) if missing else ())
        ready, pending = {request.key for request in requests} - missing.keys(), zip(missing, done, strict=False)
        samples: list[CaseSamples] = []
        try:
            for place, request in enumerate(requests):
                while request.key not in ready:
                    key, spans = next(pending)
                    ready.add(key)
                    self._io.add(spans)
                samples.append(self.open(request.key, role=request.role))
                self._sink.emit(
                    "PROGRESS_UPDATE", stage="features", file=request.case.case_id, index=place + 1,
                    total=len(requests),
                )  # fmt: skip
                if on_done is not None:
                    on_done(samples[-1])
        finally:
            if (close := getattr(done, "close", None)) is not None:
                close()
            ahead.close()
        return samples

    def _missing(self, requests: Sequence[SampleRequest]) -> dict[str, SampleRequest]:
        """First request of each key that is not there, in order; says for each request what was found."""
        missing: dict[str, SampleRequest] = {}
        for request in requests:
            key, fields = request.key, {"case_id": request.case.case_id, "role": request.role, "key": request.key}
            problem = entry_problem(self.path(key))
            if problem is None:
                self._sink.emit("CACHE_HIT", **fields)
                continue
            if self.path(key).exists() and key not in missing:
                self._sink.emit("CACHE_ENTRY_REBUILT", **fields, reason=problem)
            self._sink.emit("CACHE_MISS", **fields)
            missing.setdefault(key, request)
        return missing

    def _prepare(self, missing: Sequence[SampleRequest]) -> None:
        """Make the folders and look at the free space before any long work."""
        if not missing:
            return
        try:
            for folder in (self.root, self.root / "entries", self.root / "locks"):
                folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.root / "entries", os.W_OK | os.X_OK):
                raise PermissionError(13, "Permission denied", str(self.root / "entries"))
            free = shutil.disk_usage(self.root).free
        except OSError as error:
            raise from_os_error(error, "preparing the feature cache", self.root) from error
        needed = sum(request.estimated_bytes for request in missing) + _SPARE_BYTES
        if free < needed:
            raise EnvironmentFault(
                f"the feature cache needs {needed} bytes and there are {free} bytes free",
                where=self.root,
                found=f"{len(missing)} cases to compute, {free} of {needed} bytes free",
                fix="free some space, or set features.cache_dir to another disk",
            )


__all__ = ["CaseSamples", "Executor", "FeatureCache", "Role", "SampleRequest"]
