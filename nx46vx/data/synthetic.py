"""Synthetic scroll volumes to develop and test on, in the competition's layout."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from nx46vx.data.discovery import TEST_IMAGES, TRAIN_IMAGES, TRAIN_LABELS
from nx46vx.data.integrity import Mapper
from nx46vx.data.synthetic_sheets import BACKGROUND, SURFACE, Scroll, SheetGeometry
from nx46vx.data.synthetic_texture import Texture
from nx46vx.data.volume_io import Compression, write_volume
from nx46vx.errors import DataError, UsageError, from_os_error
from nx46vx.runtime.atomic import fsync_folder, write_json
from nx46vx.runtime.sink import EventSink
from nx46vx.settings import SyntheticSettings

GENERATOR_VERSION = 1
MARKER = "synthetic.json"
_MAKING = ".making"
_MIN_EDGE = 16
_ATTEMPTS = 12
_PREVALENCE = (0.05, 0.15)
_CODECS: tuple[Compression, ...] = ("lzw", None, "deflate")


def make_case(shape: tuple[int, int, int], *, scroll: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One volume and its label, both ``(z, y, x)`` uint8; equal arguments give equal voxels.

    ``scroll`` fixes what the volumes of a scroll share (axis, pitch, grey levels), ``seed`` the place in it. A place
    whose surface share among 0 and 1 lies outside 5 to 15 % is drawn again, a fixed number of times.

    Raises:
        UsageError: an edge is shorter than 16 voxels.
        DataError: no place with both classes was found (only where the volume is very small).
    """
    if len(shape) != 3 or min(shape) < _MIN_EDGE:
        raise UsageError("the volume is too small", where="shape", found=shape, fix=f"edges of {_MIN_EDGE} or more")
    drawn = Scroll.draw(scroll)
    best: tuple[float, SheetGeometry, np.ndarray, np.random.SeedSequence] | None = None
    for sequence in np.random.SeedSequence([seed, scroll]).spawn(_ATTEMPTS):
        place, look = sequence.spawn(2)
        geometry = SheetGeometry(shape, drawn, np.random.default_rng(place))
        label = geometry.label()
        ones, zeros = int((label == SURFACE).sum()), int((label == BACKGROUND).sum())
        if ones == 0 or zeros == 0:
            continue
        prevalence = ones / (ones + zeros)
        miss = max(_PREVALENCE[0] - prevalence, prevalence - _PREVALENCE[1], 0.0)
        if best is None or miss < best[0]:
            best = (miss, geometry, label, look)
        if miss == 0:
            break
    if best is None:
        raise DataError("no place in the scroll shows both classes", where=f"shape {shape}", fix="make it larger")
    _, geometry, label, look = best
    return Texture(geometry, np.random.default_rng(look)).render(), label


@dataclass(frozen=True)
class _Job:
    """One case to write: where, and from what."""

    image: Path
    label: Path | None
    size: int
    scroll: int
    seed: int
    index: int


def _write_case(job: _Job) -> str:
    """Make and write one case unless its files are there already (each is whole or absent)."""
    if job.image.exists() and (job.label is None or job.label.exists()):
        return job.image.name
    image, label = make_case((job.size, job.size, job.size), scroll=job.scroll, seed=job.seed)
    if job.label is not None:
        write_volume(job.label, label, compression=_CODECS[(job.index + 2) % len(_CODECS)])
    write_volume(job.image, image, compression=_CODECS[job.index % len(_CODECS)])
    return job.image.name


def make_dataset(out: Path, settings: SyntheticSettings, *, sink: EventSink, executor: Mapper | None = None) -> None:
    """Write a dataset in the competition's layout, without labels for the test volumes.

    A generation that was killed is completed by the next call, to the same bytes; a complete dataset is left alone.

    Raises:
        DataError: the folder holds something else, or a synthetic dataset of other settings.
        EnvironmentFault: disk full, no permission.
    """
    out = Path(out)
    identity: dict[str, Any] = {"generator": GENERATOR_VERSION, "settings": settings.model_dump(mode="json")}
    if _complete(out, identity):
        (out / _MAKING).unlink(missing_ok=True)  # left by a kill in the last moment
        return
    with _making(out, identity):
        if _complete(out, identity):  # another process finished it while we waited
            return
        jobs = _jobs(out, settings)
        for folder in (out, out / TRAIN_IMAGES, out / TRAIN_LABELS, out / TEST_IMAGES):
            folder.mkdir(exist_ok=True)
            for left_over in folder.glob(".*.tmp"):  # of a killed generation; we hold its lock
                left_over.unlink(missing_ok=True)
        done: Iterator[str] = map(_write_case, jobs) if executor is None else executor.map(_write_case, jobs)
        for index, name in enumerate(done):
            sink.emit("PROGRESS_UPDATE", stage="make_data", file=name, index=index + 1, total=len(jobs))
        write_json(out / MARKER, identity)
    sink.emit(
        "SYNTHETIC_DATASET", data_dir=str(out), train_cases=settings.train_cases, test_cases=settings.test_cases,
        size=settings.size, scrolls=settings.scrolls, seed=settings.seed, generator=GENERATOR_VERSION,
    )  # fmt: skip


def _jobs(out: Path, settings: SyntheticSettings) -> list[_Job]:
    jobs: list[_Job] = []
    for index in range(settings.train_cases + settings.test_cases):
        train = index < settings.train_cases
        number = index if train else index - settings.train_cases
        name = f"{'case' if train else 'test'}_{number:04d}.tif"
        jobs.append(
            _Job(
                image=out / (TRAIN_IMAGES if train else TEST_IMAGES) / name,
                label=out / TRAIN_LABELS / name if train else None, size=settings.size,
                scroll=settings.seed * 64 + number % settings.scrolls, seed=settings.seed * 100_003 + index,
                index=index,
            )
        )  # fmt: skip
    return jobs


def _complete(out: Path, identity: dict[str, Any]) -> bool:
    """Whether the folder holds this dataset, finished."""
    try:
        found = orjson.loads((out / MARKER).read_bytes())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise from_os_error(error, "reading the dataset's marker", out / MARKER) from error
    except ValueError:
        found = "a damaged marker"
    _require_same(out, identity, found)
    return True


def _require_same(out: Path, identity: dict[str, Any], found: object) -> None:
    if found != identity:
        raise DataError(
            "the folder holds a synthetic dataset of other settings", where=out, found=found,
            fix="choose another folder, or remove this one",
        )  # fmt: skip


@contextmanager
def _making(out: Path, identity: dict[str, Any]) -> Iterator[None]:
    """Hold the folder while it is being filled; a marker inside says what with, so that only that is continued."""
    making = out / _MAKING
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()) and not making.exists() and not (out / MARKER).exists():
            raise DataError("the folder holds other files", where=out, fix="choose an empty or a new folder")
        handle = os.open(making, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise from_os_error(error, "making the dataset's folder", out) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        written = os.pread(handle, 1 << 16, 0)
        if written and not (out / MARKER).exists():
            try:
                found = orjson.loads(written)
            except ValueError:  # killed while writing it: nothing else was begun
                found = identity
            _require_same(out, identity, found)
        os.ftruncate(handle, 0)
        os.pwrite(handle, orjson.dumps(identity), 0)
        os.fsync(handle)
        fsync_folder(out)
        yield
        making.unlink(missing_ok=True)
        fsync_folder(out)
    except OSError as error:
        raise from_os_error(error, "writing the dataset", out) from error
    finally:
        os.close(handle)
