"""What a run directory is before anything is touched: free, finished, held, or made otherwise than asked for."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nx46vx.data.discovery import discover
from nx46vx.data.integrity import DigestBook
from nx46vx.errors import IncompatibleError, IntegrityError, NX46Error, UsageError
from nx46vx.paths import RunPaths, cache_root
from nx46vx.pipeline.planshape import load_plan
from nx46vx.pipeline.signature import program_identity
from nx46vx.runtime.digest import digest_file
from nx46vx.runtime.lock import at_rest
from nx46vx.runtime.record import MALFORMED, read_record
from nx46vx.runtime.sink import NullSink
from nx46vx.settings import Settings, load_settings, result_keys

#: Figures of a finished run that its status shows.
SHOWN = (
    "ensemble_f_half", "intensity_f_half", "ensemble_average_precision", "best_member_average_precision",
)  # fmt: skip
_FIX = "use the values and the version it was made with, choose another --out, or pass --retrain-mismatched"


def check_run(root: Path, settings: Settings, *, fresh: bool = False, retrain: bool = False) -> list[str]:
    """Look before anything is touched; returns what differs from the run as it is, where ``retrain`` permits it.

    Raises:
        UsageError: ``fresh`` and the directory exists, or it is something else than a run directory.
        LockedError: another session holds it.
        IncompatibleError: configuration, program or dataset are not the run's; names what differs.
        IntegrityError: its configuration cannot be read.
    """
    check_directory(root, settings, fresh=fresh, retrain=True)
    if not os.path.lexists(RunPaths(root).config):
        return []
    with at_rest(root):
        differing = [*_differing_keys(RunPaths(root).config, settings), *_differing_program(root)]
        if not differing and (retrain or finished_report(root) is not None):
            differing = _differing_data(root, settings)
    if differing and not retrain:
        raise _incompatible(root, differing)
    return differing


def check_directory(root: Path, settings: Settings, *, fresh: bool, retrain: bool = False) -> None:
    """What can be said of a directory at once: it is free for a run, or it is that of a run with these settings.

    Raises: what ``check_run`` raises, but for the lock and the dataset.
    """
    paths = RunPaths(root)
    if not root.exists():
        return
    if fresh:
        raise UsageError(
            "--fresh wants a directory that does not exist", where=root, fix="choose another --out or leave out --fresh"
        )
    if not root.is_dir():
        raise UsageError("the run directory is a file", where=root, fix="choose another --out")
    if not os.path.lexists(paths.config):
        known = {paths.lock.name, f"{paths.lock.name}.fence", paths.identity.name}
        strange = sorted(
            entry.name for entry in root.iterdir() if entry.name not in known and not entry.name.startswith(".")
        )
        if strange:
            raise UsageError(
                "this is no run directory and it is not empty", where=root, found=", ".join(strange[:5]),
                fix="choose another --out",
            )  # fmt: skip
        return
    if not retrain and (differing := _differing_keys(paths.config, settings)):
        raise _incompatible(root, differing)


def finished_report(root: Path) -> dict[str, Any] | None:
    """The report of a run that is complete and whose submission is still what it was; None otherwise.

    A report that is damaged is none: the same command makes it anew.
    """
    paths = RunPaths(root)
    try:
        report = read_record(paths.report_json)
        whole = report["complete"] is True and isinstance(report["reduced"], bool)
        whole = whole and all(isinstance(report["holdout"][figure], float) for figure in SHOWN)
        told = report["submission"]
        if whole and told["file"] == paths.submission.name and told["sha512"] == digest_file(paths.submission):
            return report
    except (OSError, NX46Error, *MALFORMED):
        return None
    return None


def stored_settings(config: Path) -> Settings:
    """The configuration that a run directory was made with.

    Raises:
        IntegrityError: it is damaged.
    """
    try:
        if not stat.S_ISREG(config.lstat().st_mode):
            raise IntegrityError("this is not a regular file", where=config, found="a link, folder, pipe or device")
        return load_settings(config, environ={})
    except (OSError, NX46Error) as error:
        raise IntegrityError(
            "the run's configuration cannot be read", where=config, found=error, fix="restore it from a copy"
        ) from error


def check_same_data(root: Path, settings: Settings) -> None:
    """A run answers only for the dataset it was made of. A dataset that is gone is not asked for.

    Raises:
        IncompatibleError: the configured directory holds another dataset than the plan's.
    """
    if differing := _differing_data(root, settings):
        raise _incompatible(root, differing)


def _incompatible(root: Path, differing: list[str]) -> IncompatibleError:
    return IncompatibleError(
        "RESUME_INCOMPATIBLE: this run was made otherwise", where=root, found="; ".join(differing), fix=_FIX
    )


def _differing_keys(config: Path, settings: Settings) -> list[str]:
    stored, asked = result_keys(stored_settings(config)), result_keys(settings)
    return [
        f"{key} is {stored.get(key)!r} there and {asked.get(key)!r} here"
        for key in sorted(stored.keys() | asked.keys())
        if stored.get(key) != asked.get(key)
    ]


def _differing_program(root: Path) -> list[str]:
    """What the version that planned the run meant otherwise; a plan that cannot be read is for the session to name."""
    stored = _planned(root, "identity")
    if not isinstance(stored, dict):
        return []
    here = program_identity()
    return [
        f"{key} is {str(stored.get(key))[:24]} there and {here[key][:24]} here"
        for key in sorted(here)
        if stored.get(key) != here[key]
    ]


def _differing_data(root: Path, settings: Settings) -> list[str]:
    planned = _planned(root, "dataset")
    if settings.data.dir is None or not settings.data.dir.is_dir() or not isinstance(planned, str):
        return []
    book = DigestBook(cache_root(settings.features.cache_dir) / "digests.json")
    with ThreadPoolExecutor() as executor:
        found = discover(
            settings.data.dir, book=book, sink=NullSink(), executor=executor, skip_cases=settings.data.skip_cases
        )
    return [f"the dataset in {settings.data.dir} is another one"] if found.digest != planned else []


def _planned(root: Path, key: str) -> Any:
    """A value of a plan whose fit is frozen; before that nothing is bound."""
    try:
        plan = load_plan(RunPaths(root).plan)
        return plan[key] if plan["fit"] else None
    except (NX46Error, KeyError):
        return None
