"""One cache entry on disk: the arrays of one case's samples, complete or absent, mapped read-only.

An entry is a folder ``<key>`` with four ``.npy`` files and ``manifest.json`` (sizes and SHA-512 of each). It is written
beside, made durable, and renamed into place.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from nx46vx.errors import IntegrityError, from_os_error
from nx46vx.features.npy import Layout, map_array, read_layout
from nx46vx.runtime.atomic import fsync_folder
from nx46vx.runtime.digest import digest_file, digest_json

SCHEMA = 1
MANIFEST = "manifest.json"
ARRAYS = ("features", "y", "index", "group")


@dataclass(frozen=True)
class CaseSamples:
    """Samples of one case, ordered by (group, index); every array is mapped read-only from the cache.

    Pickling one sends its path, not its arrays: the other process maps the same files.
    """

    case_id: str
    role: str
    features: np.ndarray  #: (2M, n) float32: M features in pool order, then their spatial gradient magnitudes
    y: np.ndarray  #: (n,) uint8
    index: np.ndarray  #: (n,) int64, flat voxel index
    group: np.ndarray  #: (n,) int32, spatial block
    counts: tuple[int, int]  #: voxels labelled 0 and 1 in the whole volume
    digest: str  #: SHA-512 over the arrays' digests
    path: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return open_entry, (self.path, self.role)


def entry_problem(path: Path) -> str | None:
    """What is wrong with an entry, judged by its manifest, sizes and headers; None if nothing. Reads no payload."""
    try:
        _examine(path)
    except OSError as error:
        return f"{Path(error.filename or path).name}: {error.strerror}"
    except (KeyError, TypeError, ValueError, EOFError) as error:
        return str(error) or type(error).__name__
    return None


def open_entry(path: Path, role: str) -> CaseSamples:
    """Map an entry.

    Raises:
        IntegrityError: the entry is not there, or is damaged.
    """
    with _damage(path):
        manifest, layouts = _examine(path)
        arrays = {name: map_array(path / f"{name}.npy", layout) for name, layout in layouts.items()}
    zeros, ones = manifest["counts"]
    return CaseSamples(
        case_id=str(manifest["case_id"]),
        role=role,
        counts=(int(zeros), int(ones)),
        digest=manifest["digest"],
        path=path,
        **arrays,
    )


def read_facts(path: Path) -> dict[str, Any]:
    """What an entry's manifest says its samples were made from.

    Raises:
        IntegrityError: the entry is not there, or is damaged.
    """
    with _damage(path):
        return dict(_examine(path)[0]["facts"])


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Whatever is wrong with an entry, said in one way."""
    try:
        yield
    except (OSError, KeyError, TypeError, ValueError, EOFError) as error:
        raise IntegrityError(
            "a feature cache entry is damaged or absent", where=path, found=error, fix="start again: it is rebuilt"
        ) from error


def _examine(path: Path) -> tuple[dict[str, Any], dict[str, Layout]]:
    """Manifest and arrays' layouts; OSError, KeyError, TypeError or ValueError where something does not fit.

    A few microseconds per file, whatever their size: only headers are read.
    """
    manifest = orjson.loads((path / MANIFEST).read_bytes())
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise ValueError(f"{MANIFEST} has another schema")
    if manifest["digest"] != _payload_digest(manifest["files"]):
        raise ValueError(f"the digests in {MANIFEST} do not agree")
    _ = (str(manifest["case_id"]), *(int(count) for count in manifest["counts"]))
    layouts: dict[str, Layout] = {}
    for name in ARRAYS:
        layouts[name], found = read_layout(path / f"{name}.npy")
        expected = manifest["files"][name]["bytes"]
        if not expected == found == layouts[name].file_bytes:
            raise ValueError(f"{name}.npy has {found} bytes instead of {expected}")
    samples = layouts["features"].shape[-1]
    if any(layouts[name].shape != (samples,) for name in ARRAYS[1:]):
        raise ValueError("the arrays' shapes do not agree")
    return manifest, layouts


def verify_entry(path: Path) -> None:
    """Read an entry's files again and compare their digests.

    Raises:
        IntegrityError: names the file that is not what was written.
    """
    with _damage(path):
        files = _examine(path)[0]["files"]
    for name in ARRAYS:
        file = path / f"{name}.npy"
        found = digest_file(file)
        if found != files[name]["sha512"]:
            raise IntegrityError(
                "a feature cache file is not what was written",
                where=file,
                found=f"SHA-512 {found[:16]}... instead of {files[name]['sha512'][:16]}...",
                fix=f"delete {path}: it is rebuilt at the next start",
            )


def write_entry(
    path: Path, arrays: Mapping[str, np.ndarray], *, case_id: str, counts: tuple[int, int], facts: Mapping[str, Any]
) -> None:
    """Write an entry whole or not at all; an older one in its place is replaced. The caller holds the key's lock."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        remove_leftovers(path)
        temporary.mkdir(parents=True)
        files: dict[str, dict[str, Any]] = {}
        for name in ARRAYS:
            file = temporary / f"{name}.npy"
            with open(file, "xb") as handle:
                np.save(handle, np.ascontiguousarray(arrays[name]), allow_pickle=False)
                handle.flush()
                os.fsync(handle.fileno())
            files[name] = {"bytes": file.stat().st_size, "sha512": digest_file(file)}
        manifest = {
            "schema": SCHEMA,
            "case_id": case_id,
            "counts": list(counts),
            "digest": _payload_digest(files),
            "files": files,
            "facts": dict(facts),
        }
        with open(temporary / MANIFEST, "xb") as handle:
            handle.write(orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY) + b"\n")
            handle.flush()
            os.fsync(handle.fileno())
        fsync_folder(temporary)
        if path.exists():  # damaged: readers keep what they have mapped
            os.rename(path, path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"))
        os.rename(temporary, path)
        fsync_folder(path.parent)
        remove_leftovers(path)
    except OSError as error:
        raise from_os_error(error, "writing the feature cache", path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Delete what killed builders of this entry left beside it. The caller holds the key's lock."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def _payload_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    return digest_json({name: files[name]["sha512"] for name in ARRAYS})
