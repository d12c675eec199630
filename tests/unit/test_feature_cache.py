"""The feature cache: addressed by content, complete or absent, rebuilt when damaged, read-only."""

from __future__ import annotations

import dataclasses
import errno
import os
import pickle
import shutil
import threading
from collections import namedtuple
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nx46vx.data.discovery import Case
from nx46vx.data.synthetic import make_case
from nx46vx.data.volume_io import read_volume, write_volume
from nx46vx.errors import DataError, EnvironmentFault, IntegrityError
from nx46vx.features import entry as entry_module
from nx46vx.features import reading as reading_module
from nx46vx.features.blocks import sample_features
from nx46vx.features.cache import FeatureCache, SampleRequest
from nx46vx.features.pool import feature_names
from nx46vx.features.reading import ReadAhead, read_case
from nx46vx.features.reference import measure_reference
from nx46vx.features.sampling import spatial_blocks
from nx46vx.runtime.digest import digest_file
from nx46vx.runtime.sink import MemorySink


class Serial:
    """An executor that runs everything here and counts it."""

    def __init__(self) -> None:
        self.calls = 0

    def map(self, fn: Callable[..., Any], /, *iterables: Iterable[Any]) -> Iterable[Any]:
        for arguments in zip(*iterables, strict=True):
            self.calls += 1
            yield fn(*arguments)


def write_case(folder: Path, case_id: str, image: np.ndarray, label: np.ndarray) -> Case:
    paths = folder / f"{case_id}.tif", folder / f"{case_id}_label.tif"
    for path, volume in zip(paths, (image, label), strict=True):
        write_volume(path, volume)
    counts = tuple(int((label == value).sum()) for value in range(3))
    z, y, x = image.shape
    return Case(case_id, paths[0], paths[1], (z, y, x), digest_file(paths[0]), digest_file(paths[1]), counts)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    folder = tmp_path_factory.mktemp("data")
    return [write_case(folder, f"case{k}", *make_case((32, 36, 34), scroll=k, seed=k)) for k in range(2)]


def requests_of(cases: list[Case], **changes: Any) -> list[SampleRequest]:
    fields = {"seed": 0, "limit": 600, "block": 32} | changes
    return [SampleRequest(case, role=role, **fields) for case, role in zip(cases, ("train", "validation"), strict=True)]


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
def cache(tmp_path: Path, sink: MemorySink) -> FeatureCache:
    return FeatureCache(tmp_path / "cache", sink=sink)


def test_samples_are_what_the_volumes_hold_at_their_voxels(cases: list[Case], cache: FeatureCache) -> None:
    samples = cache.build(requests_of(cases), executor=Serial())
    assert [(s.case_id, s.role) for s in samples] == [("case0", "train"), ("case1", "validation")]
    for case, s in zip(cases, samples, strict=True):
        image, label = read_volume(case.image), read_volume(case.label)
        expected = sample_features(image, measure_reference(image), feature_names(), s.index, block=64)
        assert s.features.dtype == np.float32
        assert np.array_equal(s.features, expected)
        assert s.y.dtype == np.uint8
        assert np.array_equal(s.y, label.ravel()[s.index])
        assert np.array_equal(s.group, spatial_blocks(s.index, case.shape))
        assert s.counts == case.counts[:2]
        order = np.lexsort((s.index, s.group))
        assert np.array_equal(order, np.arange(len(order))), "groups are contiguous, voxels sorted within"
    assert samples[0].y.mean() == 0.5
    assert abs(samples[1].y.mean() - cases[1].prevalence) < 0.05


def test_a_warm_start_maps_and_computes_nothing(cases: list[Case], cache: FeatureCache, sink: MemorySink) -> None:
    cold = cache.build(requests_of(cases), executor=Serial())
    assert (len(sink.named("CACHE_MISS")), len(sink.named("CACHE_HIT"))) == (2, 0)
    # Not even the volumes are looked at.
    away = [dataclasses.replace(case, image=Path("gone.tif"), label=Path("gone.tif")) for case in cases]
    executor, done = Serial(), []
    warm = cache.build(requests_of(away), executor=executor, on_done=lambda s: done.append(s.case_id))
    assert executor.calls == 0
    assert done == ["case0", "case1"]
    assert len(sink.named("CACHE_HIT")) == 2
    assert [s.digest for s in warm] == [s.digest for s in cold]


def test_the_next_case_is_read_while_this_one_is_computed(cases: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [*requests_of(cases), *requests_of(cases, seed=1)]
    read: list[str] = []
    came = threading.Event()

    def noted(request: SampleRequest) -> tuple[np.ndarray, np.ndarray]:
        read.append(request.key)
        came.set()
        return read_case(request)

    monkeypatch.setattr(reading_module, "read_case", noted)
    ahead = ReadAhead(requests)
    for place, request in enumerate(requests):
        label, image = ahead(request)
        assert np.array_equal(label, read_volume(request.case.label))
        assert np.array_equal(image, read_volume(request.case.image))
        if place + 1 < len(requests):
            while requests[place + 1].key not in read:
                assert came.wait(10), "nobody asked for it yet, and it is read"
                came.clear()
    assert sorted(read) == sorted(request.key for request in requests), "each once"
    ahead.close()


def test_cases_that_were_built_meanwhile_do_not_stop_reading_ahead(cases: list[Case]) -> None:
    requests = [*requests_of(cases), *requests_of(cases, seed=1)]
    ahead = ReadAhead(requests)
    for place in (0, 2, 1, 3):
        label, _ = ahead(requests[place])
        assert np.array_equal(label, read_volume(requests[place].case.label))
    ahead.close()
    assert np.array_equal(ahead(requests[0])[0], read_volume(requests[0].case.label)), "also after the end"


def test_a_volume_that_cannot_be_read_ahead_fails_the_case_it_belongs_to(cases: list[Case], tmp_path: Path) -> None:
    broken = dataclasses.replace(cases[1], image=tmp_path / "gone.tif")
    first, second = requests_of([cases[0], broken])
    ahead = ReadAhead([first, second])
    ahead(first)
    with pytest.raises(DataError, match=r"gone\.tif"):
        ahead(second)
    assert pickle.loads(pickle.dumps(ahead)) is not ahead  # noqa: S301 - our own bytes, never from disk
    ahead.close()


def test_compressed_entries_hold_the_same_and_are_found_by_who_wants_them_mapped(
    cases: list[Case], cache: FeatureCache, tmp_path: Path, sink: MemorySink
) -> None:
    pytest.importorskip("zarr")
    packed = FeatureCache(tmp_path / "packed", sink=sink, store="zarr").build(requests_of(cases), executor=Serial())
    plain = cache.build(requests_of(cases), executor=Serial())
    for one, other in zip(packed, plain, strict=True):
        assert one.digest == other.digest
        assert np.array_equal(np.asarray(one.features), other.features)
    executor = Serial()
    FeatureCache(tmp_path / "packed", sink=sink).build(requests_of(cases), executor=executor)
    assert executor.calls == 0, "the store says how entries are kept, not what they are"


def test_progress_is_told_per_case(cases: list[Case], cache: FeatureCache, sink: MemorySink) -> None:
    cache.build(requests_of(cases), executor=Serial())
    told = [(e["stage"], e["file"], e["index"], e["total"]) for e in sink.named("PROGRESS_UPDATE")]
    assert told == [("features", "case0", 1, 2), ("features", "case1", 2, 2)]


def test_bits_do_not_depend_on_block_size_executor_or_other_cases(cases: list[Case], tmp_path: Path) -> None:
    digests = []
    for place, (block, executor, count) in enumerate(
        [(32, Serial(), 2), (200, ThreadPoolExecutor(2), 2), (33, Serial(), 1)]
    ):
        cache = FeatureCache(tmp_path / str(place), sink=MemorySink())
        built = cache.build(requests_of(cases, block=block)[:count], executor=executor)
        digests.append([s.digest for s in built])
    assert digests[0] == digests[1]
    assert digests[0][:1] == digests[2]


def test_the_key_names_content_and_nothing_else(cases: list[Case]) -> None:
    request = SampleRequest(cases[0], role="train", seed=0, limit=600, block=32)
    elsewhere = dataclasses.replace(cases[0], image=Path("/moved/a.tif"), label=Path("/moved/b.tif"))
    same = [dataclasses.replace(request, block=64), dataclasses.replace(request, case=elsewhere)]
    assert {r.key for r in same} == {request.key}
    validation = dataclasses.replace(request, role="validation")
    assert dataclasses.replace(request, role="holdout").key == validation.key
    other = [
        dataclasses.replace(request, seed=1),
        dataclasses.replace(request, limit=601),
        validation,
        *(
            dataclasses.replace(request, case=dataclasses.replace(cases[0], **{name: "x"}))
            for name in ("case_id", "image_digest", "label_digest")
        ),
    ]
    assert len({request.key, *(r.key for r in other)}) == len(other) + 1


def test_adding_a_case_computes_one_case(cases: list[Case], cache: FeatureCache) -> None:
    cache.build(requests_of(cases)[:1], executor=Serial())
    executor = Serial()
    cache.build(requests_of(cases), executor=executor)
    assert executor.calls == 1


def test_a_request_given_twice_is_computed_once(cases: list[Case], cache: FeatureCache) -> None:
    executor = Serial()
    first, second = cache.build(requests_of(cases)[:1] * 2, executor=executor)
    assert executor.calls == 1
    assert first.digest == second.digest


def test_samples_cannot_be_written_to(cases: list[Case], cache: FeatureCache) -> None:
    (s,) = cache.build(requests_of(cases)[:1], executor=Serial())
    for array in (s.features, s.y, s.index, s.group):
        assert isinstance(array, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[..., 0] = 0
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True


def test_pickling_samples_sends_the_path_and_maps_again(cases: list[Case], cache: FeatureCache) -> None:
    (s,) = cache.build(requests_of(cases)[:1], executor=Serial())
    data = pickle.dumps(s)
    assert len(data) < 1000 < s.features.nbytes
    back = pickle.loads(data)  # noqa: S301 - our own bytes, never from disk
    assert (back.role, back.digest) == (s.role, s.digest)
    assert isinstance(back.features, np.memmap)


def cut(path: Path) -> None:
    os.truncate(path / "features.npy", 1000)


def garble_manifest(path: Path) -> None:
    (path / "manifest.json").write_bytes(b'{"schema": 1, "files"')


def lose_file(path: Path) -> None:
    (path / "y.npy").unlink()


def spoil_header(path: Path) -> None:
    with open(path / "index.npy", "r+b") as file:
        file.write(b"\0" * 16)


def forge_digest(path: Path) -> None:
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"digest": "', '"digest": "0', 1))


@pytest.mark.parametrize("damage", [cut, garble_manifest, lose_file, spoil_header, forge_digest])
def test_damaged_entries_are_seen_and_rebuilt(
    damage: Callable[[Path], None], cases: list[Case], cache: FeatureCache, sink: MemorySink
) -> None:
    (request, *_) = requests_of(cases)
    (before,) = cache.build([request], executor=Serial())
    y, digest = before.y.copy(), before.digest
    damage(cache.path(request.key))
    assert not cache.has(request.key)
    with pytest.raises(IntegrityError):
        cache.open(request.key)
    (after,) = cache.build([request], executor=Serial())
    assert after.digest == digest
    assert np.array_equal(after.y, y)
    (event,) = sink.named("CACHE_ENTRY_REBUILT")
    assert event["case_id"] == "case0"
    assert event["reason"]
    assert os.listdir(cache.path(request.key).parent) == [request.key], "nothing is left beside the entry"


@pytest.mark.parametrize("name", ["features", "y", "index", "group"])
def test_verify_reads_the_payload_and_names_the_file(name: str, cases: list[Case], cache: FeatureCache) -> None:
    (request, *_) = requests_of(cases)
    cache.build([request], executor=Serial())
    cache.verify(request.key)
    file = cache.path(request.key) / f"{name}.npy"
    with open(file, "r+b") as handle:
        handle.seek(-1, os.SEEK_END)
        last = handle.read(1)[0]
        handle.seek(-1, os.SEEK_END)
        handle.write(bytes([last ^ 1]))
    with pytest.raises(IntegrityError, match=f"{name}.npy"):
        cache.verify(request.key)


def test_too_little_space_is_said_before_any_work(
    cases: list[Case], cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 5000, 5000))
    executor = Serial()
    with pytest.raises(EnvironmentFault, match=r"needs \d+ bytes and there are 5000 bytes free"):
        cache.build(requests_of(cases), executor=executor)
    assert executor.calls == 0


def test_a_disk_that_fills_up_while_writing_leaves_no_entry(
    cases: list[Case], cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (request, *_) = requests_of(cases)
    with monkeypatch.context() as patch:
        patch.setattr(entry_module.np, "save", full)
        with pytest.raises(EnvironmentFault, match="No space left"):
            cache.build([request], executor=Serial())
    assert not cache.has(request.key)
    assert os.listdir(cache.path(request.key).parent) == []
    cache.build([request], executor=Serial())


def test_a_root_that_is_no_folder_is_a_fault_of_the_environment(cases: list[Case], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="file"):
        FeatureCache(tmp_path / "file" / "cache", sink=MemorySink()).build(requests_of(cases), executor=Serial())


@pytest.mark.parametrize(("value", "role", "fails"), [(0, "train", True), (1, "train", True), (2, "train", True),
                                                      (2, "validation", True), (0, "validation", False)])  # fmt: skip
def test_cases_without_anything_to_draw_are_named(
    value: int, role: Any, fails: bool, tmp_path: Path, cache: FeatureCache
) -> None:
    image = np.random.default_rng(0).integers(1, 255, (20, 20, 20)).astype(np.uint8)
    case = write_case(tmp_path, "lonely", image, np.full(image.shape, value, np.uint8))
    request = SampleRequest(case, role=role, seed=0, limit=100, block=32)
    if fails:
        with pytest.raises(DataError, match="lonely"):
            cache.build([request], executor=Serial())
    else:
        assert len(cache.build([request], executor=Serial())[0].y) == 100
