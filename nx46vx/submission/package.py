"""Masks into ``submission.zip``: the same masks give the same archive, byte for byte."""

from __future__ import annotations

import shutil
import stat
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nx46vx.data.volume_io import write_volume
from nx46vx.errors import IntegrityError, NX46Error
from nx46vx.runtime.atomic import replacing

MEMBER_SUFFIX = ".tif"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can hold
_CHUNK = 1 << 20


def encode_mask(mask: np.ndarray) -> bytes:
    """A mask as the bytes of a TIFF: one uncompressed page per z, no date, no program name.

    Args:
        mask: uint8 ``(z, y, x)`` of 0 and 1.

    Raises:
        NX46Error: another shape, dtype or value.
    """
    if mask.ndim != 3 or mask.dtype != np.uint8 or mask.size == 0 or mask.max() > 1:
        raise NX46Error(
            "a mask has to be a uint8 (z, y, x) volume of 0 and 1", where="encode_mask",
            found=f"{mask.dtype} of shape {mask.shape}" + (f", largest {mask.max()}" if mask.size else ""),
        )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="nx46vx-") as folder:
        path = Path(folder) / f"mask{MEMBER_SUFFIX}"
        write_volume(path, mask, compression=None)
        return path.read_bytes()


def write_submission(zip_path: Path, masks: Mapping[str, Path]) -> None:
    """Zip mask files with deflate as ``ID.tif`` at the archive's root, durably and atomically.

    Members are sorted by name and carry a fixed time and fixed permissions.

    Args:
        masks: case id -> its mask TIFF.

    Raises:
        IntegrityError: a mask file is missing.
        NX46Error: no masks, or a case id that cannot be a file name.
        EnvironmentFault: a file cannot be read or written.
    """
    if not masks:
        raise NX46Error("there is no mask to submit", where=zip_path, fix="predict the test volumes first")
    for case_id, source in masks.items():
        if not case_id or case_id.startswith(".") or any(char in case_id for char in "/\\\0"):
            raise NX46Error("a case id cannot be a file name", where=zip_path, found=repr(case_id))
        if not source.is_file():
            raise IntegrityError("a mask file is missing", where=source, fix="resume the run: it predicts it again")
    with replacing(zip_path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, source in sorted((f"{case_id}{MEMBER_SUFFIX}", source) for case_id, source in masks.items()):
            member = zipfile.ZipInfo(name, date_time=_EPOCH)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.create_system = 3  # Unix, wherever this runs: it says how to read the permissions
            member.external_attr = (stat.S_IFREG | 0o644) << 16
            member.file_size = source.stat().st_size
            with open(source, "rb") as content, archive.open(member, "w") as target:
                shutil.copyfileobj(content, target, _CHUNK)
