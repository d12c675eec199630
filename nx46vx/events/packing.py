"""Reading segments, and closing them: check the chain, pack, seal, quarantine what is torn."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha512
from pathlib import Path

from nx46vx.errors import IntegrityError
from nx46vx.events import chain
from nx46vx.events.merkle import root_of
from nx46vx.events.segment import Position, Seal, SegmentPaths, read_seal
from nx46vx.runtime.digest import digest_bytes
from nx46vx.runtime.files import Files, remove_file, replace_file, write_new

#: A segment above this size when unpacked is refused, whatever its seal says.
MAX_SEGMENT_BYTES = 1 << 30
_CHUNK = 1 << 18
_LEVEL = 1  # chains of digests hardly compress: level 6 takes three times as long for a tenth less
_GZIP = 31  # zlib's name for the gzip container; its header then carries no time
_PREVIOUS = b'"prev":"'
_HOLE = b"\0" * 16  # what a power loss leaves of pages that were never written; JSON holds no NUL


def pack(raw: bytes) -> bytes:
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    return packer.compress(raw) + packer.flush()


def unpack(stored: bytes, where: Path, limit: int = MAX_SEGMENT_BYTES) -> bytes:
    """The lines of a packed segment, at most ``limit`` bytes.

    Raises:
        IntegrityError: not one whole gzip member, or more bytes than ``limit``.
    """
    engine = zlib.decompressobj(_GZIP)
    try:
        raw = engine.decompress(stored, limit + 1)
    except zlib.error as error:
        raise IntegrityError("a packed log segment is damaged", where=where, found=error) from error
    if len(raw) > limit:
        raise IntegrityError("a packed log segment is larger than allowed", where=where, found=f"over {limit} bytes")
    if not engine.eof or engine.unused_data:
        raise IntegrityError("a packed log segment does not end where it should", where=where)
    return raw


def stream_lines(files: Files, paths: SegmentPaths) -> Iterator[bytes]:
    """Whole lines of a segment, packed or plain, in bounded memory; a torn last line is left out.

    Raises:
        IntegrityError: the packed file is damaged.
        OSError: it cannot be read.
    """
    packed = files.exists(paths.packed)
    path = paths.packed if packed else paths.plain
    engine = zlib.decompressobj(_GZIP) if packed else None
    offset, rest = 0, b""
    while chunk := files.read(path, offset, _CHUNK):
        offset += len(chunk)
        while chunk:
            if engine is None:
                data, chunk = chunk, b""
            else:
                try:
                    data = engine.decompress(chunk, 4 * _CHUNK)
                except zlib.error as error:
                    raise IntegrityError("a packed log segment is damaged", where=path, found=error) from error
                chunk = engine.unconsumed_tail
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > MAX_SEGMENT_BYTES:
                raise IntegrityError("a log line has no end", where=path)
            yield from lines
        if engine is not None and engine.eof:
            return


def walk(raw: bytes, start: Position, writer: str, where: Path) -> tuple[list[bytes], Position, bytes]:
    """Check a segment's bytes: its whole lines, the position after them, and the torn bytes behind them.

    Raises:
        IntegrityError: anything but the tail is wrong; names file and line.
    """
    hole = raw.find(_HOLE)
    end = raw.rfind(b"\n", 0, hole if hole >= 0 else len(raw)) + 1
    lines = raw[:end].split(b"\n")[:-1]
    heads = [start.head.encode(), *[sha512(line).hexdigest().encode() for line in lines]]
    rest, end_seq = b',"writer":"%b","run_id":' % writer.encode(), start.count + len(lines)
    places = [b',"seq":%d%b' % (seq, rest) for seq in range(start.count, end_seq)]
    follows = [
        line.startswith(head, line.find(_PREVIOUS) + len(_PREVIOUS)) and line.startswith(place, line.find(b","))
        for line, head, place in zip(lines, heads, places, strict=False)
    ]
    if not all(follows):
        at = follows.index(False)
        wrong = chain.fault(lines[at], start.count + at, writer)
        raise IntegrityError("the event log is damaged", where=f"{where}, line {at + 1}", found=wrong)
    if lines and not chain.checked(lines[-1]):
        at_line = f"{where}, line {len(lines)}"
        raise IntegrityError("the event log is damaged", where=at_line, found="the line's checksum is wrong")
    return lines, Position(end_seq, heads[-1].decode()), raw[end:]


def close_segment(
    files: Files, paths: SegmentPaths, writer: str, start: Position, written: list[bytes] | None = None
) -> Seal:
    """Pack and seal a segment, quarantine its torn bytes, remove the plain file.

    ``written``: the lines that this process chained and wrote to it. If the file holds just these, byte for byte, the
    chain is sound and is not followed again; else it is checked as another process's file would be.

    Safe to repeat after a crash at any point: a packed file that is there is whole, and so is believed where the plain
    one has lost its end.

    Raises:
        IntegrityError: the chain is broken before the tail.
        OSError: the file system refuses; the plain file is then still there.
    """
    raw = files.read(paths.plain)
    if files.exists(paths.packed):
        raw = _merge(unpack(files.read(paths.packed), paths.packed), raw, paths)
    if written and raw == b"\n".join((*written, b"")):
        lines, end, torn = written, Position(start.count + len(written), chain.digest(written[-1])), b""
    else:
        lines, end, torn = walk(raw, start, writer, paths.plain)
    if files.exists(paths.torn):  # an earlier attempt got that far
        torn = files.read(paths.torn)
    elif torn:
        replace_file(files, paths.torn, torn)
    stored = pack(raw[: sum(map(len, lines)) + len(lines)])
    seal = _seal(lines, stored, start, end, writer, paths.number)
    if torn:
        seal = replace(seal, torn_bytes=len(torn), torn_sha512=digest_bytes(torn))
    pairs = [(paths.packed, stored), (paths.seal, seal.encoded())]
    for path, data in pairs:
        remove_file(files, _temporary(path))
        write_new(files, _temporary(path), data)
    for path, _ in pairs:
        files.rename(_temporary(path), path)
    files.fsync_folder(paths.folder)
    files.unlink(paths.plain)
    return seal


def check_sealed(files: Files, paths: SegmentPaths, writer: str) -> tuple[Seal, list[bytes]]:
    """Check a closed segment against its seal, to the last byte; gives the seal and the lines.

    Raises:
        IntegrityError: seal, stored bytes, chain, Merkle root or quarantined bytes do not agree.
        OSError: a file cannot be read.
    """
    seal = read_seal(files, paths)
    stored = files.read(paths.packed, 0, seal.stored_bytes + 1)
    if digest_bytes(stored) != seal.stored_sha512:
        raise IntegrityError("a packed log segment does not match its seal", where=paths.packed)
    raw = unpack(stored, paths.packed, min(seal.line_bytes, MAX_SEGMENT_BYTES))
    lines, end, rest = walk(raw, seal.start, writer, paths.packed)
    if rest:
        raise IntegrityError("a packed log segment ends in the middle of a line", where=paths.packed)
    torn = files.read(paths.torn, 0, seal.torn_bytes + 1) if files.exists(paths.torn) else b""
    expected = _seal(lines, stored, seal.start, end, writer, paths.number)
    if torn:
        expected = replace(expected, torn_bytes=len(torn), torn_sha512=digest_bytes(torn))
    if expected != seal:
        names = [name for name in seal.__dict__ if getattr(seal, name) != getattr(expected, name)]
        raise IntegrityError("a log segment does not match its seal", where=paths.seal, found=f"other {names}")
    return seal, lines


def _merge(kept: bytes, raw: bytes, paths: SegmentPaths) -> bytes:
    """The bytes of a segment that is there packed and plain: one of them has to begin with the other."""
    if raw.startswith(kept):
        return raw
    hole = raw.find(_HOLE)
    if kept.startswith(raw[: hole if hole >= 0 else len(raw)]):
        return kept
    raise IntegrityError("a log segment is there twice, with different lines", where=paths.plain)


def _seal(lines: list[bytes], stored: bytes, start: Position, end: Position, writer: str, number: int) -> Seal:
    return Seal(
        writer=writer, segment=number, first_seq=start.count, lines=len(lines),
        line_bytes=sum(map(len, lines)) + len(lines), fence=chain.fence_of(lines[-1]) if lines else 0,
        previous_head=start.head, head=end.head, merkle_root=root_of(lines).hex(),
        stored_bytes=len(stored), stored_sha512=digest_bytes(stored), torn_bytes=0, torn_sha512="",
    )  # fmt: skip


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")
