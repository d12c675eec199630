"""A run that is taken up again: in place, or from a copy or an archive of its directory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nx46vx.errors import IntegrityError, NX46Error, UsageError
from nx46vx.logs import say
from nx46vx.paths import RunPaths
from nx46vx.pipeline.decisions import Decisions
from nx46vx.pipeline.planshape import fit_of, load_plan
from nx46vx.pipeline.session import run_id_in, settings_of
from nx46vx.pipeline.standing import check_directory
from nx46vx.runtime.archive import copy_run, import_run
from nx46vx.runtime.archive_check import read_member
from nx46vx.runtime.record import parse, read_record, understood, unusable
from nx46vx.settings import Settings, load_settings, result_keys


def take_up(
    source: Path, target: Path | None, config: Path | None, overrides: Mapping[str, Any], *, retrain: bool = False
) -> tuple[Path, Settings]:
    """The run directory to go on in, and its settings. ``source``: a run directory, a copy of one, or a zip.

    A directory without ``target`` is continued where it is. Otherwise it is brought to ``target`` (an archive without
    one to ``runs/<its name>``) and nothing is written to ``source``; where that same run stands there already, it goes
    on there. Without ``config`` the run's own settings hold; in another place only those that decide the result, for
    paths and addresses of another machine are not followed. ``retrain``: it may be made otherwise than asked for.

    Raises:
        UsageError: nothing is there, ``target`` is another directory, or the dataset has to be given.
        IntegrityError: what is there is no sound run, or cannot be continued by ``config``.
    """
    packed = _is_archive(source)
    if target is None and packed:
        target = Path("runs") / source.stem
    if target is None or target.resolve() == source.resolve():
        return source, load_settings(_config_of(source) if config is None else config, overrides=overrides)
    if target.exists():
        _same_run(source, target, packed)
        say(f"{target} holds this run already: it goes on there")
        return target, _settings(target, config, overrides)
    settings: list[Settings] = []

    def check(folder: Path) -> None:
        try:
            settings.append(_settings(folder, config, overrides))
            _check_readable(folder)
            check_directory(folder, settings[0], fresh=False, retrain=retrain)
        except NX46Error as error:  # the folder that was looked at is gone by the time this is read
            raise type(error)(error.what, where=source, found=error.found, fix=error.fix) from error

    bring: Callable[..., None] = import_run if packed else copy_run
    bring(source, target, check=check)
    say(f"{source} was {'unpacked' if packed else 'copied'} to {target}")
    return target, settings[0]


def _is_archive(source: Path) -> bool:
    if source.is_dir():
        return False
    if not source.exists():
        raise UsageError("there is no run to continue", where=source, fix="give a run directory or its zip")
    return True


def _config_of(run: Path) -> Path:
    settings_of(run)
    return RunPaths(run).config


def _settings(run: Path, config: Path | None, overrides: Mapping[str, Any]) -> Settings:
    """What a run at another place is continued with."""
    if config is not None:
        return load_settings(config, overrides=overrides)
    try:
        stored = settings_of(run)
    except UsageError as error:
        raise IntegrityError("the run's configuration cannot be read", where=run, found=error) from error
    settings = load_settings(None, overrides={**result_keys(stored), **overrides})
    if stored.data.dir is not None and settings.data.dir is None:
        raise UsageError(
            "the dataset does not come with the run", where=run, found=f"it was trained on {stored.data.dir}",
            fix="give the same dataset with --data DIR",
        )  # fmt: skip
    return settings


def _check_readable(run: Path) -> None:
    """The files that a session reads first are what they should be."""
    _run_id(run)
    plan = RunPaths(run).plan
    fit_of(load_plan(plan), plan)
    Decisions(RunPaths(run).decisions)


def _same_run(source: Path, target: Path, packed: bool) -> None:
    try:
        there = _run_id(target)
    except NX46Error as error:
        raise UsageError("this place is taken", where=target, found=error, fix="choose another --out") from error
    if packed:
        with understood(source):
            here = run_id_in(parse(read_member(source, RunPaths(Path()).identity.name)), source)
    else:
        settings_of(source)
        here = _run_id(source)
    if here != there:
        raise UsageError(
            "another run stands in this place", where=target, found=f"run {there}, not {here}",
            fix="choose another --out",
        )  # fmt: skip


def _run_id(run: Path) -> str:
    path = RunPaths(run).identity
    try:
        return run_id_in(read_record(path), path)
    except FileNotFoundError as error:
        raise unusable(path, "there is none") from error
