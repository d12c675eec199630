"""Bad data and a machine that refuses: a clear error or a named skip, the right exit code, nothing half done."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from tiny import Ended, events, results, tree, write_config

from nx46vx.features import cache as cache_room
from nx46vx.runtime.device import choice
from nx46vx.runtime.device.found import Probe

Command = Callable[..., Ended]


@pytest.fixture
def data(tmp_path: Path, tiny_data: Path) -> Path:
    """A dataset to damage."""
    folder = tmp_path / "data"
    shutil.copytree(tiny_data, folder)
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path / "tiny.yaml")


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    volume = change(tifffile.imread(path))
    path.unlink()
    tifffile.imwrite(path, volume, photometric="minisblack")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_dead_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.tif")


def planes(path: Path, keep: int | slice) -> None:
    rewrite(path, lambda volume: volume[keep])


IMAGE, LABEL, TEST = "train_images/case_0001.tif", "train_labels/case_0001.tif", "test_images/test_0000.tif"

#: What is wrong with one pair, and a word of the reason that has to be given.
PAIRS: dict[str, tuple[Callable[[Path], object], str]] = {
    "label without image": (lambda root: (root / IMAGE).unlink(), "label without image"),
    "image without label": (lambda root: (root / LABEL).unlink(), "image without label"),
    "shape mismatch": (lambda root: planes(root / LABEL, slice(0, 40)), "shape mismatch"),
    "wrong dtype of the image": (lambda root: rewrite(root / IMAGE, lambda v: v.astype(np.uint16)), "uint8"),
    "wrong dtype of the label": (lambda root: rewrite(root / LABEL, lambda v: v.astype(np.float32)), "uint8"),
    "label values outside 0 1 2": (lambda root: rewrite(root / LABEL, lambda v: v + 1), "1 surface"),
    "truncated image": (lambda root: cut_short(root / IMAGE), "image"),
    "truncated label": (lambda root: cut_short(root / LABEL), "label"),
    "2D image": (lambda root: planes(root / IMAGE, 0), "image"),
    "2D label": (lambda root: planes(root / LABEL, 0), "label"),
    "a single class": (lambda root: rewrite(root / LABEL, lambda v: np.where(v == 1, 0, v)), "single class"),
    "surface only": (lambda root: rewrite(root / LABEL, lambda v: np.where(v == 0, 1, v)), "single class"),
    "all ignored": (lambda root: rewrite(root / LABEL, lambda v: np.full_like(v, 2)), "ignored"),
    "a folder": (lambda root: a_folder(root / IMAGE), "image"),
    "a dead link": (lambda root: a_dead_link(root / LABEL), "label"),
    "an empty file": (lambda root: (root / IMAGE).write_bytes(b""), "image"),
    "no TIFF": (lambda root: (root / LABEL).write_text("no TIFF at all"), "label"),
}


@pytest.mark.parametrize("what", PAIRS)
def test_a_bad_pair_is_skipped_by_name_with_its_reason(
    command: Command, config: Path, data: Path, tmp_path: Path, what: str
) -> None:
    damage, reason = PAIRS[what]
    damage(data)
    ended = command("plan", "--config", config, "--data", data, "--out", tmp_path / "run", "--json")
    assert ended.code == 0, ended.stderr
    assert [case_id for case_id, _ in ended.json["skipped"]] == ["case_0001"]
    assert reason in ended.json["skipped"][0][1]
    assert "case_0001" in ended.stderr
    assert sum(ended.json["cases"][role] for role in ("train", "validation", "holdout")) == 4
    (skipped,) = events(tmp_path / "run", "CASE_SKIPPED")
    assert skipped["case_id"] == "case_0001"


def test_a_run_with_a_skip_ends_well_and_reports_it(command: Command, config: Path, data: Path, tmp_path: Path) -> None:
    cut_short(data / IMAGE)
    root = tmp_path / "run"
    assert command("run", "--config", config, "--data", data, "--out", root).code == 0
    (final,) = events(root, "TRAIN_COVERAGE_FINAL")
    assert final["train_pair_coverage_pct_effective"] == 80.0
    assert "case_0001" in final["coverage_gap_reason"] and final["coverage_gap_is_justified"] is True
    assert "case_0001" in (root / "report.md").read_text()


def remove_pairs(root: Path, count: int) -> None:
    for number in range(count):
        (root / "train_images" / f"case_{number:04d}.tif").unlink()
        (root / "train_labels" / f"case_{number:04d}.tif").unlink()


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def no_pairs(root: Path) -> None:
    for path in (root / "train_labels").iterdir():
        path.rename(path.with_name(f"other_{path.name}"))


#: What is wrong with a whole dataset, and a word of the message.
WHOLE_SETS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no directory": (shutil.rmtree, "train_images"),
    "an empty directory": (empty, "train_images"),
    "no labels folder": (lambda root: shutil.rmtree(root / "train_labels"), "train_labels"),
    "no test folder": (lambda root: shutil.rmtree(root / "test_images"), "test_images"),
    "an empty images folder": (lambda root: empty(root / "train_images"), "train_images"),
    "an empty test folder": (lambda root: empty(root / "test_images"), "test_images"),
    "no pairs": (no_pairs, "pair"),
    "two pairs": (lambda root: remove_pairs(root, 3), "at least 3"),
    "a truncated test volume": (lambda root: cut_short(root / TEST), "test_0000"),
    "a 2D test volume": (lambda root: planes(root / TEST, 0), "test_0000"),
    "a test volume of another dtype": (lambda root: rewrite(root / TEST, lambda v: v.astype(np.uint16)), "test_0000"),
    "an unreadable test volume": (lambda root: a_folder(root / TEST), "test_0000"),
}


@pytest.mark.parametrize("what", WHOLE_SETS)
@pytest.mark.parametrize("name", ["run", "plan"])
def test_a_bad_dataset_ends_with_4_and_says_what_and_where(
    command: Command, config: Path, data: Path, tmp_path: Path, what: str, name: str
) -> None:
    damage, said = WHOLE_SETS[what]
    damage(data)
    ended = command(name, "--config", config, "--data", data, "--out", tmp_path / "run")
    assert ended.code == 4, ended.stderr
    assert said in ended.stderr and str(data) in ended.stderr and "Fix:" in ended.stderr
    assert "Traceback" not in ended.stderr and ended.stdout == ""
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_data_that_was_mended_is_continued(command: Command, config: Path, data: Path, tmp_path: Path) -> None:
    whole = (data / TEST).read_bytes()
    cut_short(data / TEST)
    options = ["--config", config, "--data", data, "--out", tmp_path / "run"]
    assert command("run", *options).code == 4
    (data / TEST).write_bytes(whole)
    assert command("run", *options).code == 0


def test_an_unreadable_file_is_a_named_skip(
    command: Command, config: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By permission; root reads everything, so the refusal is put where the file is opened."""
    import builtins

    real_open, real_os_open, locked = builtins.open, os.open, str(data / IMAGE)

    def refuse(path: Any) -> None:
        if not isinstance(path, int) and os.fspath(path) == locked:
            raise PermissionError(errno.EACCES, "Permission denied", locked)

    def checked_open(path: Any, *given: Any, **options: Any) -> Any:
        refuse(path)
        return real_open(path, *given, **options)

    def checked_os_open(path: Any, *given: Any, **options: Any) -> int:
        refuse(path)
        return real_os_open(path, *given, **options)

    monkeypatch.setattr(builtins, "open", checked_open)
    monkeypatch.setattr("io.open", checked_open)
    monkeypatch.setattr(os, "open", checked_os_open)
    ended = command("plan", "--config", config, "--data", data, "--out", tmp_path / "run", "--json")
    assert ended.code == 0, ended.stderr
    assert [case_id for case_id, _ in ended.json["skipped"]] == ["case_0001"]
    assert "ermission" in ended.json["skipped"][0][1]


def test_a_bad_file_may_be_left_out_by_name(command: Command, config: Path, data: Path, tmp_path: Path) -> None:
    cut_short(data / IMAGE)
    options = ["--config", config, "--data", data, "--out", tmp_path / "run", "--json"]
    ended = command("plan", *options, "--set", "data.skip_cases=[case_0001]")
    assert ended.code == 0
    assert ended.json["skipped"] == [["case_0001", "left out by the configuration (data.skip_cases)"]]


# A machine that refuses.


def test_no_space_for_the_cache_is_said_before_any_work(
    command: Command, config: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    options = ["--config", config, "--data", tiny_data, "--out", tmp_path / "run"]
    options += ["--set", f"features.cache_dir={cache}"]
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(tmp_path)
        patch.setattr(cache_room.shutil, "disk_usage", lambda path: usage._replace(free=1000))
        ended = command("run", *options)
    assert ended.code == 7
    assert "free" in ended.stderr and str(cache) in ended.stderr and "features.cache_dir" in ended.stderr
    assert not list(cache.glob("entries/*"))
    assert command("run", *options).code == 0


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """The n-th and every later sync fails, as on a full or vanished disk."""
    real = {name: getattr(os, name) for name in ("fsync", "fdatasync")}

    def from_now(calls: int, number: int) -> None:
        left = [calls]

        def failing(name: str) -> Callable[[int], None]:
            def sync(handle: int) -> None:
                left[0] -= 1
                if left[0] < 0:
                    raise OSError(number, os.strerror(number))
                real[name](handle)

            return sync

        for name in real:
            monkeypatch.setattr(os, name, failing(name))

    return from_now


@pytest.mark.parametrize(
    ("calls", "number"),
    [*((calls, errno.ENOSPC) for calls in (0, 3, 20, 55)), *((calls, errno.EROFS) for calls in (8, 35, 80))],
)
def test_a_disk_that_refuses_at_any_moment_ends_with_7_and_the_run_goes_on_later(
    command: Command, tiny_data: Path, tmp_path: Path, finished: Path, full_disk: Callable[[int, int], None],
    monkeypatch: pytest.MonkeyPatch, calls: int, number: int,
) -> None:  # fmt: skip
    config = write_config(tmp_path / "tiny.yaml", flat={"data.dir": str(tiny_data)})
    options = ["--config", config, "--out", tmp_path / "run"]
    full_disk(calls, number)
    ended = command("run", *options)
    monkeypatch.undo()
    assert ended.code == 7, ended.stderr
    assert os.strerror(number) in ended.stderr and "Traceback" not in ended.stderr and ended.stdout == ""
    assert command("run", *options).code == 0
    assert results(tmp_path / "run") == results(finished)


def test_a_place_that_cannot_be_written_to_ends_with_7(
    command: Command, config: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.mkdir

    def refused(self: Path, *given: Any, **options: Any) -> None:
        if self.name == "run":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        real(self, *given, **options)

    monkeypatch.setattr(Path, "mkdir", refused)
    for name in ("run", "plan"):
        ended = command(name, "--config", config, "--data", tiny_data, "--out", tmp_path / "run")
        assert ended.code == 7 and "Permission denied" in ended.stderr and str(tmp_path / "run") in ended.stderr


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="wants a file system that is read-only for everyone")
def test_a_file_system_that_is_read_only_even_for_root_ends_with_7(cli: Command, config: Path, tiny_data: Path) -> None:
    ended = cli("run", "--config", config, "--data", tiny_data, "--out", "/sys/kernel/nx46vx")
    assert ended.code == 7 and "/sys/kernel/nx46vx" in ended.stderr and ended.stdout == ""


def test_a_cache_that_is_a_file_ends_with_7(command: Command, config: Path, tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    ended = command(
        "run", "--config", config, "--data", tiny_data, "--out", tmp_path / "run",
        "--set", f"features.cache_dir={tmp_path / 'cache'}",
    )  # fmt: skip
    assert ended.code == 7 and str(tmp_path / "cache") in ended.stderr


def test_a_device_that_is_not_there_ends_with_7(
    command: Command, config: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "probe", lambda: Probe((), (), "no GPU device on this machine"))
    options = ["--config", config, "--data", tiny_data, "--out", tmp_path / "run", "--set", "resources.device=cuda"]
    ended = command("run", *options)
    assert ended.code == 7 and "resources.device" in ended.stderr and "GPU" in ended.stderr


def test_nothing_of_a_dataset_is_ever_written_to(command: Command, config: Path, data: Path, tmp_path: Path) -> None:
    before = tree(data)
    assert command("run", "--config", config, "--data", data, "--out", tmp_path / "run").code == 0
    assert tree(data) == before
