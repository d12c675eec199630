"""TIFFs that lie, each made byte by byte: what a hostile or damaged file may hold, by name."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile

RNG = np.random.default_rng(11)
#: A sound image of 6 planes of 16 x 20 voxels, and a sound label of the same shape.
IMAGE = RNG.integers(0, 255, (6, 16, 20), dtype=np.uint8)
LABEL = (IMAGE % 3).astype(np.uint8)

ASCII, SHORT, LONG, DOUBLE, LONG8 = 2, 3, 4, 12, 16
_FORMATS = {SHORT: "H", LONG: "I", LONG8: "Q"}
WIDTH, LENGTH, BITS, CODEC, PHOTOMETRIC, OFFSETS, SAMPLES, ROWS, COUNTS = 256, 257, 258, 259, 262, 273, 277, 278, 279
PLANAR, PREDICTOR, COLORMAP, TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_COUNTS = 284, 317, 320, 322, 323, 324, 325
EXTRA, FORMAT, DEPTH, TILE_DEPTH, DESCRIPTION = 338, 339, 32997, 32998, 270
_PLACES = (OFFSETS, COUNTS, TILE_OFFSETS, TILE_COUNTS)

Tags = dict[int, Any]


def raw_page(plane: np.ndarray, **changes: Any) -> tuple[Tags, list[bytes]]:
    """Tags and strips of one plane, uncompressed in one strip, with some tags changed (by the names above)."""
    height, width = plane.shape
    tags: Tags = {
        WIDTH: width, LENGTH: height, BITS: 8, CODEC: 1, PHOTOMETRIC: 1, SAMPLES: 1, ROWS: height,
    }  # fmt: skip
    return tags | {globals()[name]: value for name, value in changes.items()}, [plane.tobytes()]


def packed_page(plane: np.ndarray, codec: int = 8, **changes: Any) -> tuple[Tags, list[bytes]]:
    """The same deflated (8) or by LZW (5)."""
    tags, _ = raw_page(plane, CODEC=codec, **changes)
    return tags, [deflated(plane) if codec == 8 else by_lzw(plane)]


def deflated(plane: np.ndarray) -> bytes:
    return zlib.compress(plane.tobytes())


def by_lzw(plane: np.ndarray) -> bytes:
    return bytes(imagecodecs.lzw_encode(plane.tobytes()))


def assemble(
    pages: Iterable[tuple[Tags, Sequence[bytes]]], *, big: bool = False, order: str = "<", back_to: int | None = None
) -> bytes:
    """A TIFF of these pages: strips, then values, then header of each page.

    Offsets and counts of the strips are filled in where the tags do not name their own. A tag's value is a number, a
    list of numbers, text, or ``(type, count, raw value or offset)`` to lie with; None leaves it out. After the last
    page comes page ``back_to`` again.
    """
    mark = b"II" if order == "<" else b"MM"
    out = bytearray(
        struct.pack(order + "2sHHHQ", mark, 43, 8, 0, 0) if big else struct.pack(order + "2sHI", mark, 42, 0)
    )
    link, headers = 8 if big else 4, []
    offset_format, entry = ("Q", "HHQ8s") if big else ("I", "HHI4s")
    room = 8 if big else 4
    for given, strips in pages:
        places = []
        for strip in strips:
            places.append(len(out))
            out += strip + b"\0" * (len(strip) % 2)
        tiled = TILE_WIDTH in given
        tags = {
            (TILE_OFFSETS if tiled else OFFSETS): places,
            (TILE_COUNTS if tiled else COUNTS): [len(strip) for strip in strips],
            **given,
        }  # fmt: skip
        rows = []
        for code, value in sorted(tags.items()):
            if value is None:
                continue
            kind, count, field = value if isinstance(value, tuple) else _value(code, value, big, order)
            if not isinstance(field, bytes):
                field = struct.pack(order + offset_format, field)
            elif len(field) > room:
                body, field = field, struct.pack(order + offset_format, len(out))
                out += body + b"\0" * (len(body) % 2)
            rows.append(struct.pack(order + entry, code, kind, count, field.ljust(room, b"\0")))
        headers.append(len(out))
        struct.pack_into(order + offset_format, out, link, len(out))
        out += struct.pack(order + ("Q" if big else "H"), len(rows)) + b"".join(rows)
        link = len(out)
        out += bytes(room)
    if back_to is not None:
        struct.pack_into(order + offset_format, out, link, headers[back_to])
    return bytes(out)


def _value(code: int, value: Any, big: bool, order: str) -> tuple[int, int, bytes]:
    """Type, count and bytes of an honest value."""
    if isinstance(value, str):
        return ASCII, len(value) + 1, value.encode() + b"\0"
    values = value if isinstance(value, list) else [value]
    kind = (LONG8 if big else LONG) if code in _PLACES or max(values) > 0xFFFF else SHORT
    return kind, len(values), struct.pack(f"{order}{len(values)}{_FORMATS[kind]}", *values)


def file_of(make: Callable[..., Any] = raw_page, planes: np.ndarray = IMAGE, **changes: Any) -> bytes:
    """A TIFF whose pages all have the same tags changed."""
    return assemble(make(plane, **changes) for plane in planes)


def one_lying_page(make: Callable[..., Any] = raw_page, at: int = 2, **changes: Any) -> bytes:
    """A TIFF of which one page has tags changed."""
    return assemble(make(plane, **(changes if z == at else {})) for z, plane in enumerate(IMAGE))


def written(volume: np.ndarray, **options: Any) -> bytes:
    """A TIFF as tifffile writes it: headers first."""
    raw = io.BytesIO()
    tifffile.imwrite(raw, volume, **{"photometric": "minisblack", "metadata": None, **options})
    return raw.getvalue()


def cut(raw: bytes, share: float) -> bytes:
    return raw[: int(len(raw) * share)]


def chain_of(pages: int) -> bytes:
    """This many sound headers of tiny planes, which share one strip."""
    tags = [
        (WIDTH, 2), (LENGTH, 2), (BITS, 8), (CODEC, 1), (PHOTOMETRIC, 1), (OFFSETS, 8), (SAMPLES, 1), (ROWS, 2),
        (COUNTS, 4),
    ]  # fmt: skip
    body = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", code, LONG, 1, value) for code, value in tags)
    size = len(body) + 4
    headers = [body + struct.pack("<I", 12 + (n + 1) * size if n + 1 < pages else 0) for n in range(pages)]
    return struct.pack("<2sHI", b"II", 42, 12) + b"abcd" + b"".join(headers)


def overlapping_headers() -> bytes:
    """Thousands of headers of thousands of entries each, in one another: 4 KB further is the next one."""
    words = np.full(400_000, 4000, "<u2")
    raw = bytearray(struct.pack("<2sHI", b"II", 42, 8) + words.tobytes())
    for number in range(60):
        start = 8 + 4096 * number
        struct.pack_into("<H", raw, start, 4000)
        struct.pack_into("<I", raw, start + 2 + 4000 * 12, start + 4096)
    return bytes(raw)


def bomb(codec: int, edge: int = 8192, planes: int = 100) -> bytes:
    """Planes of zeros: 6.7 GB in a few MB, at a ratio that the codec can really reach."""
    encode = {5: imagecodecs.lzw_encode, 8: imagecodecs.zlib_encode, 50000: imagecodecs.zstd_encode}[codec]
    strip = bytes(encode(bytes(edge * edge)))
    tags, _ = raw_page(np.zeros((1, 1), np.uint8), WIDTH=edge, LENGTH=edge, ROWS=edge, CODEC=codec)
    return assemble((tags, [strip]) for _ in range(planes))


def overfull() -> bytes:
    """Strips that say they hold 320 voxels and unfold to 64 MB each."""
    strip = zlib.compress(bytes(64 << 20))
    return assemble((packed_page(plane)[0], [strip]) for plane in IMAGE)


def tiles(width: int, length: int, codec: int = 8) -> bytes:
    """Planes of 16 x 20 voxels of one tile of any size."""
    tile = bytes(min(width * length, 1 << 16))
    page = {
        WIDTH: 20, LENGTH: 16, BITS: 8, CODEC: codec, PHOTOMETRIC: 1, SAMPLES: 1, TILE_WIDTH: width,
        TILE_LENGTH: length,
    }  # fmt: skip
    return assemble((page, [zlib.compress(tile) if codec == 8 else tile]) for _ in range(6))


def filled(strip: Callable[[np.ndarray], bytes], codec: int = 8) -> bytes:
    """Packed planes whose strips hold something else."""
    return assemble((raw_page(plane, CODEC=codec)[0], [strip(plane)]) for plane in IMAGE)


def big(**changes: Any) -> bytes:
    return assemble((raw_page(plane, **changes) for plane in IMAGE), big=True)


def big_header(first: int, size: int = 8, tags: int = 0) -> bytes:
    """The start of a BigTIFF."""
    return struct.pack("<2sHHHQQ", b"II", 43, size, 0, first, tags).ljust(110_000, b"\0")


def described(shape: str) -> bytes:
    """One page whose description says that slices lie behind it."""
    return assemble([raw_page(IMAGE[0], DESCRIPTION=f'{{"shape": [{shape}, 16, 20], "truncated": true}}')])


def zipped() -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("v.tif", written(IMAGE))
    return raw.getvalue()


def one_row_strips() -> bytes:
    """Millions of strips of one voxel, which share their bytes."""
    rows = 10**6
    plane = np.zeros((rows, 1), np.uint8)
    lying = {"ROWS": 1, "OFFSETS": list(range(8, 8 + rows)), "COUNTS": [1] * rows}
    return assemble(raw_page(plane, **lying) for _ in range(2))


NOT_TIFF, CUT, HEADERS, DAMAGED = "not a TIFF", "truncated", "headers are not usable", "damaged or truncated"
SIZE, KIND, GREY, CODECS, SHARED = "impossible dimensions", "has to be uint8", "greyscale", "codec", "in one another"
HUGE, MOST = 10**6, 2**32 - 1

#: What a file holds, and words of the reason for which it has to be refused.
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty"),
    "five bytes": (lambda: file_of()[:5], NOT_TIFF),
    "header only": (lambda: struct.pack("<2sHI", b"II", 42, 0), "no pages"),
    "header that points nowhere": (lambda: struct.pack("<2sHI", b"II", 42, 1000), CUT),
    "another magic number": (lambda: struct.pack("<2sHI", b"II", 41, 8).ljust(99), NOT_TIFF),
    "byte order of the other kind": (lambda: b"MM" + file_of()[2:], NOT_TIFF),
    "byte order and magic of the other kind": (lambda: b"MM\0*" + file_of()[4:], CUT),
    "PNG": (lambda: bytes(imagecodecs.png_encode(IMAGE[0])), NOT_TIFF),
    "zip": (zipped, NOT_TIFF),
    "gzip": (lambda: gzip.compress(written(IMAGE)), NOT_TIFF),
    "pickle": (lambda: pickle.dumps(IMAGE), NOT_TIFF),
    "text": (lambda: b"<html>404</html>", NOT_TIFF),
    "cut in the first header": (lambda: written(IMAGE)[:60], CUT),
    "cut in raw data": (lambda: cut(written(IMAGE), 0.9), CUT),
    "cut in LZW data": (lambda: cut(written(IMAGE, compression="lzw"), 0.9), CUT),
    "cut in deflated data": (lambda: cut(written(IMAGE, compression="deflate"), 0.9), CUT),
    "raw data cut at the very end": (lambda: written(IMAGE, volumetric=True)[:-1], CUT),
    "LZW of zeros": (lambda: filled(lambda plane: bytes(300), 5), DAMAGED),
    "deflate of noise": (lambda: filled(lambda plane: RNG.bytes(300)), DAMAGED),
    "deflate with another checksum": (lambda: filled(lambda plane: deflated(plane)[:-1] + b"x"), DAMAGED),
    "deflate that ends early": (lambda: filled(lambda plane: deflated(plane[:9])), DAMAGED),
    "deflate that holds more": (lambda: filled(lambda plane: deflated(plane[:, :, None].repeat(2, 2))), DAMAGED),
    "deflate that unfolds to 64 MB": (overfull, DAMAGED),
    "LZW that ends early": (lambda: filled(lambda plane: by_lzw(plane[:9]), 5), DAMAGED),
    "packbits that end early": (
        lambda: filled(lambda plane: bytes(imagecodecs.packbits_encode(plane[:9].tobytes())), 32773), DAMAGED),
    "a page after itself": (lambda: assemble(map(raw_page, IMAGE), back_to=-1), "loop"),
    "the first page after the last": (lambda: assemble(map(raw_page, IMAGE), back_to=0), "loop"),
    "70,000 pages": (lambda: chain_of(70_000), "more than"),
    "8,000 pages of one strip": (lambda: chain_of(8_000), SHARED),
    "headers in one another": (overlapping_headers, HEADERS),
    "one page": (lambda: assemble([raw_page(IMAGE[0])]), "several pages"),
    "no width": (lambda: file_of(WIDTH=None), "differ in shape"),
    "width 0": (lambda: file_of(WIDTH=0), "differ in shape"),
    "one page wider": (lambda: one_lying_page(WIDTH=21), "differ in shape"),
    "one page of another type": (lambda: one_lying_page(BITS=16), KIND),
    "one page of three values": (lambda: one_lying_page(SAMPLES=3), GREY),
    "wider than its raw data": (lambda: file_of(WIDTH=200), CUT),
    "wider than its packed data": (lambda: file_of(packed_page, WIDTH=40), DAMAGED),
    "higher than its raw data": (lambda: file_of(LENGTH=200, ROWS=200), CUT),
    "a million cubed": (lambda: file_of(WIDTH=HUGE, LENGTH=HUGE, ROWS=HUGE), SIZE),
    "a million cubed, deflated": (lambda: file_of(packed_page, WIDTH=HUGE, LENGTH=HUGE, ROWS=HUGE), SIZE),
    "a million cubed in one page": (
        lambda: assemble([packed_page(IMAGE[0], WIDTH=HUGE, LENGTH=HUGE, ROWS=HUGE, DEPTH=HUGE)]), SIZE),
    "the largest width there is": (lambda: file_of(WIDTH=MOST, LENGTH=MOST, ROWS=MOST), SIZE),
    "the largest depth there is": (lambda: assemble([raw_page(IMAGE[0], DEPTH=MOST)]), SIZE),
    "a described depth": (lambda: described("1000000"), SIZE),
    "a described infinity": (lambda: described("1e400"), DAMAGED),
    "a described number of 5000 digits": (lambda: described("9" * 5000), "several pages"),
    "a description of brackets": (lambda: assemble([raw_page(IMAGE[0], DESCRIPTION="[" * 100_000)]), DAMAGED),
    "a width that is text": (lambda: file_of(WIDTH="twenty"), HEADERS),
    "a width that is a fraction": (lambda: file_of(WIDTH=(DOUBLE, 1, 8)), HEADERS),
    "two widths": (lambda: file_of(WIDTH=[20, 20]), HEADERS),
    "no offsets": (lambda: file_of(OFFSETS=None), HEADERS),
    "no byte counts": (lambda: file_of(COUNTS=None), DAMAGED),
    "offsets that are text": (lambda: file_of(OFFSETS="abc"), HEADERS),
    "two billion offsets": (lambda: file_of(OFFSETS=(LONG, 2**31, 8)), HEADERS),
    "two billion byte counts": (lambda: file_of(COUNTS=(LONG, 2**31, 8)), DAMAGED),
    "more strips than rows": (lambda: file_of(packed_page, OFFSETS=[8, 200], COUNTS=[160, 160]), SHARED),
    "strips of no rows": (lambda: file_of(ROWS=0), DAMAGED),
    "a strip in the header": (lambda: one_lying_page(OFFSETS=[2]), CUT),
    "a strip beyond the end": (lambda: one_lying_page(OFFSETS=[MOST]), CUT),
    "byte count 0": (lambda: one_lying_page(COUNTS=[0]), CUT),
    "byte count beyond the end": (lambda: one_lying_page(COUNTS=[10**6]), CUT),
    "byte count too small": (lambda: one_lying_page(COUNTS=[319]), CUT),
    "byte count too large": (lambda: one_lying_page(COUNTS=[321]), HEADERS),
    "packed byte count too small": (lambda: one_lying_page(packed_page, COUNTS=[200]), DAMAGED),
    "packed byte count too large": (lambda: one_lying_page(packed_page, COUNTS=[900]), SHARED),
    "strips that overlap": (lambda: one_lying_page(at=1, OFFSETS=[100]), SHARED),
    "all pages in one strip": (lambda: file_of(OFFSETS=[8]), SHARED),
    "a million strips in one another": (one_row_strips, SHARED),
    "a bomb in deflate": (lambda: bomb(8), SIZE),
    "a bomb in LZW": (lambda: bomb(5), SIZE),
    "a bomb in zstd": (lambda: bomb(50000), SIZE),
    "float with NaN": (lambda: written(np.full((6, 16, 20), np.nan, np.float32)), KIND),
    "double": (lambda: written(np.zeros((6, 16, 20), np.float64)), KIND),
    "half": (lambda: written(np.zeros((6, 16, 20), np.float16)), KIND),
    "complex": (lambda: written(np.zeros((6, 16, 20), np.complex64)), KIND),
    "int8": (lambda: written(LABEL.astype(np.int8)), KIND),
    "uint16": (lambda: written(LABEL.astype(np.uint16)), KIND),
    "uint32": (lambda: written(LABEL.astype(np.uint32)), KIND),
    "bool": (lambda: written(LABEL > 0), KIND),
    "4 bit": (lambda: file_of(BITS=4), KIND),
    "12 bit": (lambda: file_of(BITS=12), KIND),
    "an unknown sample format": (lambda: file_of(FORMAT=99), KIND),
    "RGB": (lambda: written(np.zeros((6, 16, 20, 3), np.uint8), photometric="rgb"), GREY),
    "RGB in planes": (
        lambda: written(np.zeros((6, 3, 16, 20), np.uint8), photometric="rgb", planarconfig="separate"), GREY),
    "an extra sample": (lambda: file_of(SAMPLES=2, EXTRA=[0]), GREY),
    "65,535 samples": (lambda: file_of(SAMPLES=65_535), GREY),
    "palette": (lambda: file_of(PHOTOMETRIC=3, COLORMAP=[0] * 768), GREY),
    "YCbCr": (lambda: file_of(PHOTOMETRIC=6), GREY),
    "JPEG": (lambda: file_of(CODEC=7), CODECS),
    "JPEG 2000": (lambda: file_of(CODEC=34712), CODECS),
    "CCITT": (lambda: file_of(CODEC=4), CODECS),
    "a private codec": (lambda: file_of(CODEC=65000), CODECS),
    "an unknown codec": (lambda: file_of(CODEC=9999), CODECS),
    "a predictor for floats": (lambda: file_of(packed_page, PREDICTOR=3), CODECS),
    "an unknown predictor": (lambda: one_lying_page(packed_page, PREDICTOR=7), CODECS),
    "BigTIFF that begins at 2^63": (lambda: big_header(2**63), DAMAGED),
    "BigTIFF that begins at its end": (lambda: big_header(2**64 - 1), DAMAGED),
    "BigTIFF with offsets of 4 bytes": (lambda: b"II+\0\4\0\0\0" + big()[8:], DAMAGED),
    "BigTIFF with 2^63 entries": (lambda: big_header(16, tags=2**63), CUT),
    "BigTIFF with 5000 entries": (lambda: big_header(16, tags=5000), DAMAGED),
    "BigTIFF with a strip at 2^63": (lambda: big(OFFSETS=[2**63]), CUT),
    "BigTIFF with a strip to 2^64": (lambda: big(OFFSETS=[2**64 - 8]), CUT),
    "BigTIFF with a strip of 2^63 bytes": (lambda: big(COUNTS=[2**63]), CUT),
    "BigTIFF with 2^61 byte counts": (lambda: big(COUNTS=(LONG8, 2**61, 8)), DAMAGED),
    "BigTIFF 2^62 wide": (lambda: big(WIDTH=(LONG8, 1, struct.pack("<Q", 2**62))), SIZE),
    "tiles of no width": (lambda: tiles(0, 16), DAMAGED),
    "tiles of 3 x 3": (lambda: tiles(3, 3), HEADERS),
    "tiles of 60,000 x 60,000": (lambda: tiles(60_000, 60_000), SIZE),
    "tiles of 2^31 x 2^31": (lambda: tiles(2**31, 2**31), SIZE),
    "raw tiles that are too short": (lambda: tiles(300, 300, codec=1), CUT),
    "tiles and strips": (lambda: file_of(TILE_WIDTH=16, TILE_LENGTH=16), HEADERS),
    "an entry of an unknown type, which the library only logs": (lambda: file_of(EXTRA=(99, 1, 0)), DAMAGED),
    "a text beyond the end, which the library only logs": (lambda: file_of(DESCRIPTION=(ASCII, 2**31, 8)), DAMAGED),
}  # fmt: skip


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def a_link_loop(path: Path) -> None:
    path.symlink_to(path.with_suffix(".b"))
    path.with_suffix(".b").symlink_to(path)


def a_socket(path: Path) -> None:
    import socket

    place = os.getcwd()
    os.chdir(path.parent)  # the whole path may be too long for a socket
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(place)


#: What stands in a file's place, likewise.
PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (a_pipe, "not a regular file"),
    "folder": (lambda path: path.mkdir(), "not a regular file"),
    "socket": (a_socket, "cannot be (opened|read)"),
    "link to nothing": (a_link_to("nowhere"), "cannot be (opened|read)"),
    "link loop": (a_link_loop, "cannot be (opened|read)"),
    "link to an endless device": (a_link_to("/dev/zero"), "not a regular file"),
    "link to itself": (lambda path: path.symlink_to(path.name), "cannot be (opened|read)"),
}


@cache
def content(kind: str) -> bytes:
    return FILES[kind][0]()


def lay(path: Path, kind: str) -> str:
    """Put this kind of file there; returns words of the reason."""
    if kind in PLACES:
        make, reason = PLACES[kind]
        make(path)
    else:
        reason = FILES[kind][1]
        path.write_bytes(content(kind))
    return reason
