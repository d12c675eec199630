"""One checkpoint as a folder: ``ckpt_manifest.json`` and ``payload.safetensors``; written whole, read by validation."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from nx46vx.errors import IntegrityError, NX46Error, from_os_error
from nx46vx.runtime.checkpoint import manifest as manifests
from nx46vx.runtime.checkpoint.rng import decode_state
from nx46vx.runtime.digest import digest_bytes
from nx46vx.runtime.files import REAL_FILES, Files, write_new, write_over

MANIFEST = "ckpt_manifest.json"
PAYLOAD = "payload.safetensors"
#: A link, a folder or a pipe in a file's place, or a bad sector: this checkpoint is lost, an older one may not be.
_DAMAGE = {errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.EINVAL, errno.ENXIO, errno.EIO}


@dataclass(frozen=True)
class Checkpoint:
    """A valid checkpoint. ``manifest`` is the parsed manifest; ``arrays()`` reads and checks the payload."""

    path: Path
    manifest: dict[str, Any]
    files: Files = field(default=REAL_FILES, repr=False, compare=False)
    payload: bytes | None = field(default=None, repr=False, compare=False)

    @property
    def number(self) -> int:
        return int(self.manifest["number"])

    @property
    def anchor(self) -> dict[str, Any]:
        """The place in the event log that this checkpoint vouches for: ``writer``, ``head``, ``count``, ``path``."""
        return {
            "writer": self.manifest["merkle_writer"], "head": self.manifest["merkle_curr"],
            "count": self.manifest["merkle_count"], "path": str(self.path),
        }  # fmt: skip

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays, writable copies.

        Raises:
            IntegrityError: the payload is not the one that the manifest names.
        """
        payload = self.payload if self.payload is not None else read_payload(self.files, self.path, self.manifest)
        try:
            return {name: np.array(array) for name, array in load(payload).items()}
        except (SafetensorError, ValueError, TypeError, KeyError) as error:
            raise IntegrityError("the payload holds no arrays", where=self.path / PAYLOAD, found=error) from error

    def rng_state(self, name: str) -> Any:
        """State of the generator ``numpy``, ``python`` or ``torch``; None where none was used."""
        return decode_state(self.manifest[f"rng_state_{name}"])


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays (booleans, integers, floats up to 64 bits) as safetensors, byte for byte the same for equal arrays.

    Raises:
        NX46Error: another dtype.
    """
    ready = {}
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise NX46Error("a checkpoint cannot hold this dtype", where=name, found=array.dtype)
        ready[name] = array.astype(array.dtype.newbyteorder("="), copy=False)
    return bytes(save(ready))


def write_checkpoint(files: Files, folder: Path, manifest: bytes, payload: bytes) -> None:
    """Fill a new folder, durable inside; its own name is not yet."""
    files.mkdir(folder)
    write_new(files, folder / PAYLOAD, payload)
    write_new(files, folder / MANIFEST, manifest)
    files.fsync_folder(folder)


def rewrite_checkpoint(files: Files, folder: Path, manifest: bytes, payload: bytes) -> None:
    """Fill a folder that was filled before and has lost its name, durable inside."""
    write_over(files, folder / PAYLOAD, payload)
    write_over(files, folder / MANIFEST, manifest)


def read_checkpoint(files: Files, path: Path) -> Checkpoint:
    """Read and check one checkpoint folder.

    Raises:
        IntegrityError: it is not whole, with path and reason.
    """
    manifest = read_manifest(files, path)
    return Checkpoint(path, manifest, files, read_payload(files, path, manifest))


def read_manifest(files: Files, path: Path) -> dict[str, Any]:
    if files.is_link(path):
        raise IntegrityError("a checkpoint is a link", where=path)
    raw = _read(files, path / MANIFEST, manifests.MAX_BYTES)
    try:
        return manifests.parse(raw)
    except IntegrityError as error:
        raise IntegrityError(error.what, where=path / MANIFEST, found=error.found, fix=error.fix) from error


def read_payload(files: Files, path: Path, manifest: Mapping[str, Any]) -> bytes:
    payload = _read(files, path / PAYLOAD, manifest["payload_bytes"])
    if len(payload) != manifest["payload_bytes"] or digest_bytes(payload) != manifest["sha512_payload"]:
        raise IntegrityError("the payload does not match its manifest", where=path / PAYLOAD)
    return payload


def _read(files: Files, path: Path, limit: int) -> bytes:
    try:
        return files.read(path, 0, limit + 1)
    except FileNotFoundError as error:
        raise IntegrityError("a file of the checkpoint is missing", where=path) from error
    except OSError as error:
        if error.errno in _DAMAGE:
            raise IntegrityError("a file of the checkpoint cannot be read", where=path, found=error.strerror) from error
        raise from_os_error(error, "reading a checkpoint", path) from error
