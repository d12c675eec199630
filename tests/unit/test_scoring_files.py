"""``nx46vx score``: files and folders are paired by name, and every wrong pair is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scoring_pairs import expected, pairs
from tiny import Ended

from nx46vx.data.volume_io import write_volume

Command = Callable[..., Ended]
NAMES = ("two_shells", "shift3_z", "ignore_x40+")
EXPECTED = {name: values for name, values in expected().items() if name in NAMES}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three predictions and their labels, as TIFFs of the same names."""
    for folder in ("masks", "labels"):
        (tmp_path / folder).mkdir()
    for name, prediction, label in pairs():
        if name in NAMES:
            write_volume(tmp_path / "masks" / f"{name}.tif", prediction, compression="lzw")
            write_volume(tmp_path / "labels" / f"{name}.tif", label)
    return tmp_path / "masks", tmp_path / "labels"


def test_two_folders_score_case_by_case_and_in_the_mean(command: Command, folders: tuple[Path, Path]) -> None:
    (folders[0] / "parts.tif").mkdir()
    ended = command("score", *folders, "--json")
    assert ended.code == 0 and ended.stderr == ""
    assert list(ended.json) == ["score", "topo", "surface_dice", "voi", "counts", "cases"]
    assert set(ended.json["cases"]) == set(NAMES)
    for name, case in ended.json["cases"].items():
        wanted = EXPECTED[name]
        assert case["counts"] == {str(dimension): counts for dimension, counts in enumerate(wanted["counts"])}
        for part in ("score", "topo", "surface_dice", "voi"):
            assert case[part] == pytest.approx(wanted[part], abs=1e-9)
    mean = np.mean([values["score"] for values in EXPECTED.values()])
    assert ended.json["score"] == pytest.approx(mean, abs=1e-9)
    summed = np.sum([values["counts"] for values in EXPECTED.values()], axis=0)
    assert ended.json["counts"] == {str(dimension): counts.tolist() for dimension, counts in enumerate(summed)}


def test_two_files_score_whatever_their_names(command: Command, folders: tuple[Path, Path]) -> None:
    masks, labels = folders
    (masks / "shift3_z.tif").rename(masks / "mine.tiff")
    ended = command("score", masks / "mine.tiff", labels / "shift3_z.tif", "--json")
    assert ended.code == 0
    assert ended.json["score"] == ended.json["cases"]["shift3_z"]["score"]
    assert ended.json["score"] == pytest.approx(EXPECTED["shift3_z"]["score"], abs=1e-9)


def test_without_json_a_person_can_read_it(command: Command, folders: tuple[Path, Path]) -> None:
    ended = command("score", *folders)
    lines = ended.stdout.splitlines()
    assert ended.code == 0 and len(lines) == len(NAMES) + 1
    assert f"score {EXPECTED['shift3_z']['score']:.6f}" in next(line for line in lines if line.startswith("shift3_z:"))
    assert lines[-1].startswith("mean of 3: score ")


def test_missing_counterparts_are_named_on_either_side(command: Command, folders: tuple[Path, Path]) -> None:
    masks, labels = folders
    (masks / "two_shells.tif").unlink()
    lacking = command("score", masks, labels, "--json")
    (labels / "two_shells.tif").unlink()
    (labels / "shift3_z.tif").unlink()
    unlabelled = command("score", masks, labels)
    for ended, name, folder in ((lacking, "two_shells", masks), (unlabelled, "shift3_z", labels)):
        assert ended.code == 4 and ended.stdout == ""
        assert "DataError" in ended.stderr and name in ended.stderr and str(folder) in ended.stderr


def _shrink(path: Path) -> None:
    write_volume(path, np.zeros((64, 64, 63), np.uint8))


def _widen(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((64, 64, 64), np.uint16), photometric="minisblack")


def _flatten(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_shrink, "(64, 64, 63)"),
        (_widen, "uint16"),
        (_flatten, "3D"),
        (_cut, "two_shells"),
        (Path.unlink, "two_shells"),
    ],
)
@pytest.mark.parametrize("side", [0, 1])
def test_a_file_that_cannot_be_scored_ends_with_4(
    command: Command, folders: tuple[Path, Path], damage: Callable[[Path], None], said: str, side: int
) -> None:
    damage(folders[side] / "two_shells.tif")
    for arguments in (folders, [folder / "two_shells.tif" for folder in folders]):
        ended = command("score", *arguments, "--json")
        assert ended.code == 4
        assert ended.stdout == "" and "DataError" in ended.stderr and said in ended.stderr
        assert "two_shells" in ended.stderr


def test_empty_folders_and_a_file_against_a_folder_end_with_4(
    command: Command, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".hidden.tif").write_bytes(b"")
    masks, labels = folders
    for arguments, said in (
        ((tmp_path / "empty", labels), "holds no TIFF"), ((masks, tmp_path / "empty"), "holds no TIFF"),
        ((masks, labels / "shift3_z.tif"), "folder"), ((masks, tmp_path / "absent"), "absent"),
    ):  # fmt: skip
        ended = command("score", *arguments)
        assert ended.code == 4 and ended.stdout == "" and said in ended.stderr


def test_two_files_of_one_case_are_refused(command: Command, folders: tuple[Path, Path]) -> None:
    masks, labels = folders
    (labels / "shift3_z.tiff").write_bytes((labels / "shift3_z.tif").read_bytes())
    ended = command("score", masks, labels)
    assert ended.code == 4 and "shift3_z.tif and shift3_z.tiff" in ended.stderr
