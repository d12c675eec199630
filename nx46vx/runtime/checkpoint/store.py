"""Checkpoints of every owner in one or two roots: committed in an order that survives any crash, found by checking."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from nx46vx.errors import IntegrityError, NX46Error, UsageError, from_os_error
from nx46vx.runtime.checkpoint import manifest as manifests
from nx46vx.runtime.checkpoint.folder import MANIFEST, Checkpoint, pack_arrays, read_checkpoint
from nx46vx.runtime.checkpoint.retention import removable
from nx46vx.runtime.checkpoint.rng import rng_fields
from nx46vx.runtime.checkpoint.shelf import Shelf, valid_owner
from nx46vx.runtime.checkpoint.version import code_version
from nx46vx.runtime.digest import digest_bytes
from nx46vx.runtime.files import REAL_FILES, Files
from nx46vx.runtime.sink import EventSink, NullSink

#: ``merkle_prev`` of an owner's first checkpoint.
NO_ANCHOR = "0" * 128


@dataclass
class _Owner:
    """What a store remembers of an owner it commits for."""

    next_number: int
    last_anchor: str
    valid: dict[Path, set[int]]  # root -> numbers of this run's checkpoints there
    spare: dict[Path, Path]  # root -> a folder that has durably lost its name, to be written over
    mirror_ready: bool  # cleared of what others left half done, and has not refused anything since


class CheckpointStore:
    """Checkpoints below ``root/<owner>/ckpt-<number>`` and, if given, the same below ``mirror``.

    ``identity``: digests (text) that a checkpoint has to share with this run to be continued exactly. ``fence``: the
    epoch of the lock (:class:`~nx46vx.runtime.lock.DirectoryLock`) that this process holds for the owners it commits
    for. ``keep``: checkpoints kept per owner, two or more. One thread at a time per owner.
    """

    def __init__(
        self, root: Path, *, mirror: Path | None = None, run_id: str, identity: Mapping[str, str], fence: int = 0,
        files: Files = REAL_FILES, keep: int = 2,
    ) -> None:  # fmt: skip
        self.root, self.mirror = Path(root), Path(mirror) if mirror is not None else None
        self.run_id, self.identity, self.fence, self.keep = run_id, dict(identity), fence, keep
        self._files = files
        self._owners: dict[str, _Owner] = {}
        self._claimed: set[str] = set()

    def claim(self, owner: str) -> None:
        """Take an owner over: commits of writers with a lower fencing epoch are refused from now on.

        To be called once the owner's lock is held and before its event log is opened; ``commit`` does it otherwise.

        Raises:
            StoppedError: a writer with a higher epoch has taken over already.
            EnvironmentFault: the file system refuses.
        """
        try:
            self._shelf(self.root, owner).claim()
        except OSError as error:
            raise from_os_error(error, "opening the checkpoint store", self.root / owner) from error
        self._claimed.add(owner)

    def commit(
        self, owner: str, *, cursor: Mapping[str, int], model_state: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray], metrics: Mapping[str, Any], data_cursor: Mapping[str, Any], sink: EventSink,
        rng: Mapping[str, Any] | None = None, kind: str = "light", optimizer_state: Mapping[str, Any] | None = None,
    ) -> Checkpoint:  # fmt: skip
        """Write one checkpoint; it and the events before it are durable when this returns.

        Order: log synced, payload, manifest, folder, rename, oldest retired, parent folder, the same in the mirror. A
        mirror that refuses costs an event (``CHECKPOINT_MIRROR_FAILED``), not the run. ``cursor``: ``epoch,
        candidate_index, candidate_total, iter, max_iter``. ``rng``: generator name (``numpy, python, torch``) -> its
        state, or a text that says why there is none. ``metrics`` may hold NaN (null in the manifest), states not.

        Raises:
            StoppedError: another writer with a higher fencing epoch has taken this owner over.
            EnvironmentFault: the file system refuses; earlier checkpoints stand. Another try writes new files.
            NX46Error: a state that cannot be written exactly.
        """
        started = time.perf_counter()
        payload = pack_arrays(arrays)
        shelf = self._shelf(self.root, owner)
        try:
            known = self._owners.get(owner) or self._take_over(owner)
            shelf.check_fence()
            anchor = sink.sync()
            fields = self._fields(owner, known, cursor, kind, anchor, payload)
            fields |= {
                "model_state": dict(model_state), "best_metrics": dict(metrics), "data_cursor": dict(data_cursor),
                "optimizer_state": dict(optimizer_state) if optimizer_state is not None else None,
                **rng_fields(rng or {}),
            }  # fmt: skip
            manifest = manifests.render(fields)
            known.next_number += 1
            path = self._move_in(self.root, owner, known, fields["number"], manifest, payload, sink)
        except OSError as error:
            raise from_os_error(error, "writing a checkpoint", self.root / owner) from error
        known.last_anchor = fields["merkle_curr"]
        self._copy_to_mirror(owner, known, fields["number"], manifest, payload, sink)
        sink.emit(
            "CHECKPOINT_COMMIT", owner=owner, number=fields["number"], kind=kind, cursor=dict(cursor),
            sha512_payload=fields["sha512_payload"], bytes=len(payload) + len(manifest),
            seconds=time.perf_counter() - started,
        )  # fmt: skip
        return Checkpoint(path, orjson.loads(manifest), self._files)

    def latest(self, owner: str, sink: EventSink | None = None) -> Checkpoint | None:
        """The newest valid checkpoint in either root, read whole and checked; None if there is none.

        Emits ``CHECKPOINT_REJECTED`` (path, reason) for each that is damaged, of another run or of another owner, and
        ``CHECKPOINT_ROOTS_DIFFER`` if the roots do not hold the same newest one.

        Raises:
            EnvironmentFault: a root cannot be read.
        """
        sink = sink if sink is not None else NullSink()
        found = [self._newest(root, owner, sink) for root in self._roots()]
        newest = max((one for one in found if one is not None), key=_age, default=None)
        if newest is not None and any(one is None or one.manifest != newest.manifest for one in found):
            sink.emit(
                "CHECKPOINT_ROOTS_DIFFER", owner=owner, chosen=str(newest.path),
                newest={str(root): one.number if one else None for root, one in zip(self._roots(), found, strict=True)},
            )  # fmt: skip
        return newest

    def owners(self) -> list[str]:
        """Everyone who has a folder in either root, sorted."""
        names: set[str] = set()
        for root in self._roots():
            if self._files.exists(root):
                names.update(name for name in self._list(root) if valid_owner(name))
        return sorted(names)

    def identity_differences(self, manifest: Mapping[str, Any]) -> list[str]:
        """Names of the identity digests in which a checkpoint and this run differ, sorted."""
        theirs = manifest["identity"]
        return sorted(name for name in theirs.keys() | self.identity if theirs.get(name) != self.identity.get(name))

    def tidy(self) -> None:
        """Clear away what stopped writers left half done, durably; for a run's normal end, before it is sealed.

        Raises:
            EnvironmentFault: the file system refuses.
        """
        for owner in self.owners():
            shelf = self._shelf(self.root, owner)
            try:
                shelf.tidy()
                self._files.fsync_folder(shelf.folder)
            except OSError as error:
                raise from_os_error(error, "tidying the checkpoint store", shelf.folder) from error

    def manifest_digests(self) -> dict[str, str]:
        """``<owner>/<checkpoint>`` -> SHA-512 of its manifest file, for all in the first root: what a run's seal lists.

        Raises:
            EnvironmentFault: a manifest cannot be read.
        """
        digests = {}
        for owner in self.owners():
            shelf = self._shelf(self.root, owner)
            for path in map(shelf.path, shelf.numbers()):
                try:
                    digests[f"{owner}/{path.name}"] = digest_bytes(self._files.read(path / MANIFEST))
                except OSError as error:
                    raise from_os_error(error, "reading a checkpoint", path / MANIFEST) from error
        return digests

    def anchors(self) -> list[dict[str, Any]]:
        """What each valid checkpoint in both roots says of the event log: ``writer``, ``head``, ``count``, ``path``."""
        found = (read for root in self._roots() for owner in self.owners() for read in self._valid(root, owner))
        return [checkpoint.anchor for checkpoint in found]

    def _valid(self, root: Path, owner: str) -> list[Checkpoint]:
        shelf = self._shelf(root, owner)
        return [one for number in shelf.numbers() if (one := self._checked(shelf, number, owner, NullSink()))]

    def _roots(self) -> list[Path]:
        return [self.root] if self.mirror is None else [self.root, self.mirror]

    def _list(self, path: Path) -> list[str]:
        try:
            return self._files.listdir(path)
        except OSError as error:
            raise from_os_error(error, "reading the checkpoint store", path) from error

    def _shelf(self, root: Path, owner: str) -> Shelf:
        if not valid_owner(owner):
            raise UsageError("not an owner's name", where=root, found=repr(owner), fix="use letters, digits and ._=+@-")
        return Shelf(self._files, root / owner, self.fence)

    def _newest(self, root: Path, owner: str, sink: EventSink) -> Checkpoint | None:
        shelf = self._shelf(root, owner)
        try:
            numbers = shelf.numbers()
        except OSError as error:
            raise from_os_error(error, "reading the checkpoint store", shelf.folder) from error
        return next((one for number in numbers[::-1] if (one := self._checked(shelf, number, owner, sink))), None)

    def _checked(self, shelf: Shelf, number: int, owner: str, sink: EventSink) -> Checkpoint | None:
        path = shelf.path(number)
        try:
            checkpoint = read_checkpoint(self._files, path)
            for name, expected in (("run_id", self.run_id), ("owner", owner), ("number", number)):
                if checkpoint.manifest[name] != expected:
                    raise IntegrityError(
                        f"the checkpoint has another {name}", where=path, found=checkpoint.manifest[name]
                    )
        except IntegrityError as error:
            sink.emit(
                "CHECKPOINT_REJECTED", owner=owner, path=str(error.where), reason=error.what, found=str(error.found)
            )
            return None
        return checkpoint

    def _take_over(self, owner: str) -> _Owner:
        """Claim an owner, if that was not done, and learn where its checkpoints stand; no number is used again.

        What is half done is cleared away before the numbers are read: from then on a writer that was replaced in the
        middle of a commit has nothing to give a number to, and its next commit meets the fence.
        """
        if owner not in self._claimed:
            self.claim(owner)
        self._shelf(self.root, owner).tidy()
        mirror_ready = self._tidy_mirror(owner)
        newest = self.latest(owner)
        used = {root: self._shelf(root, owner).numbers() for root in self._roots()}
        valid = {root: {one.number for one in self._valid(root, owner)} for root in self._roots()}
        number = max((number for numbers in used.values() for number in numbers), default=0) + 1
        anchor = newest.manifest["merkle_curr"] if newest else NO_ANCHOR
        known = self._owners[owner] = _Owner(number, anchor, valid, {}, mirror_ready)
        return known

    def _tidy_mirror(self, owner: str) -> bool:
        """Whether there is a mirror and it takes files."""
        if self.mirror is None:
            return False
        try:
            self._shelf(self.mirror, owner).tidy()
        except OSError:  # the commit says so
            return False
        return True

    def _fields(
        self, owner: str, known: _Owner, cursor: Mapping[str, int], kind: str, anchor: Mapping[str, Any], payload: bytes
    ) -> dict[str, Any]:
        if set(cursor) != set(manifests.CURSOR) or kind not in manifests.KINDS:
            raise NX46Error("not a checkpoint's cursor or kind", where=owner, found=f"{sorted(cursor)}, {kind}")
        version, git_sha = code_version()
        return {
            "schema_version": manifests.SCHEMA_VERSION, "ts_ns": time.time_ns(), "run_id": self.run_id,
            "version": version, "git_sha": git_sha, "owner": owner, "number": known.next_number, "kind": kind,
            "fence": self.fence, **{name: int(cursor[name]) for name in manifests.CURSOR}, "identity": self.identity,
            "merkle_prev": known.last_anchor, "merkle_curr": anchor["head"], "merkle_writer": anchor["writer"],
            "merkle_count": anchor["count"], "sha512_payload": digest_bytes(payload), "payload_bytes": len(payload),
        }  # fmt: skip

    def _move_in(
        self, root: Path, owner: str, known: _Owner, number: int, manifest: bytes, payload: bytes, sink: EventSink
    ) -> Path:
        """A checkpoint moves in and what is too old moves out, both durable with one sync of the names.

        Whatever part of that a power loss undoes, the checkpoint before this one stays. The next commit writes over
        what moved out.
        """
        shelf, first, valid = self._shelf(root, owner), self._shelf(self.root, owner), known.valid[root]
        path = shelf.put(number, manifest, payload, first.check_fence, known.spare.pop(root, None))
        retired: list[Path] = []
        try:
            for old in removable(valid | {number}, self.keep):
                with suppress(FileNotFoundError):  # a writer that was replaced in the middle of a commit took it
                    retired.append(shelf.retire(old))
                valid.discard(old)
        except OSError as error:  # nothing is lost by keeping too much
            sink.emit("CHECKPOINT_PRUNE_FAILED", owner=owner, path=str(shelf.folder), error=str(error))
        shelf.sync()
        valid.add(number)
        if retired:
            known.spare[root] = retired.pop()
        shelf.remove(retired)
        return path

    def _copy_to_mirror(
        self, owner: str, known: _Owner, number: int, manifest: bytes, payload: bytes, sink: EventSink
    ) -> None:
        if self.mirror is None:
            return
        try:
            if not known.mirror_ready:
                self._shelf(self.mirror, owner).tidy()
                known.mirror_ready = True
            self._move_in(self.mirror, owner, known, number, manifest, payload, sink)
        except OSError as error:
            known.mirror_ready = False
            folder = str(self.mirror / owner)
            sink.emit("CHECKPOINT_MIRROR_FAILED", owner=owner, number=number, path=folder, error=str(error))


def _age(checkpoint: Checkpoint) -> tuple[int, int, int]:
    """Newest is largest: by number, then fencing epoch; the clock, which may be wrong, comes last."""
    manifest = checkpoint.manifest
    return manifest["number"], manifest["fence"], manifest["ts_ns"]
