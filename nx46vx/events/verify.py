"""Proving a run's event log: chains, seals, Merkle roots, checkpoints' anchors, the run's seal."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

from nx46vx.errors import IntegrityError
from nx46vx.events import chain
from nx46vx.events.packing import check_sealed, walk
from nx46vx.events.seal import RUN_SEAL, event_files, old_run_seals, read_run_seal
from nx46vx.events.segment import (
    Position,
    SegmentPaths,
    foreign_names,
    is_leftover,
    list_segments,
    list_writers,
)
from nx46vx.runtime.digest import digest_bytes
from nx46vx.runtime.files import REAL_FILES, Files


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be: the file, the line in it (None: the file as a whole), and what."""

    path: str
    line: int | None
    what: str

    def __str__(self) -> str:
        return f"{self.path}{f', line {self.line}' if self.line is not None else ''}: {self.what}"


#: Bytes of log files from which on more than one process checks them: some seconds' work.
WORTH_PROCESSES = 64 << 20


@dataclass
class _Chain:
    """A writer's chain as it is on disk."""

    writer: str
    end: Position = field(default_factory=Position)
    heads: dict[int, str] = field(default_factory=dict)  # count -> head, at the counts asked for
    problems: list[Problem] = field(default_factory=list)


def verify_log(
    folder: Path, anchors: Iterable[Mapping[str, Any]] = (), *, executor: Executor | None = None,
    files: Files = REAL_FILES,
) -> list[Problem]:  # fmt: skip
    """Check every byte below ``folder`` (``events/`` of a run) as far as anything vouches for it.

    ``anchors``: ``writer``, ``head``, ``count`` (and ``path``) as checkpoints hold them; each has to be in the chain,
    so a cut tail and a rewritten log are found while a checkpoint is intact. With the run's seal every file is
    compared with it. An empty list means that all is well. Writers are checked in parallel over ``executor``.
    """
    folder = Path(folder)
    asked: dict[str, list[Mapping[str, Any]]] = {}
    for anchor in anchors:
        if anchor["count"]:
            asked.setdefault(str(anchor["writer"]), []).append(anchor)
    writers = list_writers(files, folder)
    counts = [frozenset(int(anchor["count"]) for anchor in asked.get(name, ())) for name in writers]
    walked = (executor.map if executor is not None else map)(
        _walk_writer, repeat(folder), writers, counts, repeat(files)
    )
    chains = {one.writer: one for one in walked}
    problems = [problem for one in chains.values() for problem in one.problems]
    problems += [problem for name in asked for problem in _check_anchors(folder, name, asked[name], chains.get(name))]
    if files.exists(folder):
        problems += _check_run_seals(files, folder, chains)
    return problems


@contextmanager
def checking_processes(folder: Path) -> Iterator[Executor | None]:
    """An executor for ``verify_log`` with a process for each core; None where starting them costs more than it saves.

    Threads would not do: hashing lines of a few hundred bytes holds the interpreter's lock.
    """
    cores = usable_cores()
    if cores == 1 or _stored_bytes(folder) < WORTH_PROCESSES:
        yield None
        return
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as processes:
        yield processes


def verify_checkpoints_sealed(folder: Path, digests: Mapping[str, str], *, files: Files = REAL_FILES) -> list[Problem]:
    """Compare checkpoint manifests (name -> SHA-512, from the store) with those that the run's seal lists, if any."""
    path = Path(folder) / RUN_SEAL
    if not files.exists(path):
        return []
    try:
        listed = read_run_seal(files, path).checkpoints
    except (IntegrityError, OSError):
        return []  # verify_log names it
    problems = []
    for name in sorted(listed.keys() | digests.keys()):
        if name not in digests:
            problems.append(Problem(f"checkpoints/{name}", None, "the run's seal lists it, and it is missing"))
        elif name not in listed:
            problems.append(Problem(f"checkpoints/{name}", None, "it is not in the run's seal"))
        elif digests[name] != listed[name]:
            problems.append(Problem(f"checkpoints/{name}", None, "its manifest is not the one in the run's seal"))
    return problems


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _stored_bytes(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # verifying names it
                continue
    return total


def _walk_writer(folder: Path, writer: str, counts: frozenset[int], files: Files) -> _Chain:
    found = _Chain(writer)
    place = folder / writer
    try:
        for name in foreign_names(files, place):
            if not is_leftover(name):
                found.problems.append(Problem(str(place / name), None, "no file of an event log"))
        for expected, paths in enumerate(list_segments(files, place)):
            if paths.number != expected:
                found.problems.append(Problem(str(paths.plain), None, f"segments before it are missing ({expected})"))
                return found
            _walk_segment(files, paths, found, counts)
    except OSError as error:
        found.problems.append(Problem(str(error.filename or place), None, f"cannot be read: {error.strerror}"))
    return found


def _walk_segment(files: Files, paths: SegmentPaths, found: _Chain, counts: frozenset[int]) -> None:
    """Check one segment and move ``found`` to its end; a damaged one is reported and passed over if its seal reads."""
    start = found.end
    plain = files.exists(paths.plain)
    torn = b""
    try:
        if plain and not files.exists(paths.seal):
            lines, found.end, torn = walk(files.read(paths.plain), start, found.writer, paths.plain)
        else:
            seal, lines = check_sealed(files, paths, found.writer)
            found.end = seal.end
            if seal.start != start:
                found.problems.append(Problem(str(paths.seal), None, "it does not follow the segment before it"))
            if plain and not b"".join(line + b"\n" for line in lines).startswith(_whole(files.read(paths.plain))):
                found.problems.append(Problem(str(paths.plain), None, "it differs from its packed segment"))
    except IntegrityError as error:
        where, _, line = str(error.where).rpartition(", line ")
        what = error.what + (f": {error.found}" if error.found is not None else "")
        found.problems.append(Problem(where or str(error.where), int(line) if where else None, what))
        return
    if torn:
        what = f"{len(torn)} bytes of a torn line at the end; resuming the run puts them aside"
        found.problems.append(Problem(str(paths.plain), len(lines) + 1, what))
    for count in counts:
        if start.count < count <= start.count + len(lines):
            found.heads[count] = chain.digest(lines[count - start.count - 1])


def _whole(raw: bytes) -> bytes:
    return raw[: raw.rfind(b"\n") + 1]


def _check_anchors(
    folder: Path, writer: str, anchors: list[Mapping[str, Any]], found: _Chain | None
) -> Iterator[Problem]:
    for anchor in anchors:
        path = str(anchor.get("path", folder / writer))
        count = int(anchor["count"])
        if found is None:
            yield Problem(
                path, None, f"the event log of writer {writer} is missing; the checkpoint counted {count} lines"
            )
        elif count not in found.heads:
            have = found.end.count
            yield Problem(
                path, None, f"the end of writer {writer}'s log is missing: {have} lines, {count} were counted"
            )
        elif found.heads[count] != anchor["head"]:
            yield Problem(path, None, f"writer {writer}'s log is not the one that the checkpoint saw (line {count})")


def _check_run_seals(files: Files, folder: Path, chains: Mapping[str, _Chain]) -> Iterator[Problem]:
    current = [RUN_SEAL] if files.exists(folder / RUN_SEAL) else []
    there = event_files(files, folder)
    for name in [*old_run_seals(files, folder), *current]:
        try:
            seal = read_run_seal(files, folder / name)
            for path, digest in seal.events.items():
                if path not in there:
                    yield Problem(str(folder / path), None, f"listed in {name}, and missing")
                elif digest_bytes(files.read(folder / path)) != digest:
                    yield Problem(str(folder / path), None, f"it is not the file that {name} lists")
        except IntegrityError as error:
            yield Problem(str(folder / name), None, f"{error.what}: {error.found}")
            continue
        except OSError as error:
            yield Problem(str(error.filename or folder / name), None, f"cannot be read: {error.strerror}")
            continue
        if name == RUN_SEAL:
            for path in sorted(set(there) - set(seal.events)):
                yield Problem(str(folder / path), None, "it is not in the run's seal")
            for writer, end in seal.writers.items():
                if writer not in chains or (chains[writer].end.count, chains[writer].end.head) != tuple(end):
                    yield Problem(str(folder / writer), None, "its chain does not end where the run's seal says")
