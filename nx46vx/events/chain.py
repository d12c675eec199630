"""One event as one line, and the chain through a writer's lines.

A line is a JSON object without the newline: ``ts_ns, seq, writer, run_id, fence, event, prev``, the event's own fields,
and ``crc32`` over the bytes before it. ``prev`` is the SHA-512 (hex) of the raw bytes of the line before (128 zeros at
the start), so every line vouches for all earlier ones; the checksum vouches for the last one, which none follows.
"""

from __future__ import annotations

import hashlib
import re
from binascii import crc32
from collections.abc import Mapping
from datetime import date
from enum import Enum
from os import PathLike, fspath
from typing import Any

import numpy as np
import orjson

GENESIS = "0" * 128
RESERVED = frozenset(("ts_ns", "seq", "writer", "run_id", "fence", "event", "prev", "crc32"))
_NUMBERS, _WORDS = ("ts_ns", "seq", "fence"), ("writer", "event")
_CRC_LENGTH = len(b',"crc32":"00000000"}')
_FENCE = re.compile(rb'","fence":(\d{1,18}),"event":"')


def encode(record: Mapping[str, Any]) -> bytes:
    """The line of a record (no newline); NaN and infinities become null, unknown objects their ``repr``."""
    try:
        body = orjson.dumps(record, default=plain, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:  # integers beyond 64 bits, keys that are no strings, lone surrogates
        body = orjson.dumps(plain_tree(record))
    return b'%b,"crc32":"%08x"}' % (body[:-1], crc32(body[:-1]))


def digest(line: bytes) -> str:
    """What the next line's ``prev`` has to say."""
    return hashlib.sha512(line).hexdigest()


def checked(line: bytes) -> bool:
    """Whether a line ends in the checksum of its own bytes."""
    cut = len(line) - _CRC_LENGTH
    return cut > 0 and line[cut:] == b',"crc32":"%08x"}' % crc32(line[:cut])


def fault(line: bytes, seq: int, writer: str) -> str:
    """What is wrong with a line that does not follow in ``writer``'s chain as line ``seq``, in words."""
    if not line.startswith(b'{"ts_ns":') or line.find(b'"prev":"') < 0:
        return "no event line"
    if not line.startswith(b',"seq":%d,"writer":"%b","run_id":' % (seq, writer.encode()), line.find(b",")):
        return f"not line {seq} of writer {writer}: lines are missing, repeated or moved"
    return "the chain is broken here: the line does not follow from the one before it"


def fence_of(line: bytes) -> int:
    """The fencing epoch in a line; 0 if the line has none that can be read."""
    match = _FENCE.search(line)
    return int(match[1]) if match else 0


def parse(line: bytes) -> dict[str, Any]:
    """The record of a line.

    Raises:
        ValueError: the line is no JSON object, or lacks what every event has.
    """
    record = orjson.loads(line)
    if not isinstance(record, dict):
        raise ValueError("the line is no JSON object")
    strange = [name for name in _NUMBERS if type(record.get(name)) is not int or not 0 <= record[name] < 2**63]
    strange += [name for name in _WORDS if type(record.get(name)) is not str]
    if strange:
        raise ValueError(f"{strange[0]} is {str(record.get(strange[0]))[:40]!r}")
    return record


def plain(value: Any) -> Any:
    """One value that orjson does not know, as one that it does."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        if isinstance(value, np.bool_ | np.integer):
            return value.item()
        return float(str(value)) if isinstance(value, np.floating) else repr(value.item())  # shortest digits
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    return repr(value)


def plain_tree(value: Any) -> Any:
    """A whole value, made of nothing but what JSON has: slow, for what the fast way refuses."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**64 else str(value)
    if isinstance(value, str):
        return str(value).encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {plain_tree(str(key)): plain_tree(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_tree(item) for item in value]
    if isinstance(value, Enum):
        return plain_tree(value.value)
    if isinstance(value, date):
        return value.isoformat()
    return plain_tree(plain(value))
