"""Checking every checkpoint on disk, for ``verify``: named problems instead of a fallback to an older one."""

from __future__ import annotations

from pathlib import Path

from nx46vx.errors import IntegrityError, from_os_error
from nx46vx.runtime.checkpoint.folder import MANIFEST, PAYLOAD, read_checkpoint
from nx46vx.runtime.checkpoint.shelf import Shelf, valid_owner
from nx46vx.runtime.files import REAL_FILES, Files


def audit_checkpoints(root: Path, run_id: str | None = None, *, files: Files = REAL_FILES) -> list[tuple[str, str]]:
    """``(path, what is wrong)`` for everything below a store's root that is not whole; empty: all is well.

    Each checkpoint has to be valid, stand under its own owner and number, follow the log's place that the one before it
    saw, be of ``run_id`` (if given), and hold no further files.

    Raises:
        EnvironmentFault: a folder cannot be read.
    """
    problems: list[tuple[str, str]] = []
    if not files.exists(root):
        return problems
    try:
        for name in sorted(files.listdir(root)):
            if valid_owner(name):
                problems += _audit_owner(Shelf(files, root / name), name, run_id)
            else:
                problems.append((str(root / name), "no owner's folder"))
    except OSError as error:
        raise from_os_error(error, "reading the checkpoint store", error.filename or root) from error
    return problems


def _audit_owner(shelf: Shelf, owner: str, run_id: str | None) -> list[tuple[str, str]]:
    problems: list[tuple[str, str]] = []
    try:
        foreign = shelf.foreign_names()
    except NotADirectoryError:
        return [(str(shelf.folder), "no owner's folder")]
    problems += [(str(shelf.folder / name), "no file of a checkpoint store") for name in foreign]
    before: tuple[int, str] | None = None
    for number in shelf.numbers():
        path = shelf.path(number)
        try:
            manifest = read_checkpoint(shelf.files, path).manifest
        except IntegrityError as error:
            problems.append((str(error.where), error.what + (f": {error.found}" if error.found is not None else "")))
            continue
        expected = {"owner": owner, "number": number} | ({"run_id": run_id} if run_id is not None else {})
        wrong = [f"{name} {manifest[name]}" for name, value in expected.items() if manifest[name] != value]
        problems += [(str(path / MANIFEST), f"it is that of another: {what}") for what in wrong]
        if before is not None and before[0] == number - 1 and manifest["merkle_prev"] != before[1]:
            problems.append((str(path / MANIFEST), "it does not follow the checkpoint before it"))
        before = (number, manifest["merkle_curr"])
        more = sorted(set(shelf.files.listdir(path)) - {MANIFEST, PAYLOAD})
        problems += [(str(path / name), "no file of a checkpoint") for name in more]
    return problems
