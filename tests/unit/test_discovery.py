"""A dataset is taken whole, or each thing left out has its name and its reason."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import orjson
import pytest
import tifffile

from nx46vx.data import integrity
from nx46vx.data.discovery import Case, Dataset, discover, preflight, select_pairs
from nx46vx.data.integrity import DigestBook
from nx46vx.data.volume_io import write_volume
from nx46vx.errors import DataError
from nx46vx.runtime.sink import MemorySink

RNG = np.random.default_rng(3)
SHAPE = (5, 12, 10)


def image() -> np.ndarray:
    return RNG.integers(0, 255, SHAPE, dtype=np.uint8)


def label() -> np.ndarray:
    return RNG.integers(0, 3, SHAPE, dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for index, compression in enumerate(("lzw", "deflate", None, "lzw")):
        write_volume(root / "train_images" / f"c{index}.tif", image(), compression=compression)
        write_volume(root / "train_labels" / f"c{index}.tif", label(), compression=compression)
    write_volume(root / "test_images" / "t1.tif", image())
    write_volume(root / "test_images" / "t0.tiff", image(), compression=None)
    return root


def find(root: Path, sink: MemorySink | None = None, skip: tuple[str, ...] = ()) -> Dataset:
    with ThreadPoolExecutor(2) as pool:
        book = DigestBook(root.parent / "book.json")
        return discover(root, book=book, sink=sink or MemorySink(), executor=pool, skip_cases=skip)


def test_a_sound_dataset_is_found_whole_and_reported(root: Path) -> None:
    sink = MemorySink()
    dataset = find(root, sink)
    assert [case.case_id for case in dataset.train] == ["c0", "c1", "c2", "c3"]
    assert [case.case_id for case in dataset.test] == ["t0", "t1"]
    assert dataset.skipped == ()
    assert dataset.pair_count == 4
    (event,) = sink.named("DATASET_DISCOVERY")
    assert (event["pair_count"], event["test_count"], event["sizes"]) == (4, 2, {"5x12x10": 6})
    assert sum(event["class_fractions"].values()) == pytest.approx(1)
    progress = sink.named("PROGRESS_UPDATE")
    assert [one["index"] for one in progress] == list(range(1, 11))
    assert {one["total"] for one in progress} == {10}
    assert {one["stage"] for one in progress} == {"discovery"}
    orjson.dumps(sink.events)
    case = dataset.train[1]
    true = tifffile.imread(case.label)
    assert case.prevalence == pytest.approx((true == 1).sum() / (true < 2).sum())
    for case in (*dataset.train, *dataset.test):
        assert Case.from_json(orjson.loads(orjson.dumps(case.to_json()))) == case


def test_a_warm_start_reads_no_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cold = find(root)
    monkeypatch.setattr(integrity, "measure_file", lambda *_: pytest.fail("measured again"))
    sink = MemorySink()
    assert find(root, sink) == cold
    assert all(one["remembered"] for one in sink.named("PROGRESS_UPDATE"))


def test_the_digest_names_the_content_not_the_place(root: Path) -> None:
    before = find(root)
    moved = root.rename(root.with_name("moved"))
    assert find(moved).digest == before.digest
    write_volume(moved / "train_labels" / "c2.tif", label())
    assert find(moved).digest != before.digest


def _wrong_shape(root: Path) -> None:
    write_volume(root / "train_labels" / "c1.tif", label()[:, :-1])


def _wrong_dtype(root: Path) -> None:
    tifffile.imwrite(root / "train_images" / "c1.tif", image().astype(np.uint16), photometric="minisblack")


def _wrong_values(root: Path) -> None:
    write_volume(root / "train_labels" / "c1.tif", label() + np.uint8(5))


def _truncated(root: Path) -> None:
    path = root / "train_images" / "c1.tif"
    path.write_bytes(path.read_bytes()[:-400])


def _flat(root: Path) -> None:
    tifffile.imwrite(root / "train_labels" / "c1.tif", label()[0])


def _all_ignored(root: Path) -> None:
    write_volume(root / "train_labels" / "c1.tif", np.full(SHAPE, 2, np.uint8))


def _no_surface(root: Path) -> None:
    write_volume(root / "train_labels" / "c1.tif", label() & np.uint8(2))


def _only_surface(root: Path) -> None:
    write_volume(root / "train_labels" / "c1.tif", np.ones(SHAPE, np.uint8))


def _empty_file(root: Path) -> None:
    (root / "train_images" / "c1.tif").write_bytes(b"")


def _dead_link(root: Path) -> None:
    (root / "train_images" / "c1.tif").unlink()
    (root / "train_images" / "c1.tif").symlink_to("nowhere.tif")


def _folder(root: Path) -> None:
    (root / "train_labels" / "c1.tif").unlink()
    (root / "train_labels" / "c1.tif").mkdir()


def _pipe(root: Path) -> None:
    (root / "train_labels" / "c1.tif").unlink()
    os.mkfifo(root / "train_labels" / "c1.tif")


DAMAGE = {
    _wrong_shape: "shape mismatch", _wrong_dtype: "uint8", _wrong_values: "holds values", _truncated: "truncated",
    _flat: "3D volume of several pages", _all_ignored: "all voxels are ignored", _no_surface: "single class",
    _only_surface: "single class", _empty_file: "empty", _dead_link: "cannot be opened|cannot be read",
    _folder: "not a regular file", _pipe: "not a regular file",
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_bad_pair_is_skipped_by_name_and_its_gap_is_justified(root: Path, damage) -> None:
    damage(root)
    sink = MemorySink()
    dataset = find(root, sink)
    assert [case.case_id for case in dataset.train] == ["c0", "c2", "c3"]
    (skip,) = sink.named("CASE_SKIPPED")
    assert skip["case_id"] == "c1"
    assert any(words in skip["reason"] for words in DAMAGE[damage].split("|"))
    coverage = select_pairs(dataset, max_pairs=None, reason="", seed=0, sink=sink)
    assert (coverage.discovered, coverage.pct, coverage.justified) == (4, 75.0, True)
    assert "c1" in coverage.reason


def test_orphans_are_named_and_are_no_pairs(root: Path) -> None:
    (root / "train_images" / "c0.tif").rename(root / "train_images" / "x9.tif")
    sink = MemorySink()
    dataset = find(root, sink)
    assert (dataset.orphan_images, dataset.orphan_labels) == (("x9",), ("c0",))
    assert dict(dataset.skipped) == {"x9": "image without label", "c0": "label without image"}
    assert len(sink.named("CASE_SKIPPED")) == 2
    assert select_pairs(dataset, max_pairs=None, reason="", seed=0, sink=sink).pct == 100.0


def test_too_few_usable_pairs_end_with_all_reasons_and_code_4(root: Path) -> None:
    _truncated(root)
    write_volume(root / "train_labels" / "c3.tif", np.full(SHAPE, 2, np.uint8))
    with pytest.raises(DataError, match="only 2 usable pairs") as caught:
        find(root)
    assert "c1" in str(caught.value)
    assert "c3: all voxels are ignored" in str(caught.value)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("folder", ["train_images", "train_labels", "test_images"])
def test_missing_and_empty_folders_are_refused(root: Path, folder: str) -> None:
    for path in (root / folder).iterdir():
        path.unlink()
    (root / folder / ".hidden.tif").write_bytes(b"")
    with pytest.raises(DataError, match="holds no TIFF"):
        find(root)
    (root / folder / ".hidden.tif").unlink()
    (root / folder).rmdir()
    with pytest.raises(DataError, match=f"not there.*{folder}"):
        find(root)


def test_no_pair_and_doubled_cases_are_refused(root: Path) -> None:
    (root / "train_images" / "c0.tiff").write_bytes(b"")
    with pytest.raises(DataError, match="two files claim one case"):
        find(root)
    (root / "train_images" / "c0.tiff").unlink()
    for path in (root / "train_images").iterdir():
        path.rename(path.with_name(f"other_{path.name}"))
    with pytest.raises(DataError, match="no pair of image and label"):
        find(root)


@pytest.mark.parametrize("kind", ["truncated", "flat", "wide"])
def test_a_bad_test_file_ends_the_run_by_name(root: Path, kind: str) -> None:
    path = root / "test_images" / "t1.tif"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-300])
    else:
        tifffile.imwrite(path, image()[0] if kind == "flat" else image().astype(np.uint16), photometric="minisblack")
    with pytest.raises(DataError, match="test case t1") as caught:
        find(root)
    assert caught.value.exit_code == 4


def test_configured_skips_are_reasons_and_never_for_tests(root: Path) -> None:
    sink = MemorySink()
    dataset = find(root, sink, skip=("c2", "unknown"))
    assert [case.case_id for case in dataset.train] == ["c0", "c1", "c3"]
    assert sink.named("DATASET_DISCOVERY")[0]["skip_cases_not_found"] == ["unknown"]
    coverage = select_pairs(dataset, max_pairs=None, reason="", seed=0, sink=sink)
    assert coverage.reason == "skip_cases: c2"
    assert coverage.justified
    assert coverage.pct == 75.0
    with pytest.raises(DataError, match="test case cannot be skipped"):
        find(root, skip=("t0",))


def test_preflight_reads_the_share_asked_for_and_at_least_one(root: Path) -> None:
    dataset, sink = find(root), MemorySink()
    preflight(dataset, fraction=0.05, seed=1, sink=sink)
    preflight(dataset, fraction=0.75, seed=1, sink=sink)
    assert [name for name, _ in sink.events] == ["PREFLIGHT_START", "PREFLIGHT_OK"] * 2
    few, many = sink.named("PREFLIGHT_OK")
    assert (few["train_pairs"], few["test_files"], few["bytes"]) == (1, 1, 3 * 600)
    assert (many["train_pairs"], many["test_files"], many["bytes"]) == (3, 2, 8 * 600)


def test_preflight_notices_what_changed_behind_the_books_back(root: Path) -> None:
    dataset = find(root)
    write_volume(root / "train_labels" / "c2.tif", label())
    with pytest.raises(DataError, match="c2"):
        preflight(dataset, fraction=1.0, seed=0, sink=MemorySink())
    _truncated(root)
    with pytest.raises(DataError, match="c1"):
        preflight(dataset, fraction=1.0, seed=0, sink=MemorySink())


def test_fewer_pairs_are_drawn_by_seed_and_the_gap_is_stated(root: Path) -> None:
    dataset, sink = find(root), MemorySink()
    drawn = {tuple(c.case_id for c in select_pairs(dataset, max_pairs=3, reason="r", seed=s, sink=sink).selected)
             for s in range(20)}  # fmt: skip
    assert len(drawn) > 1
    assert all(len(ids) == 3 and list(ids) == sorted(ids) for ids in drawn)
    sink = MemorySink()
    coverage = select_pairs(dataset, max_pairs=3, reason="little memory", seed=0, sink=sink)
    (audit,), (plan,) = sink.named("TRAIN_DATASET_AUDIT"), sink.named("TRAIN_COVERAGE_PLAN")
    assert (audit["pair_count_discovered"], audit["pair_count_selected_for_training"]) == (4, 3)
    assert audit["coverage_pct_selected_vs_discovered"] == plan["train_pair_coverage_pct_effective"] == 75.0
    assert "little memory" in plan["coverage_gap_reason"]
    assert plan["coverage_gap_is_justified"] is True
    assert not select_pairs(dataset, max_pairs=3, reason=" ", seed=0, sink=sink).justified
    whole = select_pairs(dataset, max_pairs=9, reason="", seed=0, sink=sink)
    assert (whole.pct, whole.reason, whole.justified) == (100.0, "", True)
    assert coverage.reason != ""
