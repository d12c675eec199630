"""``verify``: a copy of a finished run proves itself anywhere, and whatever was tampered with is named."""

from __future__ import annotations

import gzip
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import tifffile
from tiny import CANDIDATES, ITERATIONS, Ended, run, tiny_settings, tree

from nx46vx.data.volume_io import read_volume, write_volume
from nx46vx.errors import UsageError
from nx46vx.events.segment import SegmentPaths
from nx46vx.paths import RunPaths, default_cache_dir
from nx46vx.pipeline.verifying import verify
from nx46vx.runtime.checkpoint.folder import MANIFEST, PAYLOAD
from nx46vx.runtime.files import REAL_FILES

Command = Callable[..., Ended]


@pytest.fixture
def copy(tmp_path: Path, finished: Path) -> Path:
    """A copy of the finished run at another path."""
    root = tmp_path / "elsewhere" / "copy"
    shutil.copytree(finished, root)
    return root


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has no feature cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))


def caught(root: Path, **outside: Path) -> dict[str, list[str]]:
    """What is wrong, by file."""
    found: dict[str, list[str]] = {}
    for problem in verify(root, **outside)["problems"]:
        found.setdefault(problem["path"], []).append(problem["what"])
    return found


def first(root: Path, pattern: str) -> Path:
    return sorted(root.glob(pattern))[0]


def flip(path: Path, at: int = -1) -> None:
    raw = bytearray(path.read_bytes())
    raw[at if at >= 0 else len(raw) // 2] ^= 1
    path.write_bytes(raw)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    value = orjson.loads(path.read_bytes())
    change(value)
    path.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n")


def test_a_clean_copy_elsewhere_passes(copy: Path, tiny_data: Path) -> None:
    before = tree(copy)
    found = verify(copy, data=tiny_data)
    assert found["problems"] == [] and found["ok"] is True
    checked = found["checked"]
    assert checked["candidates"] == checked["leaderboard rows"] == CANDIDATES
    assert checked["checkpoints"] == 2 * CANDIDATES and checked["ensemble members"] == 2
    assert checked["masks"] == 1 and checked["cache entries"] == 5 and checked["dataset files"] == 11
    assert checked["events"] > CANDIDATES * ITERATIONS
    assert found["not_checked"] == []
    assert tree(copy) == before, "nothing is written"


@pytest.mark.usefixtures("no_cache")
def test_what_is_not_in_the_copy_is_said_to_be_not_checked(copy: Path) -> None:
    (copy / "ray").mkdir()
    (copy / "ray" / "link").symlink_to("/")
    found = verify(copy)
    assert found["problems"] == []
    told = " ".join(found["not_checked"])
    assert "dataset" in told and "feature cache" in told and "ray/" in told
    assert "cache entries" not in found["checked"] and "dataset files" not in found["checked"]


def test_no_absolute_path_in_the_run_is_followed(copy: Path, tmp_path: Path, tiny_data: Path) -> None:
    """The configuration names the dataset by its absolute path, and it is there: still it has to be given."""
    assert str(tiny_data) in (copy / "config.yaml").read_text()
    text = (copy / "config.yaml").read_text().replace("cache_dir: null", f"cache_dir: {default_cache_dir()}")
    (copy / "config.yaml").write_text(text)
    found = verify(copy)
    assert found["problems"] == []
    assert {"dataset files", "cache entries"}.isdisjoint(found["checked"])
    assert verify(copy, cache=default_cache_dir(), data=tiny_data)["checked"]["cache entries"] == 5


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize("pattern", [
    "events/driver/*.gz", "events/k000*/*.gz", "events/*/*.seal.json", "events/run_seal.json",
    f"checkpoints/*/*/{MANIFEST}", f"checkpoints/*/*/{PAYLOAD}", "plan.json", "run.json", "decisions.json",
    "leaderboard.csv", "ensemble.json", "masks/*.tif", "submission.zip", "report.json", "report.md",
])  # fmt: skip
def test_every_flipped_bit_is_caught(copy: Path, pattern: str) -> None:
    """At eleven places of each kind of file."""
    path = first(copy, pattern)
    whole = path.read_bytes()
    for part in range(11):
        at = min(len(whole) * part // 10, len(whole) - 2)
        if pattern == "run.json" and b"created" in whole[max(0, at - 40) : at + 40]:
            continue  # the time of birth stands nowhere else
        line = whole[whole.rfind(b"\n", 0, at) + 1 : whole.find(b"\n", at)]
        if line.lstrip().startswith((b'"image":', b'"label":')):
            continue  # where a file lay is no fact about the run, and is never followed
        flip(path, at)
        assert verify(copy)["problems"], f"byte {at} of {path.name}"
        path.write_bytes(whole)
    assert verify(copy)["problems"] == []


NUMBERS: list[tuple[str, tuple[Any, ...], Any]] = [
    ("report.json", ("holdout", "ensemble_f_half"), 0.99),
    ("report.json", ("validation", "ensemble_f_half"), 0.99),
    ("report.json", ("holdout", "intensity_f_half"), 0.01),
    ("report.json", ("holdout", "true_positives", 3), 1),
    ("report.json", ("holdout", "ensemble_average_precision"), 0.99),
    ("report.json", ("holdout", "best_member_average_precision"), 0.01),
    ("report.json", ("holdout", "intensity_histograms", 1, 200), 5),
    ("report.json", ("validation", "threshold_index"), 1),
    ("report.json", ("masks", "foreground", "test_0000"), 0.5),
    ("report.json", ("masks", "thresholds", "test_0000", "strong_th"), 0.5),
    ("report.json", ("masks", "rule", "border"), 4),
    ("report.json", ("submission", "sha512"), "0" * 128),
    ("report.json", ("submission", "files", 0, "foreground_fraction"), 0.5),
    ("report.json", ("coverage", "train_pair_coverage_pct_effective"), 50.0),
    ("report.json", ("best_candidate", "objective"), -1.0),
    ("report.json", ("worst_optimality_gap",), 0.0),
    ("report.json", ("iterations_per_candidate",), 120),
    ("report.json", ("candidates",), 135),
    ("report.json", ("reduced",), False),
    ("report.json", ("members", 0, "weight"), 0.9),
    ("report.json", ("split", "train", 0), "case_0009"),
    ("report.json", ("seconds", "segment"), 0.0),
    ("report.json", ("log_root",), "0" * 128),
    ("report.json", ("run_id",), "0" * 32),
    ("ensemble.json", ("members", 0, "theta", 2), 0.125),
    ("ensemble.json", ("members", 1, "weight"), 0.125),
    ("ensemble.json", ("members", 0, "candidate_id"), "k000-l1_0.01-l2_0.001"),
    ("ensemble.json", ("members", 0, "spec", "prior"), 0.25),
    ("ensemble.json", ("joint", "share"), 0.125),
    ("ensemble.json", ("joint", "theta", 3), 0.125),
    ("plan.json", ("coverage", "train_pair_coverage_pct_effective"), 50.0),
    ("plan.json", ("train_pairs", 0, "image_digest"), "0" * 128),
    ("plan.json", ("fit", "neurons", 0, "prior"), 0.25),
    ("plan.json", ("fit", "train_keys", 0), "0" * 128),
    ("plan.json", ("split", "holdout", 0), "case_0001"),
    ("plan.json", ("max_iter",), 120),
    ("decisions.json", ("epoch_best", "0"), -1.0),
    ("decisions.json", ("growth", "2", "grow"), True),
]  # fmt: skip


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize(("name", "key", "value"), NUMBERS)
def test_an_edited_number_is_named_by_file_and_key(copy: Path, name: str, key: tuple[Any, ...], value: Any) -> None:
    def change(node: Any) -> None:
        for part in key[:-1]:
            node = node[part]
        assert node[key[-1]] != value
        node[key[-1]] = value

    edit(copy / name, change)
    found = caught(copy)
    assert name in found
    named = " ".join(found[name])
    assert str(key[0]) in named or (name == "plan.json" and key[0] == "train_pairs" and "dataset" in named)
    assert not any(path.startswith(("events", "checkpoints")) for path in found) or name == "plan.json"


def test_the_intercept_is_judged_on_the_cache(copy: Path) -> None:
    edit(copy / "ensemble.json", lambda value: value.update(intercept=value["intercept"] + 0.5))
    assert any("validation.true_positives" in what for what in caught(copy)["report.json"])


def test_figures_that_were_made_up_everywhere_else_are_caught_by_data(copy: Path, tiny_data: Path) -> None:
    edit(copy / "report.json", lambda value: value["holdout"].update(intensity_threshold=3))
    assert any("intensity_threshold" in what for what in caught(copy, data=tiny_data)["report.json"])


@pytest.mark.parametrize("column", ["objective", "val_f1", "val_fbeta", "val_iou", "best_threshold", "sparsity", "iter",
                                    "epoch", "train_loss", "val_ce", "seconds", "l1"])  # fmt: skip
@pytest.mark.usefixtures("no_cache")
def test_an_edited_leaderboard_is_named_by_line_and_column(copy: Path, column: str) -> None:
    path = copy / "leaderboard.csv"
    lines = path.read_text().splitlines()
    at, row = lines[0].split(",").index(column), lines[-1].split(",")
    row[at] = "7" if column in ("iter", "epoch") else "0.4321" if column != "objective" else "9.5"
    path.write_text("\n".join([*lines[:-1], ",".join(row)]) + "\n")
    problems = [one for one in verify(copy)["problems"] if one["path"] == "leaderboard.csv"]
    assert problems and problems[0]["line"] == len(lines)
    assert any(column in one["what"] for one in problems)


@pytest.mark.usefixtures("no_cache")
def test_a_leaderboard_with_a_row_less_is_caught(copy: Path) -> None:
    path = copy / "leaderboard.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    assert "it has no row" in caught(copy)["leaderboard.csv"][0]


def unseal(root: Path, writer: str) -> Path:
    """Turn a writer's packed segment into the plain one that it was, with neither seal."""
    paths = SegmentPaths(root / "events" / writer, 0)
    paths.plain.write_bytes(gzip.decompress(paths.packed.read_bytes()))
    paths.packed.unlink()
    paths.seal.unlink()
    (root / "events" / "run_seal.json").unlink()
    return paths.plain


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize("how", ["swap", "delete", "repeat", "cut", "edit"])
def test_lines_of_the_log_cannot_be_changed(copy: Path, how: str) -> None:
    plain = unseal(copy, "k000-l1_0.001-l2_0.001")
    lines = plain.read_bytes().splitlines(keepends=True)
    changed = {
        "swap": [*lines[:5], lines[6], lines[5], *lines[7:]],
        "delete": [*lines[:5], *lines[6:]],
        "repeat": [*lines[:6], lines[5], *lines[6:]],
        "cut": lines[:-4],
        "edit": [*lines[:5], lines[5].replace(b'"restart":0', b'"restart":1'), *lines[6:]],
    }[how]
    assert changed != lines
    plain.write_bytes(b"".join(changed))
    found = verify(copy)["problems"]
    about_it = [one for one in found if "k000-l1_0.001-l2_0.001" in one["path"]]
    assert about_it
    if how != "cut":
        assert about_it[0]["line"] in (6, 7)
    else:
        assert any("missing" in one["what"] for one in about_it)


def add(name: str, data: bytes = b"") -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)

    return change


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new))

    return change


def remove(pattern: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = first(root, pattern)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def new_mask(root: Path) -> None:
    path = first(root, "masks/*.tif")
    mask = tifffile.imread(path)
    mask[20, 20, 20] ^= 1
    path.unlink()
    write_volume(path, mask, compression=None)


def new_submission(root: Path) -> None:
    """Another mask in both places: only the log's trace and the digests tell."""
    new_mask(root)
    with zipfile.ZipFile(root / "submission.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(root / "masks" / "test_0000.tif", "test_0000.tif")


def link(root: Path) -> None:
    path = root / "plan.json"
    moved = root.parent / "plan.json"
    path.rename(moved)
    path.symlink_to(moved)


def link_folder(root: Path) -> None:
    moved = root.parent / "events"
    (root / "events").rename(moved)
    (root / "events").symlink_to(moved)


def pipe(root: Path) -> None:
    (root / "report.md").unlink()
    os.mkfifo(root / "report.md")


OWNER = "k000-l1_0.001-l2_0.001"
CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a segment is gone": (remove("events/driver/*.gz"), "events/driver"),
    "a writer is gone": (remove("events/k001*"), "events/k001"),
    "a seal is gone": (remove("events/*/*.seal.json"), "events/driver"),
    "the run's seal is gone": (remove("events/run_seal.json"), "report.json"),
    "a file in the log": (add("events/driver/notes.txt"), "events/driver/notes.txt"),
    "a hidden file in the log": (add("events/.x.tmp"), "events/.x.tmp"),
    "a folder in the log": (lambda root: (root / "events/k009").mkdir(), "events/k009"),
    "a writer in the log": (add("events/k009/00000000.jsonl"), "events/k009"),
    "a checkpoint is gone": (remove(f"checkpoints/{OWNER}/ckpt-*"), f"checkpoints/{OWNER}/ckpt-00000001"),
    "a candidate is gone": (remove(f"checkpoints/{OWNER}"), f"checkpoints/{OWNER}"),
    "a payload is gone": (remove(f"checkpoints/{OWNER}/*/{PAYLOAD}"), f"checkpoints/{OWNER}/ckpt-00000001"),
    "a file in the store": (add("checkpoints/notes.txt"), "checkpoints/notes.txt"),
    "a file in a checkpoint": (add(f"checkpoints/{OWNER}/ckpt-00000001/x"), f"checkpoints/{OWNER}/ckpt-00000001/x"),
    "a hidden file in the store": (add(f"checkpoints/{OWNER}/.tmp-1-a/x"), f"checkpoints/{OWNER}/.tmp-1-a"),
    "a mark with content": (add(f"checkpoints/{OWNER}/fence-00000001", b"x"), f"checkpoints/{OWNER}/fence-00000001"),
    "a mark of a session that never was": (add(f"checkpoints/{OWNER}/fence-00000077"), f"checkpoints/{OWNER}"),
    "a mask is another": (new_mask, "masks/test_0000.tif"),
    "mask and submission are others": (new_submission, "masks/test_0000.tif"),
    "a mask is gone": (remove("masks/*.tif"), "masks/test_0000.tif"),
    "a mask too many": (add("masks/test_0001.tif"), "masks/test_0001.tif"),
    "the plan is gone": (remove("plan.json"), "plan.json"),
    "the configuration is gone": (remove("config.yaml"), "config.yaml"),
    "the configuration is another": (
        replace("config.yaml", "seed: 2", "seed: 3"),
        "config.yaml",
    ),
    "the identity is gone": (remove("run.json"), "run.json"),
    "the leaderboard is gone": (remove("leaderboard.csv"), "leaderboard.csv"),
    "the ensemble is gone": (remove("ensemble.json"), "ensemble.json"),
    "the submission is gone": (remove("submission.zip"), "submission.zip"),
    "the report is gone": (remove("report.json"), "report.json"),
    "the text is gone": (remove("report.md"), "report.md"),
    "the report is no JSON": (add("report.json", b"{"), "report.json"),
    "the report holds nothing": (add("report.json", b"{}"), "report.json"),
    "the plan is a list": (add("plan.json", b"[]"), "plan.json"),
    "the plan holds nothing": (add("plan.json", b"{}"), "plan.json"),
    "a link in a file's place": (link, "plan.json"),
    "a link in a folder's place": (link_folder, "events"),
    "a pipe in a file's place": (pipe, "report.md"),
}  # fmt: skip


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize("what", CHANGES)
def test_whatever_else_is_changed_is_caught_and_named(copy: Path, what: str) -> None:
    change, path = CHANGES[what]
    change(copy)
    assert any(found.startswith(path) for found in caught(copy)), caught(copy)


@pytest.fixture
def own_cache(tmp_path: Path) -> Path:
    """A copy of the feature cache."""
    shutil.copytree(default_cache_dir(), tmp_path / "cache")
    return tmp_path / "cache"


def test_a_damaged_cache_entry_is_caught(finished: Path, own_cache: Path) -> None:
    keys = orjson.loads((finished / "plan.json").read_bytes())["fit"]["train_keys"]
    flip(own_cache / "entries" / keys[0][:2] / keys[0] / "features.npy")
    assert any(keys[0] in path for path in caught(finished, cache=own_cache))
    shutil.rmtree(own_cache / "entries" / keys[0][:2] / keys[0])
    found = verify(finished, cache=own_cache)
    assert found["problems"] == []
    assert any("1 of 5 entries" in what for what in found["not_checked"])


def test_another_dataset_is_caught(copy: Path, tiny_data: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_data, tmp_path / "data")
    flip(tmp_path / "data" / "train_images" / "case_0001.tif")
    (tmp_path / "data" / "train_labels" / "case_0002.tif").unlink()
    found = caught(copy, data=tmp_path / "data")
    assert {Path(path).name for path in found} == {"case_0001.tif", "case_0002.tif"}


def test_a_stopped_run_verifies_as_far_as_it_got(tmp_path: Path, tiny_data: Path) -> None:
    from tiny import Interrupted

    from nx46vx.errors import StoppedError

    root = tmp_path / "run"
    with pytest.raises(StoppedError):
        run(tiny_settings(tiny_data), root, executor=Interrupted(3))
    found = verify(root, data=tiny_data)
    assert found["problems"] == [] and found["checked"]["masks"] == 1
    assert any("seal" in what for what in found["not_checked"])
    edit(root / "report.json", lambda value: value.update(iterations_done=80))
    assert any("iterations_done is 80" in what for what in caught(root)["report.json"])
    edit(root / "report.json", lambda value: value.update(iterations_done=40, complete=True))
    assert any("complete is True" in what for what in caught(root)["report.json"])
    newest = first(root, f"checkpoints/*/ckpt-*/{PAYLOAD}")
    flip(newest)
    assert any(path.startswith("checkpoints/") for path in caught(root))


def test_a_run_that_was_planned_again_after_its_end_still_verifies(copy: Path, tiny_data: Path) -> None:
    from nx46vx.pipeline.planning import plan

    plan(tiny_settings(tiny_data), copy)
    assert verify(copy)["problems"] == []


def test_on_the_command_line(command: Command, copy: Path, tiny_data: Path) -> None:
    ended = command("verify", copy, "--data", tiny_data, "--json")
    assert ended.code == 0 and ended.json["ok"] is True and ended.json["problems"] == []
    assert command("verify", copy).code == 0
    edit(copy / "report.json", lambda value: value.update(candidates=135))
    plain = command("verify", copy)
    assert plain.code == 5
    assert "problem: report.json: candidates is 135" in plain.stdout and "checked: " in plain.stdout
    assert "IntegrityError" in plain.stderr and "candidates is 135" in plain.stderr
    told = command("verify", copy, "--json")
    assert told.code == 5
    assert {one["path"] for one in told.json["problems"]} == {"report.json", "report.md"}
    assert all(one.keys() == {"path", "line", "what"} for one in told.json["problems"])


def test_something_else_than_a_run_is_wrong_usage(command: Command, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        verify(tmp_path)
    assert command("verify", tmp_path / "absent").code == 2


def test_events_are_printed_as_json_lines(command: Command, finished: Path, tmp_path: Path) -> None:
    lines = [orjson.loads(line) for line in command("events", finished).stdout.splitlines()]
    assert len(lines) > CANDIDATES * ITERATIONS and lines[0]["event"] == "WRITER_OPEN"
    some = command("events", finished, "--event", "fit_prox_iter", "--trial", OWNER).stdout.splitlines()
    assert [orjson.loads(line)["iter"] for line in some] == list(range(1, ITERATIONS + 1))
    followed = command("events", finished, "--follow", "--event", "BOOT")
    assert followed.code == 0 and len(followed.stdout.splitlines()) == 1, "a finished run has nothing more to say"
    told = command("events", finished, "--parquet", tmp_path / "events.parquet")
    assert told.code == 0 and f"{len(lines)} events" in told.stdout
    import pyarrow.parquet as pq

    assert pq.read_table(tmp_path / "events.parquet").num_rows == len(lines)
    assert command("events", finished, "--follow", "--parquet", tmp_path / "x").code == 2
    assert command("events", tmp_path).code == 2


def test_the_mask_share_is_counted_from_the_voxels(finished: Path) -> None:
    """What verify compares is what another library counts."""
    report = orjson.loads((finished / "report.json").read_bytes())
    for case_id, share in report["masks"]["foreground"].items():
        assert share == float(np.mean(tifffile.imread(RunPaths(finished).mask(case_id)) == 1))
    assert REAL_FILES.exists(finished / "masks")


@pytest.mark.usefixtures("no_cache")
def test_a_changed_map_of_doubt_is_named(copy: Path) -> None:
    path = RunPaths(copy).map("test_0000", "deviation")
    values = np.array(read_volume(path))
    values[3, 4, 5] ^= 1
    write_volume(path, values)
    problems = verify(copy)["problems"]
    assert [one["path"] for one in problems] == ["uncertainty/test_0000_deviation.tif"]
    path.unlink()
    assert any("is missing" in one["what"] for one in verify(copy)["problems"])
