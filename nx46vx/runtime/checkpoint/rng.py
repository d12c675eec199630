"""States of random generators as JSON: what JSON lacks (tuples, bytes, arrays, integers beyond 64 bits) is marked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nx46vx.errors import IntegrityError, NX46Error

#: Why a manifest holds no generator state, unless the caller says otherwise.
NOT_USED = "not used: every draw is a function of the seed and a spawn key"
GENERATORS = ("numpy", "python", "torch")
_MARKS = {"__tuple__", "__int__", "__bytes__", "__array__"}


def encode_state(value: Any) -> Any:
    """A generator's state (``bit_generator.state``, ``random.getstate()``, ``torch.get_rng_state().numpy()``) as JSON.

    Raises:
        TypeError: it holds something that cannot be written exactly.
    """
    if value is None or isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        return value if -(2**53) < value < 2**53 else {"__int__": hex(value)}
    if isinstance(value, bytes):
        return {"__bytes__": value.hex()}
    if isinstance(value, np.generic):
        return encode_state(value.item())
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return {"__array__": [value.dtype.str, list(value.shape), value.tobytes().hex()]}
    if isinstance(value, tuple):
        return {"__tuple__": [encode_state(item) for item in value]}
    if isinstance(value, list):
        return [encode_state(item) for item in value]
    if isinstance(value, Mapping) and not _MARKS & set(value):
        return {str(key): encode_state(item) for key, item in value.items()}
    raise TypeError(f"a generator's state holds a {type(value).__name__}")


def decode_state(value: Any) -> Any:
    """The state that ``encode_state`` wrote.

    Raises:
        IntegrityError: not something that ``encode_state`` writes.
    """
    if isinstance(value, list):
        return [decode_state(item) for item in value]
    if not isinstance(value, dict):
        return value
    if not _MARKS & set(value):
        return {key: decode_state(item) for key, item in value.items()}
    try:
        ((mark, content),) = value.items()
        if mark == "__tuple__":
            return tuple(decode_state(item) for item in content)
        if mark == "__int__":
            return int(content, 16)
        if mark == "__bytes__":
            return bytes.fromhex(content)
        dtype, shape, data = content
        if np.dtype(dtype).kind not in "biuf":
            raise ValueError(f"dtype {dtype}")
        return np.frombuffer(bytes.fromhex(data), np.dtype(dtype)).reshape(shape).copy()
    except (ValueError, TypeError) as error:
        raise IntegrityError("a generator's state is damaged", found=str(error)[:200]) from error


def rng_fields(rng: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's ``rng_state_*`` and, for those that are null, ``rng_state_reasons``.

    ``rng``: generator -> its state, or a text that says why there is none.
    """
    unknown = set(rng) - set(GENERATORS)
    if unknown:
        raise NX46Error("no such random generator", found=sorted(unknown), fix=f"use {', '.join(GENERATORS)}")
    fields: dict[str, Any] = {"rng_state_reasons": {}}
    for name in GENERATORS:
        state = rng.get(name, NOT_USED)
        if state is None or isinstance(state, str):
            fields["rng_state_reasons"][name] = state or NOT_USED
            fields[f"rng_state_{name}"] = None
        else:
            fields[f"rng_state_{name}"] = encode_state(state)
    return fields
