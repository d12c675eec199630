"""The synthetic scrolls look to a model as the competition's do: geometry tells the surface, intensity does not."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt, gaussian_filter
from sklearn.metrics import average_precision_score

from nx46vx.data import synthetic, synthetic_sheets
from nx46vx.data.discovery import discover
from nx46vx.data.integrity import DigestBook
from nx46vx.data.synthetic import MARKER, make_case, make_dataset
from nx46vx.data.synthetic_sheets import Scroll, SheetGeometry
from nx46vx.data.volume_io import probe_volume
from nx46vx.errors import DataError, UsageError
from nx46vx.runtime.sink import MemorySink, NullSink
from nx46vx.settings import SyntheticSettings

SMALL = SyntheticSettings(train_cases=3, test_cases=1, size=48, scrolls=2, seed=5)


@pytest.mark.parametrize("seed", range(16))
def test_every_case_has_both_classes_a_border_and_a_natural_prevalence(seed: int) -> None:
    image, label = make_case((48, 50, 54), scroll=seed % 5, seed=seed)
    assert image.shape == label.shape == (48, 50, 54)
    assert image.dtype == label.dtype == np.uint8
    assert set(np.unique(label)) == {0, 1, 2}
    inner = np.zeros(label.shape, bool)
    inner[3:-3, 3:-3, 3:-3] = True
    assert (label[~inner] == 2).all()
    assert 0.02 < (label[inner] == 2).mean() < 0.45
    assert 0.05 <= (label == 1).sum() / (label < 2).sum() <= 0.15


def test_equal_seeds_give_equal_voxels_and_others_do_not() -> None:
    first, again = (make_case((48, 48, 48), scroll=1, seed=9) for _ in range(2))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (make_case((48, 48, 48), scroll=1, seed=10)[1] != first[1]).any()
    assert (make_case((48, 48, 48), scroll=2, seed=9)[1] != first[1]).any()


def test_the_size_of_the_slabs_changes_no_voxel(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_case((48, 52, 50), scroll=0, seed=3)
    monkeypatch.setattr(synthetic_sheets, "_SLAB_VOXELS", 7 * 52 * 50)
    slabs = make_case((48, 52, 50), scroll=0, seed=3)
    np.testing.assert_array_equal(whole[0], slabs[0])
    np.testing.assert_array_equal(whole[1], slabs[1])


def test_sheets_lie_16_to_30_voxels_apart_and_sometimes_touch() -> None:
    touching = []
    for number in range(6):
        scroll, gaps = Scroll.draw(number), []
        for place in range(6):  # a line across one small volume crosses few sheets
            geometry = SheetGeometry((96, 96, 96), scroll, np.random.default_rng([number, place]))
            index = np.concatenate([geometry.slab(*slab).index for slab in geometry.slabs()])
            steepest = int(np.abs(geometry.radial).argmax())
            for line in np.moveaxis(index, steepest, -1).reshape(-1, 96)[::83]:
                gaps.extend(np.diff(np.flatnonzero(np.diff(line))) * abs(geometry.radial[steepest]))
        assert 16 < np.median(gaps) < 30
        touching.append(np.mean(np.array(gaps) < scroll.thickness + 1))
    assert 0.005 < np.mean(touching) < 0.25


def test_the_label_is_three_voxels_thick_and_on_the_face_toward_the_axis() -> None:
    geometry = SheetGeometry((64, 64, 64), Scroll.draw(3), np.random.default_rng(4))
    geometry._hole_level, geometry._ignored_level = np.inf, np.inf
    label = geometry.label()
    inner = label[3:-3, 3:-3, 3:-3] == 1
    assert 1.2 < distance_transform_edt(inner)[inner].max() < 3.0  # half of the thickness, corners included
    recto = np.concatenate([geometry.slab(*slab).distance for slab in geometry.slabs()])
    assert recto[label == 1].min() > -1.5
    assert recto[label == 1].max() < 4.5
    one = np.pad(inner, 3)
    step = np.rint(2 * geometry.radial).astype(int)
    outward = np.roll(recto, -step, axis=(0, 1, 2))[one]  # two voxels farther from the axis: deeper in the sheet
    assert (outward > recto[one]).mean() > 0.9


def test_intensity_alone_is_poor_and_the_signed_gradient_is_good() -> None:
    by_grey, by_gradient = [], []
    for seed in range(4):
        scroll = Scroll.draw(seed)
        geometry = SheetGeometry((64, 64, 64), scroll, np.random.default_rng(seed))
        label = geometry.label()
        image = synthetic.Texture(geometry, np.random.default_rng(seed + 50)).render()
        use = label < 2
        use[image == 0] = False
        smooth = gaussian_filter(image.astype(np.float32), 1.5)
        outward = sum(part * direction for part, direction in zip(np.gradient(smooth), geometry.radial, strict=True))
        truth = label[use] == 1
        by_grey.append(average_precision_score(truth, smooth[use]))
        by_gradient.append(average_precision_score(truth, outward[use]))
    assert np.mean(by_grey) < 0.5
    assert np.mean(by_gradient) > 1.3 * np.mean(by_grey)


def test_scrolls_differ_in_contrast_and_pitch_and_some_scans_are_masked() -> None:
    scrolls = [Scroll.draw(index) for index in range(12)]
    assert np.ptp([scroll.pitch for scroll in scrolls]) > 3
    assert np.ptp([scroll.papyrus - scroll.air for scroll in scrolls]) > 15
    masked = [float((make_case((48, 48, 48), scroll=0, seed=seed)[0] == 0).mean()) for seed in range(12)]
    assert min(masked) == 0
    assert max(masked) > 0.02


def test_too_small_a_volume_is_refused() -> None:
    with pytest.raises(UsageError, match="too small"):
        make_case((48, 48, 8), scroll=0, seed=0)


def tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha512(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_a_dataset_is_usable_mixed_in_codecs_and_left_alone_when_complete(tmp_path: Path) -> None:
    sink = MemorySink()
    make_dataset(tmp_path / "data", SMALL, sink=sink)
    assert [one["index"] for one in sink.named("PROGRESS_UPDATE")] == [1, 2, 3, 4]
    codecs = {probe_volume(path).compression for path in (tmp_path / "data" / "train_images").iterdir()}
    assert codecs == {"lzw", "none", "deflate"}
    assert sorted(os.listdir(tmp_path / "data")) == [MARKER, "test_images", "train_images", "train_labels"]
    with ThreadPoolExecutor(1) as pool:
        dataset = discover(tmp_path / "data", book=DigestBook(tmp_path / "b"), sink=NullSink(), executor=pool)
    assert (len(dataset.train), len(dataset.test), dataset.skipped) == (3, 1, ())
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    make_dataset(tmp_path / "data", SMALL, sink=NullSink())
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}


def test_a_killed_generation_is_completed_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(2) as pool:
        make_dataset(tmp_path / "whole", SMALL, sink=NullSink(), executor=pool)
    write, calls = synthetic.write_volume, []

    def dying(path: Path, volume: np.ndarray, **how: object) -> None:
        calls.append(path)
        if len(calls) % 3 == 0:
            path.with_name(f".{path.name}.123.abc.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        write(path, volume, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(synthetic, "write_volume", dying)
    for _ in range(12):
        try:
            make_dataset(tmp_path / "killed", SMALL, sink=NullSink())
        except KeyboardInterrupt:
            continue
        break
    assert len(calls) > 6
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


def test_two_generators_at_once_make_one_dataset(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        sinks = [MemorySink(), MemorySink()]
        list(pool.map(lambda sink: make_dataset(tmp_path / "data", SMALL, sink=sink), sinks))
    assert sorted(len(sink.named("SYNTHETIC_DATASET")) for sink in sinks) == [0, 1]
    assert sorted(os.listdir(tmp_path / "data")) == [MARKER, "test_images", "train_images", "train_labels"]


def test_other_peoples_folders_and_other_settings_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(DataError, match="other files"):
        make_dataset(tmp_path / "mine", SMALL, sink=NullSink())
    assert tree(tmp_path / "mine").keys() == {"thesis.txt"}
    make_dataset(tmp_path / "data", SMALL, sink=NullSink())
    with pytest.raises(DataError, match="other settings"):
        make_dataset(tmp_path / "data", SMALL.model_copy(update={"seed": 6}), sink=NullSink())
