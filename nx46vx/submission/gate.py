"""The competition's rules, checked on the finished archive as a stranger would read it.

Nothing in the archive is trusted: sizes are capped before anything is unpacked, and no page is decoded before its
declared shape, dtype and byte counts were found sound.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from nx46vx.errors import from_os_error
from nx46vx.runtime.digest import digest_bytes
from nx46vx.runtime.io_clock import IoClock
from nx46vx.runtime.sink import EventSink
from nx46vx.submission.package import MEMBER_SUFFIX

_MAX_RATIO = 1100  # deflate reaches at most 1032 to 1
_MAX_BYTES_PER_VOXEL = 8  # room to name a wrong dtype; the right one takes 1
_PAGE_OVERHEAD = 4096
_FILE_OVERHEAD = 1 << 16
_CHUNK = 1 << 20
_ENCRYPTED = 0x1
_ZIP_FAULTS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError, OverflowError)

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class GateReport:
    """What the gate found. ``files`` describes each member that could be unpacked, in the order of the names.

    A file's keys: ``name``, ``shape`` (pages first) and ``dtype`` (both None when it is no TIFF),
    ``foreground_fraction`` (None when the voxels were not read), ``sha512`` of the TIFF's bytes.
    """

    ok: bool
    problems: tuple[str, ...]
    files: tuple[dict[str, Any], ...]


def check_submission(
    zip_path: Path, expected: Mapping[str, Shape], *, sink: EventSink, empty_allowed: Collection[str] = (),
    io: IoClock | None = None,
) -> GateReport:  # fmt: skip
    """Read the archive back and hold it against the test set; emits ``COMPETITION_RULES_VALIDATION``.

    A broken rule becomes a problem in the report and raises nothing.

    Args:
        expected: case id -> shape ``(z, y, x)`` of its test volume.
        empty_allowed: ids of the cases whose mask may have no foreground.
        io: counts the reading.

    Raises:
        EnvironmentFault: the archive is there but the machine refuses to read it.
    """
    problems: list[str] = []
    files: list[dict[str, Any]] = []
    try:
        with (io or IoClock()).counting("package"), open(zip_path, "rb") as raw:
            raw.read(1)  # a failing device is no broken rule
            _check_archive(raw, expected, frozenset(empty_allowed), problems, files)
    except FileNotFoundError:
        problems.append(f"{zip_path.name}: the archive is not there")
    except OSError as error:
        raise from_os_error(error, "reading the submission", zip_path) from error
    report = GateReport(not problems, tuple(problems), tuple(files))
    sink.emit("COMPETITION_RULES_VALIDATION", ok=report.ok, problems=problems, files=files)
    return report


def _check_archive(
    raw: io.BufferedReader, expected: Mapping[str, Shape], empty_allowed: frozenset[str], problems: list[str],
    files: list[dict[str, Any]],
) -> None:  # fmt: skip
    size = raw.seek(0, io.SEEK_END)
    cap = _FILE_OVERHEAD + sum(_member_cap(shape) for shape in expected.values())
    if size > cap:
        problems.append(f"the archive is too large to unpack: {size} bytes, at most {cap} for this test set")
        return
    try:
        archive = zipfile.ZipFile(raw)
    except _ZIP_FAULTS as error:
        problems.append(f"the archive is no readable zip: {error}")
        return
    with archive:
        by_name = {f"{case_id}{MEMBER_SUFFIX}": (case_id, shape) for case_id, shape in expected.items()}
        members = archive.infolist()
        problems.extend(_name_problems(members, by_name))
        unique = {member.filename: member for member in members}
        for name in sorted(unique.keys() & by_name.keys()):
            case_id, shape = by_name[name]
            found, file = _check_member(archive, unique[name], shape, case_id in empty_allowed)
            problems.extend(f"{name}: {problem}" for problem in found)
            if file is not None:
                files.append(file)


def _name_problems(members: list[zipfile.ZipInfo], by_name: Mapping[str, Any]) -> list[str]:
    counts = Counter(member.filename for member in members)
    problems = [f"{name}: missing from the archive" for name in sorted(by_name.keys() - counts.keys())]
    for name, count in sorted(counts.items()):
        if count > 1:
            problems.append(f"{name}: stands {count} times in the archive")
        if name not in by_name:
            folder = "/" in name or "\\" in name
            why = "the archive may hold no folders" if folder else "no test volume has this name"
            problems.append(f"{name}: unexpected, {why}")
    problems.extend(
        f"{member.filename}: its stored name {member.orig_filename!r} is another one"
        for member in members
        if member.orig_filename != member.filename and member.filename in by_name
    )
    return problems


def _member_cap(shape: Shape) -> int:
    z, y, x = shape
    return _MAX_BYTES_PER_VOXEL * z * y * x + _PAGE_OVERHEAD * z + _FILE_OVERHEAD


def _check_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, shape: Shape, may_be_empty: bool
) -> tuple[list[str], dict[str, Any] | None]:
    """Problems of one member, and its description once its bytes could be read."""
    if member.flag_bits & _ENCRYPTED:
        return ["it is encrypted"], None
    if member.compress_type != zipfile.ZIP_DEFLATED:
        return [f"it is not compressed with deflate (method {member.compress_type})"], None
    if member.file_size > _member_cap(shape):
        return [f"it says it unpacks to {member.file_size} bytes, at most {_member_cap(shape)} for {shape}"], None
    if member.file_size > _MAX_RATIO * max(1, member.compress_size):
        return [f"it says it unpacks {member.compress_size} bytes to {member.file_size}: impossible for deflate"], None
    data = bytearray()
    try:
        with archive.open(member) as stream:  # never gives more than file_size; checks the CRC at the end
            while chunk := stream.read(_CHUNK):
                data += chunk
    except _ZIP_FAULTS as error:
        return [f"it cannot be unpacked: {error}"], None
    content = bytes(data)
    del data
    file: dict[str, Any] = {
        "name": member.filename, "shape": None, "dtype": None, "foreground_fraction": None,
        "sha512": digest_bytes(content),
    }  # fmt: skip
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as tiff:
            problems, volume = _read_pages(tiff, len(content), shape, file)
    except Exception as error:
        return [f"it is no readable TIFF: {type(error).__name__}: {error}"], file
    if volume is not None:
        problems += _voxel_problems(volume, may_be_empty)
        file["foreground_fraction"] = float(np.count_nonzero(volume)) / volume.size
    return problems, file


def _read_pages(
    tiff: tifffile.TiffFile, length: int, shape: Shape, file: dict[str, Any]
) -> tuple[list[str], np.ndarray | None]:
    """Check the pages' headers and, when all are sound, decode them to ``(z, y, x)``."""
    first = tiff.pages.first
    count = len(tiff.pages)
    file["shape"] = [count, *first.shape]
    file["dtype"] = str(first.dtype)
    if count == 1 and (shape[0] > 1 or len(first.shape) != 2):
        return [f"it is no multipage TIFF: one page of shape {first.shape} instead of {shape[0]} pages"], None
    if (count, *first.shape) != tuple(shape):
        return [f"its shape is {(count, *first.shape)}, the volume's is {tuple(shape)} (z, y, x)"], None
    for z, page in enumerate(entry.aspage() for entry in tiff.pages):
        if page.shape != first.shape:
            return [f"page {z} has shape {page.shape}, page 0 has {first.shape}"], None
        if page.dtype != np.uint8:
            return [f"its dtype is {page.dtype} (page {z}), not uint8"], None
        if page.photometric != tifffile.PHOTOMETRIC.MINISBLACK:
            return [f"page {z} does not show 0 as background (photometric {page.photometric!r})"], None
        spans = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        if not spans or any(count <= 0 or offset + count > length for offset, count in spans):
            return [f"page {z} is cut off: its data lie outside the file"], None
        if sum(count for _, count in spans) > page.nbytes + _PAGE_OVERHEAD:
            return [f"page {z} stores more bytes than its voxels can need"], None
    volume = np.empty(shape, dtype=np.uint8)
    for z, entry in enumerate(tiff.pages):
        volume[z] = entry.asarray(maxworkers=1)
    return [], volume


def _voxel_problems(volume: np.ndarray, may_be_empty: bool) -> list[str]:
    highest = int(volume.max())
    problems = []
    if highest > 1:
        problems.append(f"its values are {_listed(_values(volume))}, allowed are 0 and 1")
    if highest == 0:
        if not may_be_empty:
            problems.append("its mask is empty")
    elif volume.shape[0] > 1 and all(np.array_equal(plane, volume[0]) for plane in volume[1:]):
        problems.append("it is not 3D: one 2D slice is repeated along z")
    return problems


def _values(volume: np.ndarray) -> np.ndarray:
    """The sorted values of a uint8 volume, a plane at a time."""
    present = np.zeros(256, dtype=bool)
    for plane in volume:
        present[plane.ravel()] = True
    return np.flatnonzero(present)


def _listed(values: np.ndarray, limit: int = 8) -> str:
    shown = ", ".join(str(value) for value in values[:limit])
    return shown + (f" and {len(values) - limit} more" if len(values) > limit else "")
