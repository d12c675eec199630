"""One session on one run directory: is it ours, is it free, does it fit this configuration."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from nx46vx import __version__
from nx46vx.errors import IncompatibleError, IntegrityError, NX46Error, UsageError, from_os_error
from nx46vx.events.writer import EventLog
from nx46vx.paths import RunPaths, cache_root
from nx46vx.pipeline.governing import make_governor, make_progress
from nx46vx.runtime.atomic import write_json, write_text
from nx46vx.runtime.budget import Governor
from nx46vx.runtime.costs import CostBook
from nx46vx.runtime.device import choose_device
from nx46vx.runtime.digest import digest_file
from nx46vx.runtime.lock import DirectoryLock
from nx46vx.runtime.progress import Progress
from nx46vx.runtime.stop import StopFlag
from nx46vx.settings import Settings, load_settings, result_keys


@dataclass(frozen=True)
class Session:
    """What every stage of a run needs. ``fence`` grows with each session on the directory."""

    settings: Settings
    paths: RunPaths
    run_id: str
    fence: int
    log: EventLog
    stop: StopFlag
    device: str
    costs: CostBook
    governor: Governor
    progress: Progress

    @property
    def cache_dir(self) -> Path:
        return cache_root(self.settings.features.cache_dir)

    @property
    def data_dir(self) -> Path:
        """The dataset: the configured one, or the volumes that the run made for itself."""
        return (self.settings.data.dir or self.paths.data).absolute()


def finished_report(root: Path) -> dict[str, Any] | None:
    """The report of a run that is complete and whose submission is still what it was; None otherwise."""
    paths = RunPaths(root)
    try:
        report: dict[str, Any] = orjson.loads(paths.report_json.read_bytes())
        if report["complete"] and digest_file(paths.submission) == report["submission"]["sha512"]:
            return report
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None


def check_directory(root: Path, settings: Settings, *, fresh: bool) -> None:
    """Look before anything is touched.

    Raises:
        UsageError: ``fresh`` and the directory exists, or it is something else than a run directory.
        IncompatibleError: it was made by another configuration; names the keys that differ.
        IntegrityError: its configuration cannot be read.
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
    if not paths.config.exists():
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
    differing = _differing_keys(paths.config, settings)
    if differing:
        raise IncompatibleError(
            "this run was made by another configuration", where=root, found="; ".join(differing),
            fix="use the same values, or choose another --out",
        )  # fmt: skip


def _differing_keys(config: Path, settings: Settings) -> list[str]:
    try:
        stored = result_keys(load_settings(config, environ={}))
    except NX46Error as error:
        raise IntegrityError("the run's configuration cannot be read", where=config, found=error) from error
    asked = result_keys(settings)
    return [
        f"{key} is {stored.get(key)!r} there and {asked.get(key)!r} here"
        for key in sorted(stored.keys() | asked.keys())
        if stored.get(key) != asked.get(key)
    ]


@contextlib.contextmanager
def open_session(root: Path, settings: Settings, stop: StopFlag, *, fresh: bool) -> Iterator[Session]:
    """Hold the run directory: make or check it, take its lock, open the driver's event writer.

    Raises (besides ``check_directory``'s):
        LockedError: another process runs there.
        EnvironmentFault: it cannot be written to.
    """
    check_directory(root, settings, fresh=fresh)
    root = root.absolute()  # trials work in folders of their own
    paths = RunPaths(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, "making the run directory", root) from error
    with DirectoryLock(paths.lock) as lock:
        identity = _identity(paths)
        if not paths.config.exists():
            write_text(paths.config, config_text(settings))
        log = EventLog(paths.events, "driver", run_id=str(identity["run_id"]), fence=lock.fence)
        try:
            costs = CostBook(paths.costs)
            governor = make_governor(settings, costs, log, stop)
            yield Session(
                settings, paths, str(identity["run_id"]), lock.fence, log, stop,
                choose_device(settings.resources.device).name, costs, governor,
                make_progress(settings, paths),
            )  # fmt: skip
        finally:
            log.close()


def config_text(settings: Settings) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


def _identity(paths: RunPaths) -> Mapping[str, Any]:
    if not paths.identity.exists():
        born = {"run_id": uuid.uuid4().hex, "version": __version__, "created_ns": time.time_ns()}
        write_json(paths.identity, born)
    try:
        value: dict[str, Any] = orjson.loads(paths.identity.read_bytes())
        if not isinstance(value["run_id"], str):
            raise TypeError("run_id is no text")
        return value
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError("the run's identity cannot be read", where=paths.identity, found=error) from error


def settings_of(root: Path) -> Settings:
    """The configuration a run directory was made with.

    Raises:
        UsageError: it is no run directory.
    """
    config = RunPaths(root).config
    if not config.is_file():
        raise UsageError("this is no run directory", where=root, found="no config.yaml", fix="check the path")
    return load_settings(config, environ={})
