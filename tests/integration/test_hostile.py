"""Hostile and damaged inputs: refused by name and reason, at once, in little memory, and nothing else is harmed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_tiffs import FILES, IMAGE, LABEL, PLACES, lay, written
from tiny import Ended, write_config

from nx46vx.data import integrity
from nx46vx.data.volume_io import open_planes, read_volume
from nx46vx.errors import DataError

Command = Callable[..., Ended]
KINDS = [*FILES, *PLACES]
SECONDS, MEGABYTES = 5.0, 512

#: Labels that are sound TIFFs and unfit for use.
LABELS: dict[str, tuple[np.ndarray, str]] = {
    "values 0 1 3": (np.where(LABEL == 2, 3, LABEL).astype(np.uint8), r"values \{0, 1, 3\}"),
    "value 255 for surface": (LABEL * 255, "1 surface"),
    "all ignored": (np.full_like(LABEL, 2), "ignored"),
    "background only": (np.zeros_like(LABEL), "single class"),
    "another shape": (LABEL[:, :, :-1], "shape mismatch"),
    "fewer planes": (LABEL[:-1], "shape mismatch"),
    "axes in another order": (LABEL.transpose(2, 1, 0), "shape mismatch"),
}

#: Plans a run on each dataset named on the command line, after a sound one; says how each ended, and the peak.
#: ``command``: by the command itself, else by the function that it calls, which saves half of the time.
CHILD = """
import contextlib, io, json, resource, sys, time
from pathlib import Path
from nx46vx.cli.main import main
from nx46vx.errors import NX46Error
from nx46vx.pipeline.planning import plan as plan_job
from nx46vx.settings import load_settings

def status(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) << 10

def call(data):
    if how == "command":
        return main(["plan", "--config", config, "--data", data, "--out", f"{data}.run", "--json"])
    try:
        plan_job(load_settings(Path(config), overrides={"data.dir": data}), Path(f"{data}.run"))
        return 0
    except NX46Error as error:
        print(error, file=sys.stderr)
        return error.exit_code

def plan(data):
    out, err = io.StringIO(), io.StringIO()
    began = time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = call(data)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "seconds": time.monotonic() - began}

how, config, sound, *others = sys.argv[1:]
assert plan(sound)["code"] == 0
before = status("VmHWM")
resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + (1 << 30),) * 2)  # no bomb gets as far as an allocation
ended = [plan(data) for data in others]
print(json.dumps({"ended": ended, "grown": status("VmHWM") - before}))
"""


def dataset(root: Path, sound: Path) -> Path:
    """A dataset of links to a sound one."""
    for folder in ("train_images", "train_labels", "test_images"):
        (root / folder).mkdir(parents=True)
        for path in (sound / folder).iterdir():
            (root / folder / path.name).symlink_to(path)
    return root


def plan_all(tmp_path: Path, sound: Path, others: list[Path], how: str) -> dict[str, Any]:
    config = write_config(tmp_path / "tiny.yaml")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, how, config, dataset(tmp_path / "sound", sound), *others],
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["grown"] < MEGABYTES << 20, found["grown"]
    return found


def test_more_than_a_hundred_kinds_are_tried() -> None:
    assert len(KINDS) == len(set(KINDS)) > 100


def test_each_kind_in_a_pair_is_skipped_by_name_and_reason_and_the_others_are_used(
    tmp_path: Path, tiny_data: Path
) -> None:
    """All at once: as the image of one pair and as the label of another."""
    root = dataset(tmp_path / "data", tiny_data)
    images, labels, reasons = root / "train_images", root / "train_labels", {}
    for number, kind in enumerate(KINDS):
        as_image, as_label = f"image_{number:03d}", f"label_{number:03d}"
        for place, name in ((images, as_image), (labels, as_label)):
            reasons[name] = f"{name[:5]}: .*{lay(place / f'{name}.tif', kind)}"
        (labels / f"{as_image}.tif").write_bytes(written(LABEL))
        (images / f"{as_label}.tif").write_bytes(written(IMAGE))
    for number, (volume, reason) in enumerate(LABELS.values()):
        (labels / f"values_{number}.tif").write_bytes(written(volume))
        (images / f"values_{number}.tif").write_bytes(written(IMAGE))
        reasons[f"values_{number}"] = reason
    found = plan_all(tmp_path, tiny_data, [root], "command")
    (ended,) = found["ended"]
    assert ended["code"] == 0, ended["err"]
    planned = json.loads(ended["out"])
    skipped = dict(planned["skipped"])
    assert skipped.keys() == reasons.keys()
    for case_id, reason in reasons.items():
        assert re.search(reason, skipped[case_id]), (case_id, skipped[case_id])
        if not case_id.startswith("values"):
            assert f"{case_id}.tif" in skipped[case_id]
        assert case_id in ended["err"]
    assert sum(planned["cases"][role] for role in ("train", "validation", "holdout")) == 5
    assert ended["seconds"] < 0.2 * SECONDS * len(KINDS)


@pytest.mark.parametrize(("how", "kinds"), [("function", KINDS), ("command", KINDS[:: len(KINDS) // 10])])
def test_each_kind_as_a_test_volume_ends_with_4_and_its_name_and_reason(
    tmp_path: Path, tiny_data: Path, how: str, kinds: list[str]
) -> None:
    roots, reasons = [], []
    for number, kind in enumerate(kinds):
        roots.append(dataset(tmp_path / f"data_{number:03d}", tiny_data))
        reasons.append(lay(roots[-1] / "test_images" / "bad.tif", kind))
    ended = plan_all(tmp_path, tiny_data, roots, how)["ended"]
    for kind, root, reason, one in zip(kinds, roots, reasons, ended, strict=True):
        assert one["code"] == 4 and one["out"] == "", (kind, one)
        assert re.search(reason, one["err"]), (kind, one["err"])
        assert str(root / "test_images" / "bad.tif") in one["err"] and "Traceback" not in one["err"], (kind, one["err"])
        assert one["seconds"] < SECONDS, (kind, one["seconds"])


@pytest.mark.parametrize("folder", ["train_images", "train_labels"])
def test_a_file_that_changes_while_it_is_read_is_skipped(
    command: Command, tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    root = dataset(tmp_path / "data", tiny_data)
    for place, volume in (("train_images", IMAGE), ("train_labels", LABEL)):
        (root / place / "moving.tif").write_bytes(written(volume))
    real = integrity.digest_file

    def digest(path: Path) -> str:
        found = real(path)
        if path == root / folder / "moving.tif":
            path.write_bytes(path.read_bytes() + b"more")
        return found

    monkeypatch.setattr(integrity, "digest_file", digest)
    ended = command("plan", "--config", write_config(tmp_path / "t.yaml"), "--data", root, "--out", tmp_path / "run",
                    "--json")  # fmt: skip
    assert ended.code == 0, ended.stderr
    ((case_id, reason),) = ended.json["skipped"]
    assert case_id == "moving" and "changed while it was read" in reason and "moving.tif" in reason


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_a_file_that_is_cut_while_it_is_read_is_an_error_and_no_crash(tmp_path: Path, compression: str | None) -> None:
    """Mapped bytes that vanish would end the process."""
    path = tmp_path / "v.tif"
    volume = np.random.default_rng(1).integers(0, 255, (40, 64, 64), dtype=np.uint8)
    path.write_bytes(written(volume, compression=compression))
    with open_planes(path) as (shape, planes):
        assert shape == volume.shape
        np.testing.assert_array_equal(next(planes), volume[0])
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(DataError, match=r"v\.tif"):
            list(planes)


def test_planes_are_those_of_the_volume(tmp_path: Path) -> None:
    for number, options in enumerate(
        [{}, {"compression": "lzw"}, {"volumetric": True, "compression": "deflate"}, {"metadata": {}, "truncate": True}]
    ):
        path = tmp_path / f"{number}.tif"
        path.write_bytes(written(IMAGE, **options))
        with open_planes(path) as (shape, planes):
            np.testing.assert_array_equal(np.stack(list(planes)), IMAGE)
        assert shape == read_volume(path).shape == IMAGE.shape
