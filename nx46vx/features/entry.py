"""One cache entry on disk: the arrays of one case's samples, complete or absent, mapped read-only.

An entry is a folder ``<key>`` with four ``.npy`` files and ``manifest.json`` (sizes and SHA-512 of each). It is written
beside, made durable, and renamed into place. The features may be kept compressed instead (``features.zarr``, see
``chunked``): the arrays and the entry's digest are the same.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson

from nx46vx.errors import IntegrityError, from_os_error
from nx46vx.features.chunked import ChunkedArray, examine_chunked, write_chunked
from nx46vx.features.npy import map_array, npy_digest, read_layout
from nx46vx.runtime.atomic import fsync_folder
from nx46vx.runtime.digest import digest_file, digest_json

SCHEMA = 1
MANIFEST = "manifest.json"
ARRAYS = ("features", "y", "index", "group")
CHUNKED = "features.zarr"

Store = Literal["npy", "zarr"]


@dataclass(frozen=True)
class CaseSamples:
    """Samples of one case, ordered by (group, index); every array is mapped read-only from the cache.

    Pickling one sends its path, not its arrays: the other process maps the same files.
    """

    case_id: str
    role: str
    #: (2M, n) float32: M features in pool order, then their spatial gradient magnitudes; a ``ChunkedArray`` where they
    #: are kept compressed
    features: np.ndarray
    y: np.ndarray  #: (n,) uint8
    index: np.ndarray  #: (n,) int64, flat voxel index
    group: np.ndarray  #: (n,) int32, spatial block
    counts: tuple[int, int]  #: voxels labelled 0 and 1 in the whole volume
    digest: str  #: SHA-512 over the arrays' digests
    path: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return open_entry, (self.path, self.role)


def entry_path(root: Path, key: str) -> Path:
    """Where an entry lies in a cache."""
    return root / "entries" / key[:2] / key


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
        manifest, openers = _examine(path)
        arrays = {name: opener() for name, opener in openers.items()}
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


def _examine(path: Path) -> tuple[dict[str, Any], dict[str, Callable[[], Any]]]:
    """Manifest, and what opens each array; OSError, KeyError, TypeError or ValueError where something does not fit.

    Some microseconds per file, whatever their size: only headers are read.
    """
    manifest = orjson.loads((path / MANIFEST).read_bytes())
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise ValueError(f"{MANIFEST} has another schema")
    if manifest["digest"] != _payload_digest(manifest["files"]):
        raise ValueError(f"the digests in {MANIFEST} do not agree")
    _ = (str(manifest["case_id"]), *(int(count) for count in manifest["counts"]))
    openers: dict[str, Callable[[], Any]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in ARRAYS:
        stored = manifest["files"][name]
        if "parts" in stored:
            folder = path / CHUNKED
            shape, dtype = examine_chunked(folder, {part: told["bytes"] for part, told in stored["parts"].items()})
            shapes[name], openers[name] = shape, partial(ChunkedArray, folder, shape, dtype)
            continue
        file = path / f"{name}.npy"
        layout, found = read_layout(file)
        if not stored["bytes"] == found == layout.file_bytes:
            raise ValueError(f"{name}.npy has {found} bytes instead of {stored['bytes']}")
        shapes[name], openers[name] = layout.shape, partial(map_array, file, layout)
    if any(shapes[name] != shapes["features"][1:] for name in ARRAYS[1:]):
        raise ValueError("the arrays' shapes do not agree")
    return manifest, openers


def verify_entry(path: Path) -> None:
    """Read an entry's files again and compare their digests.

    Raises:
        IntegrityError: names the file that is not what was written.
    """
    with _damage(path):
        files = _examine(path)[0]["files"]
    expected = {path / f"{name}.npy": files[name]["sha512"] for name in ARRAYS if "parts" not in files[name]}
    for part, told in files["features"].get("parts", {}).items():
        expected[path / CHUNKED / part] = told["sha512"]
    for file, digest in expected.items():
        found = digest_file(file)
        if found != digest:
            raise IntegrityError(
                "a feature cache file is not what was written",
                where=file,
                found=f"SHA-512 {found[:16]}... instead of {digest[:16]}...",
                fix=f"delete {path}: it is rebuilt at the next start",
            )


def write_entry(
    path: Path, arrays: Mapping[str, np.ndarray], *, case_id: str, counts: tuple[int, int], facts: Mapping[str, Any],
    store: Store = "npy",
) -> None:  # fmt: skip
    """Write an entry whole or not at all; an older one in its place is replaced. The caller holds the key's lock.

    Raises:
        EnvironmentFault: it cannot be written, or ``store`` needs what is not installed.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        remove_leftovers(path)
        temporary.mkdir(parents=True)
        files: dict[str, dict[str, Any]] = {}
        for name in ARRAYS:
            if name == "features" and store == "zarr":
                files[name] = _write_chunked(temporary / CHUNKED, np.ascontiguousarray(arrays[name]))
                continue
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


def _write_chunked(folder: Path, array: np.ndarray) -> dict[str, Any]:
    """Write an array compressed; what the manifest says of it: as a plain file, and of each file there is."""
    parts = {
        name: {"bytes": (folder / name).stat().st_size, "sha512": digest_file(folder / name)}
        for name in write_chunked(folder, array)
    }
    size, digest = npy_digest(array)
    return {"bytes": size, "sha512": digest, "parts": parts}


def remove_leftovers(path: Path) -> None:
    """Delete what killed builders of this entry left beside it. The caller holds the key's lock."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def _payload_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    return digest_json({name: files[name]["sha512"] for name in ARRAYS})
