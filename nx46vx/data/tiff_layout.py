"""What a TIFF's headers promise, checked against the file before any pixel is read or any memory is taken."""

from __future__ import annotations

import json
import logging
import math
import os
import stat
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import tifffile

from nx46vx.errors import DataError, from_os_error

MAX_VOLUME_BYTES = 8 << 30
MAX_RATIO = 2000  #: deflate reaches 1032:1 and LZW about 1365:1; more than this is a false claim
MAX_PAGES = 65_535
CODECS = {1: "none", 5: "lzw", 8: "deflate", 32946: "deflate", 32773: "packbits", 50000: "zstd"}
DAMAGED = "download the file again, or leave the case out (config `data.skip_cases`)"
_RESOURCE_ERRNOS = {12, 23, 24}  # ENOMEM, ENFILE, EMFILE: the machine's fault, not the file's


@dataclass(frozen=True)
class Layout:
    """Where a checked volume lies: ``shape`` (z, y, x); ``map_offset`` is set when its bytes are one raw run."""

    shape: tuple[int, int, int]
    compression: str
    map_offset: int | None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file (or a link to one) for reading; anything else is refused without blocking on it."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _RESOURCE_ERRNOS:
            raise from_os_error(error, "opening a volume", path) from error
        raise DataError(
            "the file cannot be opened", where=path, found=error.strerror, fix="check the path and its permissions"
        ) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise DataError(
            "this is not a regular file", where=path, found="a folder, pipe, socket or device", fix="put a TIFF there"
        )
    with os.fdopen(handle, "rb") as file:
        yield file


class _ErrorLog(logging.Handler):
    """Keeps what the TIFF library only logs as an error in this thread."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.messages.append(record.getMessage())


@contextmanager
def decoding(path: Path, where: object) -> Iterator[None]:
    """Turn whatever a decoder raises, or only logs as an error, into a ``DataError`` with the reason."""
    log, logger = _ErrorLog(), logging.getLogger("tifffile")
    logger.addHandler(log)
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        if error.errno in _RESOURCE_ERRNOS:
            raise from_os_error(error, "reading a volume", path) from error
        raise DataError("the file cannot be read", where=where, found=error, fix=DAMAGED) from error
    except Exception as error:  # decoders raise many kinds; each is a statement about this file
        reason = f"{type(error).__name__}: {error}"
        raise DataError("the TIFF is damaged or truncated", where=where, found=reason, fix=DAMAGED) from error
    finally:
        logger.removeHandler(log)
    if log.messages:
        raise DataError("the TIFF is damaged or truncated", where=where, found=log.messages[0], fix=DAMAGED)


def check_page_chain(file: BinaryIO, where: object) -> int:
    """Follow the chain of page headers to its end; return the number of pages.

    Raises:
        DataError: empty, not a TIFF, a header outside the file, a loop, or more than ``MAX_PAGES`` pages.
    """
    size = os.fstat(file.fileno()).st_size
    head = file.read(16)
    if size == 0:
        raise DataError("the file is empty", where=where, found="0 bytes", fix=DAMAGED)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    magic = struct.unpack(order + "H", head[2:4])[0] if order and len(head) >= 8 else 0
    if order is None or magic not in (42, 43) or (magic == 43 and len(head) < 16):
        raise DataError("this is not a TIFF", where=where, found=f"first bytes {head[:8]!r}", fix=DAMAGED)
    big = magic == 43
    count_format, offset_format, entry = (order + "Q", order + "Q", 20) if big else (order + "H", order + "I", 12)
    offset = struct.unpack(offset_format, head[8:16] if big else head[4:8])[0]
    seen: set[int] = set()
    while offset:
        if offset in seen or len(seen) >= MAX_PAGES:
            found = "a loop in the chain of pages" if offset in seen else f"more than {MAX_PAGES} pages"
            raise DataError("the TIFF's headers are not usable", where=where, found=found, fix=DAMAGED)
        seen.add(offset)
        count_size, offset_size = struct.calcsize(count_format), struct.calcsize(offset_format)
        file.seek(offset)
        raw = file.read(count_size)
        tags = struct.unpack(count_format, raw)[0] if len(raw) == count_size else 1 << 40
        end = offset + count_size + tags * entry
        if end + offset_size > size:
            found = f"page {len(seen) - 1} has its header at byte {offset}, the file ends at {size}"
            raise DataError("the TIFF is truncated", where=where, found=found, fix=DAMAGED)
        file.seek(end)
        offset = struct.unpack(offset_format, file.read(offset_size))[0]
    if not seen:
        raise DataError("the TIFF has no pages", where=where, found="an empty chain of pages", fix=DAMAGED)
    return len(seen)


def check_layout(tiff: tifffile.TiffFile, page_count: int, size: int, where: object) -> Layout:
    """Check every page's header; ``size`` is the file's length in bytes.

    Raises:
        DataError: 2D, ragged pages, not uint8, unknown codec, impossible size, or pixel data outside the file.
    """
    pages = [cast(tifffile.TiffPage, tiff.pages[index]) for index in range(page_count)]
    shape = _volume_shape(pages, where)
    nbytes = math.prod(shape)
    if nbytes > MAX_VOLUME_BYTES or nbytes > MAX_RATIO * size:
        raise DataError(
            "the TIFF claims impossible dimensions", where=where,
            found=f"shape {shape}, {nbytes} bytes, in a file of {size} bytes",
            fix=f"{DAMAGED}; volumes go up to {MAX_VOLUME_BYTES >> 30} GiB",
        )  # fmt: skip
    codecs = {_codec(page, where) for page in pages}
    raw_bytes = nbytes if page_count == 1 else math.prod(shape[1:])
    map_offset: int | None = None
    for index, page in enumerate(pages):
        start = _check_segments(page, index, raw_bytes, size, where)
        if index == 0:
            map_offset = start
        elif map_offset is not None and start != map_offset + index * raw_bytes:
            map_offset = None
    return Layout(shape, "+".join(sorted(codecs)), map_offset)


def _volume_shape(pages: list[tifffile.TiffPage], where: object) -> tuple[int, int, int]:
    for index, page in enumerate(pages):
        if page.dtype != np.uint8 or page.bitspersample != 8:
            found = f"{page.dtype or 'an unknown type'} of {page.bitspersample} bits on page {index}"
            raise DataError("the volume has to be uint8", where=where, found=found, fix="convert it to 8 bit")
        if page.samplesperpixel != 1:
            found = f"{page.samplesperpixel} values per voxel on page {index}"
            raise DataError("the volume has to be greyscale", where=where, found=found, fix="convert it to greyscale")
    if len(pages) > 1:
        shapes = sorted({page.shape for page in pages})
        if len(shapes) > 1 or len(shapes[0]) != 2 or not all(shapes[0]):
            found = ", ".join(str(shape) for shape in shapes[:4])
            raise DataError(
                "the pages differ in shape or are not 2D", where=where, found=f"pages of {found}", fix=DAMAGED
            )
        return (len(pages), shapes[0][0], shapes[0][1])
    shape = _single_page_shape(pages[0])
    if len(shape) != 3 or shape[0] < 2 or not all(shape):
        raise DataError(
            "a 3D volume of several pages is needed", where=where, found=f"one page of shape {pages[0].shape}",
            fix="give a multipage TIFF, one page per z",
        )  # fmt: skip
    return (shape[0], shape[1], shape[2])


def _single_page_shape(page: tifffile.TiffPage) -> tuple[int, ...]:
    """Shape of a page with an image depth, or of raw slices behind one page that only its description tells of."""
    if page.imagedepth > 1:
        return tuple(int(edge) for edge in page.shape)
    try:
        described = json.loads(page.description)
        shape = tuple(int(edge) for edge in described["shape"])
        if described.get("truncated") is True and page.compression == 1 and shape[-2:] == page.shape:
            return shape
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    return tuple(page.shape)


def _codec(page: tifffile.TiffPage, where: object) -> str:
    codec = CODECS.get(int(page.compression))
    if codec is None or page.predictor not in (1, 2):
        raise DataError(
            "the codec is not supported", where=where,
            found=f"compression {int(page.compression)}, predictor {int(page.predictor)}",
            fix=f"write it with one of {', '.join(sorted(set(CODECS.values())))}",
        )  # fmt: skip
    return codec


def _check_segments(page: tifffile.TiffPage, index: int, raw_bytes: int, size: int, where: object) -> int | None:
    """Check that a page's strips or tiles lie inside the file; return its start when it is one raw run."""
    offsets, counts = page.dataoffsets, page.databytecounts
    if len(offsets) != math.prod(page.chunked) or len(counts) != len(offsets):
        found = f"{len(offsets)} strips or tiles on page {index} instead of {math.prod(page.chunked)}"
        raise DataError("the TIFF's headers are not usable", where=where, found=found, fix=DAMAGED)
    for offset, count in zip(offsets, counts, strict=True):
        if offset <= 0 or count <= 0 or offset + count > size:
            found = f"page {index} has {count} bytes at {offset}, the file ends at {size}"
            raise DataError("the TIFF is truncated", where=where, found=found, fix=DAMAGED)
    if page.compression != 1 or page.is_tiled or page.predictor != 1:
        return None
    if page.imagedepth == 1 and raw_bytes > page.nbytes:  # slices behind one page: only the first has a header
        counts = (*counts[:-1], counts[-1] + raw_bytes - page.nbytes)
    if sum(counts) < raw_bytes or offsets[0] + raw_bytes > size:
        found = f"page {index} holds {min(sum(counts), size - offsets[0])} bytes of {raw_bytes}"
        raise DataError("the TIFF is truncated", where=where, found=found, fix=DAMAGED)
    joined = all(offsets[i] + counts[i] == offsets[i + 1] for i in range(len(offsets) - 1))
    return int(offsets[0]) if joined and page.fillorder == 1 else None
