"""The run's seal: one Merkle root over every file under ``events/`` and every checkpoint of a finished run.

``run_seal.json`` lists ``path -> SHA-512`` for the files under ``events/`` and ``checkpoint -> SHA-512 of its
manifest`` (the manifest names its payload's digest). The root is over the sorted lines ``events/<path> <digest>`` and
``checkpoints/<name> <digest>``. A run that goes on after its seal keeps it as ``run_seal.<k>.json``: what an old seal
lists under ``events/`` never changes, so old seals stay checkable, and the next seal covers them too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from nx46vx.errors import IntegrityError, from_os_error
from nx46vx.events.merkle import root_of
from nx46vx.events.packing import close_segment
from nx46vx.events.segment import Position, foreign_names, is_leftover, list_segments, list_writers, read_seal
from nx46vx.runtime.digest import canonical_json, digest_bytes
from nx46vx.runtime.files import REAL_FILES, Files, replace_file

RUN_SEAL = "run_seal.json"
_OLD = re.compile(r"^run_seal\.(\d+)\.json$")
_LIMIT = 64 << 20


@dataclass(frozen=True)
class RunSeal:
    """``events``: file below ``events/`` -> SHA-512; ``checkpoints``: name -> SHA-512 of the manifest; ``writers``:
    writer -> (count, head)."""

    events: Mapping[str, str]
    checkpoints: Mapping[str, str]
    writers: Mapping[str, tuple[int, str]]

    @property
    def root(self) -> str:
        """Merkle root (hex) over everything listed."""
        lines = [f"events/{path} {digest}" for path, digest in sorted(self.events.items())]
        lines += [f"checkpoints/{name} {digest}" for name, digest in sorted(self.checkpoints.items())]
        lines += [f"writer/{name} {count} {head}" for name, (count, head) in sorted(self.writers.items())]
        return root_of(line.encode() for line in lines).hex()

    def encoded(self) -> bytes:
        content = {
            "schema": 1, "root": self.root, "events": dict(self.events), "checkpoints": dict(self.checkpoints),
            "writers": {name: list(end) for name, end in self.writers.items()},
        }  # fmt: skip
        return canonical_json(content) + b"\n"


def seal_run(folder: Path, checkpoints: Mapping[str, str] | None = None, *, files: Files = REAL_FILES) -> str:
    """Write ``events/run_seal.json`` and return the run's root (hex). Every writer has to be closed by now.

    Segments that a killed writer left open are closed first. ``checkpoints``: name -> SHA-512 of its manifest file.

    Raises:
        IntegrityError: a writer's log is damaged.
        EnvironmentFault: the file system refuses.
    """
    folder = Path(folder)
    try:
        retire_run_seal(files, folder)
        writers: dict[str, tuple[int, str]] = {}
        for writer in list_writers(files, folder):
            end = Position()
            for paths in list_segments(files, folder / writer):
                plain = files.exists(paths.plain)
                end = (close_segment(files, paths, writer, end) if plain else read_seal(files, paths)).end
            for name in foreign_names(files, folder / writer):
                if is_leftover(name):
                    files.unlink(folder / writer / name)
            files.fsync_folder(folder / writer)  # what was removed stays removed
            writers[writer] = (end.count, end.head)
        for name in filter(is_leftover, files.listdir(folder)):
            files.unlink(folder / name)
        listed = {path: digest_bytes(files.read(folder / path)) for path in event_files(files, folder)}
        seal = RunSeal(listed, dict(checkpoints or {}), writers)
        replace_file(files, folder / RUN_SEAL, seal.encoded())
    except OSError as error:
        raise from_os_error(error, "sealing the run", folder) from error
    return seal.root


def read_run_seal(files: Files, path: Path) -> RunSeal:
    """Read a run's seal strictly.

    Raises:
        IntegrityError: not exactly the bytes that a seal of these values has, or its root does not follow from them.
        OSError: it cannot be read.
    """
    raw = files.read(path, 0, _LIMIT)
    try:
        content = orjson.loads(raw)
        writers = {name: (int(end[0]), str(end[1])) for name, end in content["writers"].items()}
        seal = RunSeal(content["events"], content["checkpoints"], writers)
        right = seal.encoded() == raw
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise IntegrityError("the run's seal is damaged", where=path, found=str(error)[:200]) from error
    if not right:
        raise IntegrityError(
            "the run's seal is damaged", where=path, found="its root does not follow from what it lists"
        )
    return seal


def event_files(files: Files, folder: Path) -> list[str]:
    """Every file below ``events/`` but the current run seal, as paths relative to it, sorted."""
    writers = set(list_writers(files, folder))
    top = [name for name in files.listdir(folder) if name not in writers and name != RUN_SEAL and not is_leftover(name)]
    return sorted(top + [f"{writer}/{name}" for writer in writers for name in files.listdir(folder / writer)])


def old_run_seals(files: Files, folder: Path) -> list[str]:
    """Names of the seals of a run that went on after them, oldest first."""
    numbers = sorted(int(match[1]) for name in files.listdir(folder) if (match := _OLD.match(name)))
    return [f"run_seal.{number}.json" for number in numbers]


def retire_run_seal(files: Files, folder: Path) -> None:
    """Keep the seal of a finished run that goes on under an old seal's name."""
    if files.exists(folder / RUN_SEAL):
        number = len(old_run_seals(files, folder))
        try:
            files.rename(folder / RUN_SEAL, folder / f"run_seal.{number}.json")
        except FileNotFoundError:  # another writer was quicker
            return
        files.fsync_folder(folder)
