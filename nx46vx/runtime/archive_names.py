"""Which files of a run directory travel in an archive or a copy, and how large each may be."""

from __future__ import annotations

import os
import re
from pathlib import Path

from nx46vx.errors import IntegrityError, UsageError, from_os_error

_MIB = 1 << 20
_OWNER = r"[A-Za-z0-9][A-Za-z0-9._=+@-]{0,119}"
_CASE = r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]{0,200}"

#: Pattern of a path below the run directory -> most bytes that it may have. In the order in which they are packed:
#: checkpoints before the log, so that the log holds all that they vouch for.
_TRAVELS: tuple[tuple[re.Pattern[str], int], ...] = tuple(
    (re.compile(pattern), limit)
    for pattern, limit in (
        (r"config\.yaml", _MIB // 16),
        (r"run\.json", _MIB // 16),
        (r"plan\.json", 256 * _MIB),
        (r"decisions\.json", 64 * _MIB),
        (r"progress\.json", _MIB // 16),
        (r"run\.lock\.fence", 4096),  # the count of sessions; without it the log refuses the next one
        (rf"checkpoints/{_OWNER}/fence-\d{{8}}", 0),
        (rf"checkpoints/{_OWNER}/ckpt-\d{{8}}/ckpt_manifest\.json", 16 * _MIB),
        (rf"checkpoints/{_OWNER}/ckpt-\d{{8}}/payload\.safetensors", 1024 * _MIB),
        (rf"events/{_OWNER}/\d{{8}}\.(jsonl|jsonl\.gz|torn)", 1024 * _MIB),
        (rf"events/{_OWNER}/\d{{8}}\.seal\.json", _MIB // 16),
        (r"events/run_seal(\.\d{1,8})?\.json", 64 * _MIB),
        (r"leaderboard\.csv", 256 * _MIB),
        (r"ensemble\.json", 64 * _MIB),
        (rf"masks/{_CASE}\.tif", 4096 * _MIB),
        (r"mask_search/(journal\.log|leaderboard\.csv|importance\.svg)", 256 * _MIB),
        (rf"uncertainty/{_CASE}_(deviation|disagreement)\.tif", 4096 * _MIB),
        (r"submission\.zip", 16384 * _MIB),
        (r"report\.json", 256 * _MIB),
        (r"report\.md", 64 * _MIB),
        (r"RUN_PROFILE_SUMMARY\.json", _MIB),
    )
)

#: What a run directory may hold besides: never packed, and passed over in an archive that was packed by other means.
_STAYS = re.compile(
    r"run\.lock|costs\.json|LATEST_VALID_CKPT|(data|ray|superseded|mask_search/volumes)/.*"
    r"|([^/]+/)*\.[^/]+\.tmp|checkpoints/[^/]+/\.(tmp|trash)-[^/]+(/.*)?"
)
_FOLDERS = re.compile(
    rf"(checkpoints|events)/({_OWNER}/)?|checkpoints/{_OWNER}/ckpt-\d{{8}}/|masks/|uncertainty/|mask_search/(volumes/)?|data/|ray/|superseded/"
)
_TOP = ("checkpoints", "events", "masks", "uncertainty", "mask_search")


def limit_of(name: str) -> int | None:
    """Most bytes that a file at this path below a run directory may have; None if no such file travels."""
    return next((limit for pattern, limit in _TRAVELS if pattern.fullmatch(name)), None)


def stays_behind(name: str) -> bool:
    """Whether this path is one that a run directory may hold and that does not travel (a folder's ends in ``/``)."""
    return _STAYS.fullmatch(name) is not None or _FOLDERS.fullmatch(name) is not None


def travelling_files(run: Path) -> list[str]:
    """Paths below a run directory of all that is needed to go on and to verify it, in the order of packing.

    Raises:
        UsageError: it is no run directory.
        IntegrityError: a link or a special file stands where a file of a run belongs.
        EnvironmentFault: a folder cannot be read.
    """
    if not (run / "config.yaml").is_file():
        raise UsageError("this is no run directory", where=run, found="no config.yaml", fix="check the path")
    found: list[tuple[int, str]] = []
    try:
        for name in _walk(run, ""):
            rank = next((rank for rank, (pattern, _) in enumerate(_TRAVELS) if pattern.fullmatch(name)), None)
            if rank is not None:
                found.append((rank, name))
    except OSError as error:
        raise from_os_error(error, "reading the run directory", error.filename or run) from error
    return [name for _, name in sorted(found)]


def _walk(run: Path, folder: str) -> list[str]:
    names: list[str] = []
    with os.scandir(run / folder) as entries:
        for entry in entries:
            name = folder + entry.name
            if not folder and entry.name not in _TOP and limit_of(name) is None:
                continue
            file = limit_of(name) is not None
            if entry.is_dir(follow_symlinks=False) and not file:
                names += _walk(run, f"{name}/")
            elif entry.is_file(follow_symlinks=False):
                names.append(name)
            elif file or _FOLDERS.fullmatch(f"{name}/"):
                raise IntegrityError(
                    "a folder, a link or a special file stands in a file's place", where=run / name,
                    fix="put the file there",
                )  # fmt: skip
    return names
