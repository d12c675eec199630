"""Volumes as multipage TIFFs: ``(z, y, x)`` uint8, one page per z."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import tifffile

from nx46vx.data.tiff_layout import Layout, check_layout, check_page_chain, decoding, opened
from nx46vx.data.tiff_segments import DAMAGED
from nx46vx.errors import DataError
from nx46vx.runtime.atomic import replacing

Compression = Literal["deflate", "lzw"] | None
_CODEC_NAMES: dict[Compression, str | None] = {"deflate": "adobe_deflate", "lzw": "lzw", None: None}


@dataclass(frozen=True)
class VolumeInfo:
    """What the headers of a volume file say; ``shape`` is (z, y, x), ``nbytes`` the decoded size."""

    path: Path
    shape: tuple[int, int, int]
    nbytes: int
    mappable: bool
    compression: str


def probe_volume(path: Path) -> VolumeInfo:
    """Read and check the headers only.

    Raises:
        DataError: empty, not a TIFF, truncated, 2D, ragged, not uint8, unknown codec, not a regular file, or
            dimensions that the file cannot hold.
    """
    with _checked(Path(path), path) as (_, _, layout):
        return VolumeInfo(
            Path(path), layout.shape, layout.nbytes, layout.map_offset is not None, layout.compression
        )  # fmt: skip


def read_volume(path: Path, *, case_id: str | None = None) -> np.ndarray:
    """Return the volume, ``(z, y, x)`` uint8, read-only: mapped when the file holds it raw, else decoded.

    Raises:
        DataError: what ``probe_volume`` refuses, and pixel data that is damaged or ends early.
    """
    where = path if case_id is None else f"case {case_id}, {path}"
    with _checked(Path(path), where) as (file, tiff, layout):
        if layout.map_offset is not None:
            with decoding(Path(path), where):  # it may have shrunk since
                return np.memmap(file, dtype=np.uint8, mode="r", offset=layout.map_offset, shape=layout.shape)
        volume = np.empty(layout.shape, np.uint8)
        for z, plane in enumerate(_planes(file, tiff, layout, Path(path), where)):
            volume[z] = plane
        volume.flags.writeable = False
        return volume


@contextmanager
def open_planes(
    path: Path, *, case_id: str | None = None
) -> Iterator[tuple[tuple[int, int, int], Iterator[np.ndarray]]]:
    """The shape (z, y, x) and the planes ``(y, x)`` one after the other: never mapped, never all in memory.

    Raises what ``read_volume`` raises, also while the planes are taken.
    """
    where = path if case_id is None else f"case {case_id}, {path}"
    with _checked(Path(path), where) as (file, tiff, layout):
        yield layout.shape, _planes(file, tiff, layout, Path(path), where)


def write_volume(path: Path, volume: np.ndarray, *, compression: Compression = "deflate") -> None:
    """Write ``(z, y, x)`` uint8 with one page per z: whole or absent, durable, equal bytes for equal volumes.

    Raises:
        DataError: the array is no 3D uint8 volume of at least two slices.
        EnvironmentFault: disk full, no permission.
    """
    volume = np.asarray(volume)
    if volume.ndim != 3 or volume.dtype != np.uint8 or volume.shape[0] < 2 or volume.size == 0:
        raise DataError(
            "only 3D uint8 volumes of at least two slices can be written", where=path,
            found=f"{volume.dtype} of shape {volume.shape}", fix="pass (z, y, x) uint8",
        )  # fmt: skip
    with replacing(Path(path)) as temporary, tifffile.TiffWriter(temporary) as writer:
        writer.write(
            iter(volume), shape=volume.shape, dtype=volume.dtype, photometric="minisblack",
            compression=_CODEC_NAMES[compression], predictor=False, metadata=None, software=False, maxworkers=1,
        )  # fmt: skip


@contextmanager
def _checked(path: Path, where: object) -> Iterator[tuple[BinaryIO, tifffile.TiffFile, Layout]]:
    """Open a file whose headers hold together."""
    with opened(path) as file:
        with decoding(path, where):
            page_count = check_page_chain(file, where)
            file.seek(0)
            tiff = tifffile.TiffFile(file, name=path.name)
            if len(tiff.pages) != page_count:
                found = f"{len(tiff.pages)} readable pages of {page_count}"
                raise DataError("the TIFF's headers are not usable", where=where, found=found, fix=DAMAGED)
            layout = check_layout(tiff, page_count, os.fstat(file.fileno()).st_size, where)
        with tiff:
            yield file, tiff, layout


def _planes(file: BinaryIO, tiff: tifffile.TiffFile, layout: Layout, path: Path, where: object) -> Iterator[np.ndarray]:
    """The planes of a volume whose headers hold together; a codec has the last word on each of them."""
    pages, height, width = layout.shape
    if layout.map_offset is not None:
        file.seek(layout.map_offset)
        for z in range(pages):
            with decoding(path, where):
                data = file.read(height * width)
            if len(data) < height * width:
                raise DataError("the file shrank while it was read", where=where, found=f"plane {z}", fix=DAMAGED)
            yield np.frombuffer(data, np.uint8).reshape(height, width)
    elif len(tiff.pages) == 1:
        with decoding(path, where):
            whole = tiff.pages[0].asarray(maxworkers=1)
        yield from whole
    else:
        for z in range(pages):
            with decoding(path, where):
                plane = tiff.pages[z].asarray(maxworkers=1)
            yield plane
