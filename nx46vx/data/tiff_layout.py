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

from nx46vx.data.tiff_segments import DAMAGED, Segments
from nx46vx.errors import DataError, from_os_error

MAX_VOLUME_BYTES = 8 << 30
MAX_RATIO = 2000  #: deflate reaches 1032:1 and LZW about 1365:1; more than this is a false claim
FREE_BYTES = 128 << 20  #: up to here any ratio that a codec reaches is taken
LARGE_RATIO = 100  #: beyond: labels of real volumes reach 30:1, more is a bomb
MAX_PAGES = 8192
MAX_TAGS = 64 * MAX_PAGES  #: entries of all headers together; a page has about 15
CODECS = {1: "none", 5: "lzw", 8: "deflate", 32946: "deflate", 32773: "packbits", 50000: "zstd"}
_GREY = (0, 1)  # MinIsWhite, MinIsBlack
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
        DataError: empty, not a TIFF, a header outside the file, a loop, headers in one another, or more than
            ``MAX_PAGES`` pages or ``MAX_TAGS`` entries.
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
    all_tags = 0
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
        all_tags += tags
        if all_tags * entry > size or all_tags > MAX_TAGS:
            found = f"{all_tags} header entries by page {len(seen) - 1} of a file of {size} bytes"
            raise DataError("the TIFF's headers are not usable", where=where, found=found, fix=DAMAGED)
        file.seek(end)
        offset = struct.unpack(offset_format, file.read(offset_size))[0]
    if not seen:
        raise DataError("the TIFF has no pages", where=where, found="an empty chain of pages", fix=DAMAGED)
    return len(seen)


def check_layout(tiff: tifffile.TiffFile, page_count: int, size: int, where: object) -> Layout:
    """Check every page's header; ``size`` is the file's length in bytes.

    Raises:
        DataError: 2D, ragged pages, not uint8 or grey, unknown codec, impossible size, or pixel data outside the file
            or in one another.
    """
    segments = Segments(size, where)
    codecs: set[str] = set()
    shape: tuple[int, int, int] | None = None
    for index in range(page_count):
        page = cast(tifffile.TiffPage, tiff.pages[index])  # made anew each time: thousands would not fit in memory
        _check_kind(page, index, where)
        codecs.add(_codec(page, where))
        if shape is None:
            shape = _volume_shape(page, page_count, where)
            _check_size(math.prod(shape), shape, size, where)
        elif page.shape != shape[1:]:
            found = f"{page.shape} on page {index} and {shape[1:]} on page 0"
            raise DataError("the pages differ in shape or are not 2D", where=where, found=found, fix=DAMAGED)
        segments.add(page, index, math.prod(shape) if page_count == 1 else math.prod(shape[1:]))
    assert shape is not None  # a chain of no pages was refused
    segments.check_overlap()
    _check_size(segments.decoded_bytes, shape, size, where)
    return Layout(shape, "+".join(sorted(codecs)), segments.map_offset)


def _check_size(nbytes: int, shape: tuple[int, ...], size: int, where: object) -> None:
    """Refuse what could not be in a file of this size, before any memory is taken for it."""
    ratio = MAX_RATIO if nbytes <= FREE_BYTES else LARGE_RATIO
    if nbytes > MAX_VOLUME_BYTES or nbytes > ratio * size:
        raise DataError(
            "the TIFF claims impossible dimensions", where=where,
            found=f"shape {shape}, {nbytes} bytes, in a file of {size} bytes",
            fix=f"{DAMAGED}; volumes go up to {MAX_VOLUME_BYTES >> 30} GiB, and shrink to 1/{LARGE_RATIO} at most",
        )  # fmt: skip


def _check_kind(page: tifffile.TiffPage, index: int, where: object) -> None:
    if page.dtype != np.uint8 or page.bitspersample != 8:
        found = f"{page.dtype or 'an unknown type'} of {page.bitspersample} bits on page {index}"
        raise DataError("the volume has to be uint8", where=where, found=found, fix="convert it to 8 bit")
    if page.samplesperpixel != 1:
        found = f"{page.samplesperpixel} values per voxel on page {index}"
        raise DataError("the volume has to be greyscale", where=where, found=found, fix="convert it to greyscale")
    if page.photometric not in _GREY:
        found = f"photometric interpretation {page.photometric!s} on page {index}"
        raise DataError("the volume has to be greyscale", where=where, found=found, fix="convert it to greyscale")
    if not all(isinstance(edge, int) for edge in page.shape):
        found = f"page {index} of shape {page.shape}"
        raise DataError("the TIFF's headers are not usable", where=where, found=found, fix=DAMAGED)


def _volume_shape(page: tifffile.TiffPage, page_count: int, where: object) -> tuple[int, int, int]:
    """(z, y, x) by the first page."""
    if page_count > 1:
        if len(page.shape) != 2 or not all(page.shape):
            raise DataError(
                "the pages differ in shape or are not 2D", where=where, found=f"pages of {page.shape}", fix=DAMAGED
            )
        return (page_count, page.shape[0], page.shape[1])
    shape = _single_page_shape(page)
    if len(shape) != 3 or shape[0] < 2 or not all(shape):
        raise DataError(
            "a 3D volume of several pages is needed", where=where, found=f"one page of shape {page.shape}",
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
