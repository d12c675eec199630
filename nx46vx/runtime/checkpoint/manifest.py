"""``ckpt_manifest.json``: made in one form, read strictly.

The file is JSON with sorted keys, in exactly one spelling, and carries the SHA-512 of itself without that field; so any
changed byte is noticed. Nothing in it is ever executed or unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from nx46vx.errors import IntegrityError, NX46Error
from nx46vx.runtime.digest import digest_bytes
from nx46vx.runtime.record import parse_strictly

SCHEMA_VERSION = 1
MAX_BYTES = 16 << 20
CURSOR = ("epoch", "candidate_index", "candidate_total", "iter", "max_iter")
KINDS = ("light", "full")

_TEXT, _COUNT, _TABLE, _ANY = (str,), (int,), (dict,), (dict, list, str, int, float, type(None))
_FIELDS: dict[str, tuple[type, ...]] = {
    "schema_version": _COUNT, "ts_ns": _COUNT, "run_id": _TEXT, "version": _TEXT, "git_sha": (str, type(None)),
    "owner": _TEXT, "number": _COUNT, "kind": _TEXT, "fence": _COUNT, **dict.fromkeys(CURSOR, _COUNT),
    "model_state": _TABLE, "optimizer_state": (dict, type(None)),
    "rng_state_numpy": _ANY, "rng_state_python": _ANY, "rng_state_torch": _ANY, "rng_state_reasons": _TABLE,
    "best_metrics": _TABLE, "data_cursor": _TABLE, "identity": _TABLE,
    "merkle_prev": _TEXT, "merkle_curr": _TEXT, "merkle_writer": _TEXT, "merkle_count": _COUNT,
    "sha512_payload": _TEXT, "payload_bytes": _COUNT, "sha512_manifest": _TEXT,
}  # fmt: skip


def render(fields: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest with these fields; ``sha512_manifest`` is computed here.

    Raises:
        NX46Error: a state that JSON cannot hold exactly (NaN, infinity, integers beyond 64 bits).
    """
    for name in ("model_state", "optimizer_state", "data_cursor"):
        _refuse_not_finite(fields[name], name)
    try:
        return _bytes({**fields, "sha512_manifest": digest_bytes(_bytes(fields))})
    except TypeError as error:
        raise NX46Error("this state cannot be written as JSON", found=error, fix="put it into arrays") from error


def parse(raw: bytes) -> dict[str, Any]:
    """A manifest's fields.

    Raises:
        IntegrityError: with the reason; the caller adds where.
    """
    if len(raw) > MAX_BYTES:
        raise IntegrityError("the manifest is too large", found=f"more than {MAX_BYTES} bytes")
    try:
        fields = parse_strictly(raw)
    except ValueError as error:
        raise IntegrityError("the manifest is not valid JSON", found=str(error)[:200]) from error
    if not isinstance(fields, dict):
        raise IntegrityError("the manifest is no JSON object", found=type(fields).__name__)
    if fields.get("schema_version") != SCHEMA_VERSION:
        raise IntegrityError(
            "the manifest has an unknown version", found=repr(fields.get("schema_version"))[:80],
            fix=f"this program reads version {SCHEMA_VERSION}",
        )  # fmt: skip
    _check_types(fields)
    rest = {name: value for name, value in fields.items() if name != "sha512_manifest"}
    try:
        whole = _bytes(fields) == raw and digest_bytes(_bytes(rest)) == fields["sha512_manifest"]
    except TypeError as error:
        raise IntegrityError("the manifest holds what no manifest holds", found=str(error)[:200]) from error
    if not whole:
        raise IntegrityError("the manifest does not match its own digest")
    return fields


def _bytes(fields: Mapping[str, Any]) -> bytes:
    return orjson.dumps(
        fields,
        option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE,
    )


def _check_types(fields: dict[str, Any]) -> None:
    if set(fields) != set(_FIELDS):
        missing, unknown = sorted(set(_FIELDS) - set(fields)), sorted(set(fields) - set(_FIELDS))
        raise IntegrityError("the manifest has other fields", found=f"missing {missing}, unknown {unknown}"[:400])
    for name, kinds in _FIELDS.items():
        value = fields[name]
        if (
            not isinstance(value, kinds)
            or isinstance(value, bool)
            or (isinstance(value, int) and kinds is _COUNT and value < 0)
        ):
            raise IntegrityError("a field of the manifest has the wrong type", found=f"{name}: {value!r}"[:200])
    if fields["kind"] not in KINDS:
        raise IntegrityError("the manifest has an unknown kind", found=repr(fields["kind"])[:80])
    if not all(isinstance(value, str) for value in fields["identity"].values()):
        raise IntegrityError("a field of the manifest has the wrong type", found="identity holds more than text")


def _refuse_not_finite(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_not_finite(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _refuse_not_finite(item, f"{where}[{index}]")
    elif isinstance(value, float | np.floating | np.ndarray) and not np.isfinite(value).all():
        raise NX46Error("a checkpoint's state is not finite", where=where, found=value, fix="put it into arrays")
