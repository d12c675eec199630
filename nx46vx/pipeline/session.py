"""One session on one run directory: is it ours, is it free, does it fit this configuration."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nx46vx import __version__
from nx46vx.data.cases import Case
from nx46vx.data.volume_io import Compression, read_volume, write_volume
from nx46vx.errors import UsageError, from_os_error
from nx46vx.events.writer import EventLog
from nx46vx.model.fitplan import FitPlan
from nx46vx.paths import RunPaths, cache_root
from nx46vx.pipeline.governing import make_governor, make_progress
from nx46vx.pipeline.retraining import set_results_aside
from nx46vx.pipeline.standing import check_directory, stored_settings
from nx46vx.runtime.atomic import write_json, write_text
from nx46vx.runtime.budget import Governor
from nx46vx.runtime.checkpoint import CheckpointStore
from nx46vx.runtime.costs import CostBook
from nx46vx.runtime.device import choose_device
from nx46vx.runtime.digest import canonical_json
from nx46vx.runtime.io_clock import IoClock
from nx46vx.runtime.lock import DirectoryLock
from nx46vx.runtime.numeric import numeric_environment
from nx46vx.runtime.progress import Progress
from nx46vx.runtime.record import read_record, unusable
from nx46vx.runtime.stop import StopFlag
from nx46vx.settings import Settings
from trainables.task import Keeping, open_store


@dataclass(frozen=True)
class Session:
    """What every stage of a run needs. ``fence`` grows with each session on the directory.

    ``retrain``: candidates whose checkpoints do not fit are trained anew instead of refused. ``differing``: what this
    session found that may give other bits than the run's first session had. ``io`` counts reading and writing.
    """

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
    retrain: bool = False
    differing: list[str] = field(default_factory=list)
    io: IoClock = field(default_factory=IoClock)

    @property
    def cache_dir(self) -> Path:
        return cache_root(self.settings.features.cache_dir)

    @cached_property
    def keeping(self) -> Keeping:
        """How this session keeps checkpoints."""
        mirror = self.settings.checkpoints.mirror
        numeric = canonical_json(numeric_environment(self.device)).decode()
        return Keeping(mirror.absolute() if mirror is not None else None, numeric)

    def store(self, plan: FitPlan) -> CheckpointStore:
        """The run's checkpoints."""
        return open_store(plan, self.paths.root, self.fence, self.keeping)

    @property
    def data_dir(self) -> Path:
        """The dataset: the configured one, or the volumes that the run made for itself."""
        return (self.settings.data.dir or self.paths.data).absolute()

    def image(self, case: Case) -> np.ndarray:
        """A case's volume, ``(z, y, x)`` uint8; see ``read_volume``."""
        return self._read(case.image, case.case_id)

    def label(self, case: Case) -> np.ndarray:
        """Its label, likewise; for cases that have one."""
        assert case.label is not None
        return self._read(case.label, case.case_id)

    def write(self, path: Path, volume: np.ndarray, *, compression: Compression = "deflate") -> None:
        """Write a mask or a map; see ``write_volume``."""
        with self.io.counting("write_masks"):
            write_volume(path, volume, compression=compression)

    def _read(self, path: Path, case_id: str) -> np.ndarray:
        with self.io.counting("read_volumes"):
            return read_volume(path, case_id=case_id)


@contextlib.contextmanager
def open_session(
    root: Path, settings: Settings, stop: StopFlag, *, fresh: bool, differing: Sequence[str] = (),
    device: str | None = None,
) -> Iterator[Session]:  # fmt: skip
    """Hold the run directory: make or check it, take its lock, open the driver's event writer.

    ``differing``: what ``check_run`` found to differ and is to be retrained; the results it decided are set aside.
    ``device``: what computes, where that is not this machine's.

    Raises (besides ``check_directory``'s):
        LockedError: another process runs there.
        EnvironmentFault: it cannot be written to.
    """
    check_directory(root, settings, fresh=fresh, retrain=bool(differing))
    root = root.absolute()  # trials work in folders of their own
    paths = RunPaths(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, "making the run directory", root) from error
    with DirectoryLock(paths.lock) as lock:
        identity = _identity(paths)
        if not paths.config.exists():
            write_text(paths.config, settings.as_yaml())
        log = EventLog(paths.events, "driver", run_id=str(identity["run_id"]), fence=lock.fence)
        try:
            if differing:
                set_results_aside(paths, lock.fence, log, settings, differing)
            costs = CostBook(paths.costs)
            governor = make_governor(settings, costs, log, stop)
            yield Session(
                settings, paths, str(identity["run_id"]), lock.fence, log, stop,
                device or choose_device(settings.resources.device, settings.resources.gpu_policy).label,
                costs, governor, make_progress(settings, paths), retrain=bool(differing),
            )  # fmt: skip
        finally:
            log.close()


def _identity(paths: RunPaths) -> Mapping[str, Any]:
    if not os.path.lexists(paths.identity):
        born = {"run_id": uuid.uuid4().hex, "version": __version__, "created_ns": time.time_ns()}
        write_json(paths.identity, born)
    value = read_record(paths.identity)
    run_id_in(value, paths.identity)
    return value


def run_id_in(value: Mapping[str, Any], where: Path) -> str:
    """The run's name in ``run.json``.

    Raises:
        IntegrityError: it has none.
    """
    run_id = value.get("run_id")
    if not isinstance(run_id, str) or not 1 <= len(run_id) <= 64 or not run_id.isalnum():
        raise unusable(where, f"run_id {str(run_id)[:80]!r}")
    return run_id


def settings_of(root: Path) -> Settings:
    """The configuration a run directory was made with.

    Raises:
        UsageError: it is no run directory.
        IntegrityError: its configuration is damaged.
    """
    config = RunPaths(root).config
    if not os.path.lexists(config):
        raise UsageError("this is no run directory", where=root, found="no config.yaml", fix="check the path")
    return stored_settings(config)
