"""The checkpoint store: what was committed comes back exactly, what is damaged is never used."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from nx46vx.errors import EnvironmentFault, IntegrityError, NX46Error, StoppedError, UsageError
from nx46vx.events import EventLog, verify_log
from nx46vx.runtime.checkpoint import CheckpointStore, audit_checkpoints
from nx46vx.runtime.checkpoint import manifest as manifests
from nx46vx.runtime.checkpoint.folder import read_checkpoint
from nx46vx.runtime.checkpoint.retention import removable
from nx46vx.runtime.digest import digest_bytes
from nx46vx.runtime.files import RealFiles
from nx46vx.runtime.sink import MemorySink, NullSink

STATE = {"w": np.linspace(-1, 1, 5), "count": np.array(3, np.int32), "mask": np.array([[True, False]])}


def store_in(folder, **options) -> CheckpointStore:
    given = {"run_id": "r", "identity": {"grid": "g", "config": "c", "numeric_env": "n"}}
    return CheckpointStore(folder / "checkpoints", **(given | options))


def commit(store, iteration=10, owner="k0", sink=None, **options):
    cursor = {"epoch": 0, "candidate_index": 2, "candidate_total": 135, "iter": iteration, "max_iter": 120}
    given = {
        "cursor": cursor, "model_state": {"step": 0.1, "restarts": 2}, "arrays": STATE, "metrics": {"f1": 0.5},
        "data_cursor": {"cases": ["a"], "offset": 0}, "sink": sink or NullSink(),
    }  # fmt: skip
    return store.commit(owner, **(given | options))


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("ckpt-"))


# what comes back


def test_a_checkpoint_comes_back_exactly(tmp_path):
    rng = {"numpy": np.random.default_rng(3).bit_generator.state, "python": random.Random(4).getstate()}
    commit(store_in(tmp_path), rng=rng, optimizer_state={"momentum": 0.25}, kind="full")
    found = store_in(tmp_path).latest("k0")
    manifest = found.manifest
    assert (manifest["iter"], manifest["candidate_index"], manifest["kind"]) == (10, 2, "full")
    assert (manifest["model_state"], manifest["optimizer_state"]) == ({"step": 0.1, "restarts": 2}, {"momentum": 0.25})
    arrays = found.arrays()
    assert arrays.keys() == STATE.keys()
    for name, array in STATE.items():
        assert arrays[name].dtype == array.dtype
        assert arrays[name].shape == array.shape
        assert arrays[name].tobytes() == array.tobytes()
    arrays["w"][0] = 5.0  # a copy: may be written to
    assert found.rng_state("numpy") == rng["numpy"]
    assert found.rng_state("python") == rng["python"]
    assert found.rng_state("torch") is None
    assert "not used" in manifest["rng_state_reasons"]["torch"]


def test_the_manifest_has_every_promised_field(tmp_path):
    manifest = json.loads((commit(store_in(tmp_path)).path / "ckpt_manifest.json").read_bytes())
    promised = (
        "ts_ns run_id version git_sha epoch candidate_index candidate_total iter max_iter model_state optimizer_state "
        "rng_state_numpy rng_state_python rng_state_torch best_metrics data_cursor merkle_prev merkle_curr "
        "sha512_payload schema_version identity fence"
    )
    assert set(promised.split()) <= manifest.keys()
    assert manifest["identity"] == {"grid": "g", "config": "c", "numeric_env": "n"}


def test_the_payload_is_plain_safetensors_named_by_its_digest(tmp_path):
    done = commit(store_in(tmp_path))
    payload = done.path / "payload.safetensors"
    assert digest_bytes(payload.read_bytes()) == done.manifest["sha512_payload"]
    assert np.array_equal(load_file(payload)["w"], STATE["w"])


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24.0).reshape(4, 6)[:, ::2], np.arange(6.0).reshape(2, 3).T, np.array(2.5),
        np.zeros((0, 3), np.float32), np.array([1, 2], ">i4"), np.array([np.nan, np.inf, -0.0]),
    ],
    ids=["strided", "transposed", "scalar", "empty", "big-endian", "not finite"],
)  # fmt: skip
def test_arrays_of_any_layout_come_back_equal(tmp_path, array):
    store = store_in(tmp_path)
    commit(store, arrays={"a": array})
    back = store.latest("k0").arrays()["a"]
    assert back.shape == array.shape
    assert np.array_equal(back, array, equal_nan=True)
    assert np.array_equal(np.signbit(back), np.signbit(array))


@pytest.mark.parametrize("bad", [{"a": float("nan")}, {"a": [1.0, np.inf]}, {"a": 2**70}, {"a": object()}, {1: 2}])
def test_a_state_that_json_would_change_is_refused(tmp_path, bad):
    store = store_in(tmp_path)
    with pytest.raises(NX46Error):
        commit(store, model_state=bad)
    assert store.latest("k0") is None


@pytest.mark.parametrize("bad", [np.array(["text"]), np.array([1j]), np.array([None])])
def test_arrays_that_cannot_be_kept_are_refused(tmp_path, bad):
    with pytest.raises(NX46Error, match="dtype"):
        commit(store_in(tmp_path), arrays={"a": bad})


def test_undefined_metrics_become_null(tmp_path):
    assert commit(store_in(tmp_path), metrics={"f1": float("nan")}).manifest["best_metrics"] == {"f1": None}


@pytest.mark.parametrize("owner", ["", "..", "a/b", ".hidden", "x" * 121])
def test_an_owner_has_a_name_that_is_safe_as_a_folder(tmp_path, owner):
    with pytest.raises(UsageError):
        commit(store_in(tmp_path), owner=owner)


# the chain through log and checkpoints


def test_checkpoints_are_links_in_the_event_chain(tmp_path):
    with EventLog(tmp_path / "events", "k0", run_id="r", background_sync_s=None) as log:
        store = store_in(tmp_path)
        log.emit("x")
        first = commit(store, 10, sink=log)
        log.emit("x")
        second = commit(store, 20, sink=log)
        third = commit(store_in(tmp_path), 30, sink=log)  # a new process goes on
    assert first.manifest["merkle_prev"] == "0" * 128
    assert second.manifest["merkle_prev"] == first.manifest["merkle_curr"]
    assert third.manifest["merkle_prev"] == second.manifest["merkle_curr"]
    assert (first.manifest["merkle_writer"], first.manifest["merkle_count"]) == ("k0", 2)
    anchors = store.anchors()
    assert len(anchors) == 2
    assert verify_log(tmp_path / "events", anchors) == []
    path = tmp_path / "events" / "k0" / "00000000.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    assert len(verify_log(tmp_path / "events", anchors)) == 2


def test_a_commit_is_an_event(tmp_path):
    sink = MemorySink()
    commit(store_in(tmp_path), sink=sink)
    (event,) = sink.named("CHECKPOINT_COMMIT")
    assert (event["owner"], event["number"], event["kind"]) == ("k0", 1, "light")


# which one is found


def test_the_newest_valid_one_is_found_whatever_the_names_say(tmp_path):
    store = store_in(tmp_path)
    commit(store, 10)
    done = commit(store, 20)
    folder = done.path.parent
    (folder / "ckpt-00000009").mkdir()
    shutil.copytree(done.path, folder / "ckpt-00000007")
    (folder / "LATEST").write_text("ckpt-00000007")
    sink = MemorySink()
    assert store_in(tmp_path).latest("k0", sink).manifest["iter"] == 20
    rejected = sink.named("CHECKPOINT_REJECTED")
    assert ["ckpt-00000009" in rejected[0]["path"], "ckpt-00000007" in rejected[1]["path"]] == [True, True]
    assert "number" in rejected[1]["reason"]
    assert commit(store_in(tmp_path), 30).number == 10  # never a number that was used


def test_a_checkpoint_of_another_run_or_owner_is_not_taken(tmp_path):
    done = commit(store_in(tmp_path, run_id="other"))
    sink = MemorySink()
    assert store_in(tmp_path).latest("k0", sink) is None
    assert "run_id" in sink.named("CHECKPOINT_REJECTED")[0]["reason"]
    shutil.copytree(done.path.parent, done.path.parent.with_name("k1"))
    assert store_in(tmp_path, run_id="other").latest("k1", sink) is None


def test_two_are_kept(tmp_path):
    store = store_in(tmp_path, mirror=tmp_path / "second")
    for iteration in range(10, 60, 10):
        commit(store, iteration)
    for root in (tmp_path / "checkpoints", tmp_path / "second"):
        assert names(root / "k0") == ["ckpt-00000004", "ckpt-00000005"]
    store.tidy()
    left = {path.name for path in (tmp_path / "checkpoints" / "k0").iterdir()}
    assert left == {"ckpt-00000004", "ckpt-00000005", "fence-00000000"}


def test_a_damaged_one_does_not_count_as_kept_and_is_left_for_inspection(tmp_path):
    store = store_in(tmp_path)
    commit(store, 10)
    done = commit(store, 20)
    (done.path / "payload.safetensors").write_bytes(b"")
    commit(store_in(tmp_path), 30)
    assert names(done.path.parent) == ["ckpt-00000001", "ckpt-00000002", "ckpt-00000003"]
    (done.path.parent / "ckpt-00000003" / "ckpt_manifest.json").unlink()
    assert store_in(tmp_path).latest("k0").manifest["iter"] == 10


def test_retention_counts_from_the_newest():
    assert removable([1, 2, 3, 7], 2) == [1, 2]
    assert removable([5], 2) == []
    with pytest.raises(ValueError, match="at least two"):
        removable([1], 1)


# two roots


def test_the_mirror_holds_the_same_bytes(tmp_path):
    done = commit(store_in(tmp_path, mirror=tmp_path / "second"))
    for name in ("ckpt_manifest.json", "payload.safetensors"):
        assert (tmp_path / "second" / "k0" / done.path.name / name).read_bytes() == (done.path / name).read_bytes()


def test_either_root_alone_is_enough(tmp_path):
    commit(store_in(tmp_path, mirror=tmp_path / "second"), 30)
    shutil.rmtree(tmp_path / "checkpoints")
    sink = MemorySink()
    found = store_in(tmp_path, mirror=tmp_path / "second").latest("k0", sink)
    assert found.manifest["iter"] == 30
    assert len(sink.named("CHECKPOINT_ROOTS_DIFFER")) == 1


@pytest.mark.parametrize("stale", ["checkpoints", "second"])
def test_when_the_roots_differ_the_newest_valid_one_wins_and_it_is_said(tmp_path, stale):
    store = store_in(tmp_path, mirror=tmp_path / "second")
    commit(store, 10)
    shutil.copytree(tmp_path / stale, tmp_path / "old")
    commit(store, 20)
    shutil.rmtree(tmp_path / stale)
    (tmp_path / "old").rename(tmp_path / stale)
    sink = MemorySink()
    found = store_in(tmp_path, mirror=tmp_path / "second").latest("k0", sink)
    assert found.manifest["iter"] == 20
    (event,) = sink.named("CHECKPOINT_ROOTS_DIFFER")
    assert sorted(event["newest"].values()) == [1, 2]
    assert stale not in event["chosen"]


def test_roots_that_agree_are_not_worth_a_word(tmp_path):
    sink = MemorySink()
    store = store_in(tmp_path, mirror=tmp_path / "second")
    commit(store, sink=sink)
    store.latest("k0", sink)
    assert {name for name, _ in sink.events} == {"CHECKPOINT_COMMIT"}


class Faulty(RealFiles):
    """The real file system, with operations that fail below one folder."""

    def __init__(self, folder, operations, code=errno.ENOSPC):
        self.folder, self.code, self.failing = str(folder), code, True
        self.handles, self.synced = {}, []
        for name in operations:
            setattr(self, name, self._failing(name, getattr(self, name)))

    def create(self, path):
        handle = super().create(path)
        self.handles[handle] = str(path)
        return handle

    def _failing(self, name, real):
        def call(first, *rest):
            path = self.handles.get(first, "") if isinstance(first, int) else str(first)
            if name.startswith("fsync"):
                self.synced.append(path)
            if self.failing and path.startswith(self.folder):
                raise OSError(self.code, os.strerror(self.code), path)
            return real(first, *rest)

        return call


@pytest.mark.parametrize("operation", ["mkdir", "write", "fsync", "rename"])
def test_a_mirror_that_refuses_costs_an_event_not_the_run(tmp_path, operation):
    files = Faulty(tmp_path / "second", [operation])
    store = store_in(tmp_path, mirror=tmp_path / "second", files=files)
    sink = MemorySink()
    commit(store, 10, sink=sink)
    assert "No space" in sink.named("CHECKPOINT_MIRROR_FAILED")[0]["error"]
    files.failing = False
    commit(store, 20, sink=sink)
    assert len(sink.named("CHECKPOINT_MIRROR_FAILED")) == 1
    assert names(tmp_path / "second" / "k0") == ["ckpt-00000002"]


def test_a_failed_sync_is_never_tried_again_on_the_same_file(tmp_path):
    store = store_in(tmp_path)
    commit(store, 10)
    files = Faulty(tmp_path / "checkpoints", ["fsync"], errno.EIO)
    store = store_in(tmp_path, files=files)
    with pytest.raises(EnvironmentFault) as failed:
        commit(store, 20)
    assert failed.value.exit_code == 7
    assert names(tmp_path / "checkpoints" / "k0") == ["ckpt-00000001"]
    files.failing = False
    commit(store, 30)
    assert len(files.synced) == len(set(files.synced))
    assert store.latest("k0").manifest["iter"] == 30


def test_a_store_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path):
    commit(store_in(tmp_path))
    files = Faulty(tmp_path / "checkpoints", ["listdir"], errno.EACCES)
    with pytest.raises(EnvironmentFault):
        store_in(tmp_path, files=files).latest("k0")
    files = Faulty(tmp_path / "checkpoints", ["read"], errno.EACCES)
    with pytest.raises(EnvironmentFault):
        store_in(tmp_path, files=files).latest("k0")


# fencing


def test_a_writer_that_was_replaced_cannot_commit(tmp_path):
    orphan = store_in(tmp_path, fence=1)
    commit(orphan, 10)
    store_in(tmp_path, fence=2).claim("k0")
    with pytest.raises(StoppedError, match="another process"):
        commit(orphan, 20)
    assert store_in(tmp_path).latest("k0").manifest["iter"] == 10
    with pytest.raises(StoppedError):
        commit(store_in(tmp_path, fence=1), 20)
    assert commit(store_in(tmp_path, fence=2), 20).manifest["fence"] == 2
    assert commit(orphan, 10, owner="k1").number == 1  # other owners are not concerned


def test_a_takeover_in_the_middle_of_a_commit_wins(tmp_path):
    """The orphan has checked its epoch already when the new writer takes over."""

    class TakenOver(MemorySink):
        def sync(self):
            store_in(tmp_path, fence=2).claim("k0")
            return super().sync()

    orphan = store_in(tmp_path, fence=1)
    with pytest.raises(StoppedError):
        commit(orphan, sink=TakenOver())
    assert store_in(tmp_path).latest("k0") is None
    assert not [path for path in (tmp_path / "checkpoints" / "k0").iterdir() if path.name.startswith(".tmp")]


def test_two_writers_of_one_epoch_cannot_overwrite_each_other(tmp_path):
    one, two = store_in(tmp_path), store_in(tmp_path)
    commit(one, 10)
    commit(two, 20)
    with pytest.raises(StoppedError):
        commit(one, 30)
    assert store_in(tmp_path).latest("k0").manifest["iter"] == 20


# identity


def test_differences_of_identity_are_named(tmp_path):
    manifest = commit(store_in(tmp_path)).manifest
    assert store_in(tmp_path).identity_differences(manifest) == []
    other = store_in(tmp_path, identity={"grid": "G", "config": "c", "features": "f"})
    assert other.identity_differences(manifest) == ["features", "grid", "numeric_env"]


def test_owners_are_listed_over_both_roots(tmp_path):
    store = store_in(tmp_path, mirror=tmp_path / "second")
    assert store.owners() == []
    commit(store, owner="k1")
    commit(store, owner="k0")
    shutil.rmtree(tmp_path / "checkpoints" / "k1")
    assert store.owners() == ["k0", "k1"]
    assert list(store.manifest_digests()) == ["k0/ckpt-00000001"]


# damage and hostility


@pytest.fixture
def small(tmp_path):
    """The manifest and payload of a small checkpoint."""
    done = commit(store_in(tmp_path), arrays={"w": np.arange(3.0)})
    return done.path


class Remembered(RealFiles):
    def __init__(self, folder):
        self.content = {path: path.read_bytes() for path in folder.iterdir()}

    def read(self, path, offset=0, size=-1):
        if path not in self.content:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return self.content[path][offset:] if size < 0 else self.content[path][offset : offset + size]


@pytest.mark.parametrize("name", ["ckpt_manifest.json", "payload.safetensors"])
def test_every_flipped_bit_and_every_truncation_is_noticed(small, name):
    files = Remembered(small)
    read_checkpoint(files, small)
    raw = files.content[small / name]
    changed = [raw[:length] for length in range(len(raw))] + [raw + b"\n", raw + b"\0"]
    for bit in range(8 * len(raw)):
        data = bytearray(raw)
        data[bit // 8] ^= 1 << bit % 8
        changed.append(bytes(data))
    for content in changed:
        files.content[small / name] = content
        with pytest.raises(IntegrityError):
            read_checkpoint(files, small)


def forged(small, **changes) -> bytes:
    """A manifest with other values and a digest that fits: what a careful forger would write."""
    fields = json.loads((small / "ckpt_manifest.json").read_bytes())
    fields.pop("sha512_manifest")
    fields = {name: value for name, value in (fields | changes).items() if value != "REMOVED"}
    try:
        return manifests.render({"optimizer_state": None, "data_cursor": {}, "model_state": {}} | fields)
    except NX46Error:
        return json.dumps(fields).encode()


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "JSON"), (b"\xff\xfe", "JSON"), (b"[" * 100_000, "JSON"), (b"[]", "object"),
        (b'{"a": NaN}', "NaN"), (b'{"a": 1e999}', "range"), (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"a": 1' + b"0" * 25 + b"}", "digits"), (b'{"a": 1, "a": 2}', "twice"),
        (b'{"x": {"a": 1, "a": 1}}', "twice"),
        (b'{"schema_version": 2}', "version"), (b'{"schema_version": "1"}', "version"),
        (b'{"schema_version": 1}', "fields"), (b'{"schema_version": 1} ' + b" " * (17 << 20), "large"),
    ],
)  # fmt: skip
def test_a_hostile_manifest_is_refused_by_path_and_reason(small, raw, reason):
    (small / "ckpt_manifest.json").write_bytes(raw)
    sink = MemorySink()
    assert store_in(small.parents[2]).latest("k0", sink) is None
    (event,) = sink.named("CHECKPOINT_REJECTED")
    assert event["path"] == str(small / "ckpt_manifest.json")
    assert reason in event["reason"] + event["found"]


@pytest.mark.parametrize(
    "changes",
    [
        {"iter": -1}, {"iter": "10"}, {"iter": 1.5}, {"iter": True}, {"iter": None}, {"kind": "medium"},
        {"model_state": []}, {"identity": {"grid": 3}}, {"sha512_payload": 5}, {"payload_bytes": -4},
        {"unknown_field": 1}, {"fence": "REMOVED"}, {"owner": None}, {"number": 2**63}, {"ts_ns": 10**30},
    ],
)  # fmt: skip
def test_a_forged_manifest_with_wrong_fields_is_refused(small, changes):
    (small / "ckpt_manifest.json").write_bytes(forged(small))
    assert store_in(small.parents[2]).latest("k0") is not None
    (small / "ckpt_manifest.json").write_bytes(forged(small, **changes))
    assert store_in(small.parents[2]).latest("k0") is None


@pytest.mark.parametrize("name", ["ckpt_manifest.json", "payload.safetensors"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "missing"])
def test_what_is_no_regular_file_is_not_read(small, name, kind):
    (small / name).rename(small.parent / "outside")
    if kind == "link":
        (small / name).symlink_to(small.parent / "outside")
    elif kind == "pipe":
        os.mkfifo(small / name)
    elif kind == "folder":
        (small / name).mkdir()
    assert store_in(small.parents[2]).latest("k0") is None
    assert audit_checkpoints(small.parents[1])


def test_a_link_to_a_checkpoint_is_not_taken_nor_followed_when_pruning(tmp_path):
    store = store_in(tmp_path)
    done = commit(store, 10)
    outside = done.path.rename(tmp_path / "outside")
    done.path.symlink_to(outside)
    assert store_in(tmp_path).latest("k0") is None
    (done.path.parent / ".trash-00000009-x").symlink_to(outside)
    store = store_in(tmp_path)
    for iteration in range(20, 70, 10):
        commit(store, iteration)
    assert len(list(outside.iterdir())) == 2
    assert done.path.is_symlink()


def test_a_payload_that_is_no_safetensors_is_named(small):
    payload = b"\x80\x04cos\nsystem\n(S'true'\ntR."  # a pickle has no chance here
    (small / "payload.safetensors").write_bytes(payload)
    raw = forged(small, sha512_payload=digest_bytes(payload), payload_bytes=len(payload))
    (small / "ckpt_manifest.json").write_bytes(raw)
    found = store_in(small.parents[2]).latest("k0")
    with pytest.raises(IntegrityError, match="payload"):
        found.arrays()


def test_the_audit_names_everything_that_is_not_whole(tmp_path):
    store = store_in(tmp_path)
    commit(store, 10)
    done = commit(store, 20)
    root = tmp_path / "checkpoints"
    assert audit_checkpoints(root, "r") == []
    assert audit_checkpoints(tmp_path / "nowhere") == []
    assert len(audit_checkpoints(root, "other run")) == 2
    (done.path / "extra").write_bytes(b"")
    (root / "k0" / "stray").write_bytes(b"")
    (done.path / "payload.safetensors").write_bytes(b"")
    found = dict(audit_checkpoints(root))
    assert set(found) == {str(done.path / "payload.safetensors"), str(root / "k0" / "stray")}
