"""Proofs that stand without the log: that one line is in a sealed segment."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nx46vx.errors import IntegrityError, UsageError, from_os_error
from nx46vx.events.merkle import inclusion_proof, leaf_hash, verify_inclusion
from nx46vx.events.packing import check_sealed
from nx46vx.events.segment import list_segments, read_seal
from nx46vx.runtime.files import REAL_FILES, Files


def prove_line(folder: Path, writer: str, seq: int, *, files: Files = REAL_FILES) -> dict[str, Any]:
    """A proof that line ``seq`` of a writer is in its segment: ``line``, ``index``, ``size``, ``path`` (hex digests)
    and the Merkle ``root`` that the segment's seal holds.

    Raises:
        UsageError: no sealed segment holds such a line.
        IntegrityError: the segment is damaged.
    """
    try:
        for paths in list_segments(files, Path(folder) / writer):
            if not files.exists(paths.seal):
                continue
            seal = read_seal(files, paths)
            if seal.first_seq <= seq < seal.first_seq + seal.lines:
                _, lines = check_sealed(files, paths, writer)
                index = seq - seal.first_seq
                path = inclusion_proof([leaf_hash(line) for line in lines], index)
                return {
                    "writer": writer, "seq": seq, "segment": seal.segment, "line": lines[index].decode(),
                    "index": index, "size": seal.lines, "path": [step.hex() for step in path], "root": seal.merkle_root,
                }  # fmt: skip
    except OSError as error:
        raise from_os_error(error, "reading the event log", error.filename or folder) from error
    raise UsageError("no sealed segment holds this line", where=Path(folder) / writer, found=seq)


def check_line_proof(proof: Mapping[str, Any], root: str) -> bool:
    """Whether a proof from ``prove_line`` shows its line under a root that the reader trusts (hex).

    Raises:
        IntegrityError: it has not the form of such a proof.
    """
    try:
        steps = [bytes.fromhex(step) for step in proof["path"]]
        leaf = leaf_hash(str(proof["line"]).encode())
        return verify_inclusion(leaf, int(proof["index"]), int(proof["size"]), steps, bytes.fromhex(root))
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError("not a proof of an event line", found=str(error)[:200]) from error
