"""The main job from a dataset to a valid submission: what it leaves behind, continues, repeats and refuses."""

from __future__ import annotations

import csv
import io
import math
import os
import shutil
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import tifffile
import yaml
from PIL import Image
from tiny import (
    CANDIDATES,
    ITERATIONS,
    WHOLE,
    Ended,
    Interrupted,
    events,
    iterations_done,
    opened,
    overlaid,
    results,
    run,
    table,
    tiny_settings,
    tree,
    write_config,
)  # fmt: skip

from nx46vx.data.volume_io import read_volume
from nx46vx.errors import StoppedError
from nx46vx.events import verify_log
from nx46vx.model.fitplan import load_fit_plan
from nx46vx.paths import RunPaths
from nx46vx.pipeline import growing
from nx46vx.runtime.digest import digest_array
from nx46vx.settings import Settings
from trainables.task import open_store

Command = Callable[..., Ended]

COLUMNS = (
    "candidate_id,meta_neuron,l1,l2,epoch,iter,objective,train_loss,val_ce,val_f1,val_fbeta,val_iou,best_threshold,"
    "sparsity,seconds"
)  # fmt: skip


def masks_of(submission: Path) -> dict[str, np.ndarray]:
    """The masks of a submission, read by other programs than ours."""
    masks = {}
    with zipfile.ZipFile(submission) as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_DEFLATED
            content = archive.read(info)
            masks[info.filename] = tifffile.imread(io.BytesIO(content))
            with Image.open(io.BytesIO(content)) as image:
                for z in range(image.n_frames):
                    image.seek(z)
                    assert np.array_equal(np.asarray(image), masks[info.filename][z])
    return masks


# What a finished run leaves.


def test_the_run_directory_is_complete(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "plan.json", "config.yaml", "events", "checkpoints", "leaderboard.csv", "ensemble.json", "submission.zip",
        "report.json", "report.md",
    }  # fmt: skip
    assert not [path for path in finished.rglob("*") if path.name.endswith(".tmp")]


def test_the_resolved_configuration_is_kept(finished: Path, tiny_data: Path) -> None:
    kept = Settings.model_validate(yaml.safe_load((finished / "config.yaml").read_text()))
    assert kept == tiny_settings(tiny_data)


def test_the_leaderboard_has_exactly_its_columns_one_row_per_candidate_at_full_precision(finished: Path) -> None:
    text = (finished / "leaderboard.csv").read_text()
    assert text.splitlines()[0] == COLUMNS
    rows = list(csv.DictReader(io.StringIO(text)))
    plan = load_fit_plan(finished)
    assert {row["candidate_id"] for row in rows} == {c.candidate_id for c in plan.candidates}
    assert len(rows) == CANDIDATES
    objectives = [float(row["objective"]) for row in rows]
    assert objectives == sorted(objectives)
    done = {event["candidate_id"]: event for event in events(finished, "CANDIDATE_DONE")}
    for row in rows:
        assert (row["epoch"], row["iter"]) == ("1", str(ITERATIONS))
        event = done[row["candidate_id"]]
        for column in COLUMNS.split(",")[6:]:
            assert float(row[column]) == event[column], f"{column} lost digits on its way"
        assert round(float(row["best_threshold"]) * 20) in range(1, 20)
        assert 0 <= float(row["sparsity"]) <= 1 and float(row["seconds"]) > 0


def test_the_objective_is_the_documented_formula(finished: Path) -> None:
    """CE + 0.02 (1 - sparsity) - 0.20 F1 - 0.15 F0.5 - 0.10 IoU + 0.005 lambda_dyn, from the logged counts."""
    specs = {spec.meta_neuron: spec for spec in load_fit_plan(finished).neurons}
    for event in events(finished, "CANDIDATE_DONE"):
        n = event["val_positives"] + event["val_negatives"]
        best = (-1.0, 0.0, 0.0, 0.0, 0.0)
        for k, (tp, fp) in enumerate(zip(event["val_true_positives"], event["val_false_positives"], strict=True)):
            fn = event["val_positives"] - tp
            f_half = 1.25 * tp / (1.25 * tp + 0.25 * fn + fp) if tp else 0.0
            f1 = 2 * tp / (2 * tp + fn + fp) if tp else 0.0
            iou = tp / (tp + fn + fp) if tp else 0.0
            if f_half > best[0] + 1e-15:
                best = (f_half, f1, iou, (tp + fp) / n, 0.05 * (k + 1))
        f_half, f1, iou, share, threshold = best
        assert event["val_fbeta"] == pytest.approx(f_half, rel=1e-12)
        assert event["val_f1"] == pytest.approx(f1, rel=1e-12)
        assert event["val_iou"] == pytest.approx(iou, rel=1e-12)
        assert event["best_threshold"] == pytest.approx(threshold, rel=1e-12)
        dynamic = share * (1 - share) / abs(specs[event["meta_neuron"]].log_variance)
        wanted = (
            event["val_ce"] + 0.02 * (1 - event["sparsity"]) - 0.20 * f1 - 0.15 * f_half - 0.10 * iou + 0.005 * dynamic
        )
        assert event["objective"] == pytest.approx(wanted, rel=1e-9)


def test_the_submission_holds_one_3d_mask_per_test_volume(finished: Path, tiny_data: Path) -> None:
    masks = masks_of(finished / "submission.zip")
    tests = {path.name: tifffile.imread(path) for path in (tiny_data / "test_images").glob("*.tif")}
    assert masks.keys() == tests.keys()
    for name, mask in masks.items():
        assert mask.shape == tests[name].shape and mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 1}
        assert len({plane.tobytes() for plane in mask}) > 1, "one 2D mask repeated"
    rules = events(finished, "COMPETITION_RULES_VALIDATION")
    assert rules and rules[-1]["ok"] is True


def test_the_masks_are_of_use(tmp_path: Path, tiny_data: Path) -> None:
    """Twice the precision of chance on a labelled volume that is passed off as a test volume."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    truth = tifffile.imread(data / "train_labels" / "case_0004.tif")
    shutil.rmtree(data / "test_images")
    (data / "test_images").mkdir()
    (data / "train_images" / "case_0004.tif").rename(data / "test_images" / "case_0004.tif")
    (data / "train_labels" / "case_0004.tif").unlink()
    run(tiny_settings(data, {"grid.max_iter": 60}), tmp_path / "run")
    (mask,) = masks_of(tmp_path / "run" / "submission.zip").values()
    labelled = truth < 2
    precision = (truth[labelled & (mask == 1)] == 1).mean()
    assert precision > 2 * (truth[labelled] == 1).mean()


def test_the_ensemble_says_who_helps(finished: Path) -> None:
    ensemble = orjson.loads((finished / "ensemble.json").read_bytes())
    report = orjson.loads((finished / "report.json").read_bytes())
    assert ensemble["reduced"] is True
    by_neuron = {member["meta_neuron"]: member for member in report["members"]}
    assert set(by_neuron) == {0, 1}
    first_of: dict[str, str] = {}
    for row in table(finished):
        first_of.setdefault(row["meta_neuron"], row["candidate_id"])
    assert {str(k): member["candidate_id"] for k, member in by_neuron.items()} == first_of
    assert all(member["helps"] == (member["weight"] > 0) for member in by_neuron.values())
    assert max(member["weight"] for member in by_neuron.values()) > 0


def test_the_plan_freezes_split_views_and_digests(finished: Path) -> None:
    plan = orjson.loads((finished / "plan.json").read_bytes())
    split = plan["split"]
    roles = [split["train"], split["validation"], split["holdout"]]
    assert [len(role) for role in roles] == [3, 1, 1]
    assert len({case for role in roles for case in role}) == 5
    neurons = load_fit_plan(finished).neurons
    assert len({spec.digest for spec in neurons}) == 2
    assert all(len(set(spec.view)) == 6 for spec in neurons)
    assert neurons[0].view != neurons[1].view
    assert plan["coverage"]["train_pair_coverage_pct_effective"] == 100.0
    assert plan["coverage"]["coverage_gap_is_justified"] is True and plan["coverage"]["coverage_gap_reason"] == ""


def test_checkpoints_carry_every_field_of_the_manifest(finished: Path) -> None:
    fields = {
        "ts_ns", "run_id", "version", "git_sha", "epoch", "candidate_index", "candidate_total", "iter", "max_iter",
        "model_state", "optimizer_state", "rng_state_numpy", "rng_state_python", "rng_state_torch", "best_metrics",
        "data_cursor", "merkle_prev", "merkle_curr", "sha512_payload",
    }  # fmt: skip
    manifests = list((finished / "checkpoints").rglob("ckpt_manifest.json"))
    assert len(manifests) >= CANDIDATES
    for path in manifests:
        assert fields <= orjson.loads(path.read_bytes()).keys()
    plan = load_fit_plan(finished)
    store = open_store(plan, finished, 0)
    assert [store.latest(c.candidate_id).manifest["candidate_index"] for c in plan.candidates] == [0, 1, 2, 3]  # type: ignore[union-attr]


def test_a_reduced_run_is_marked_everywhere(finished: Path, command: Command) -> None:
    for name in ("plan.json", "ensemble.json", "report.json"):
        assert orjson.loads((finished / name).read_bytes())["reduced"] is True
    assert "REDUCED" in (finished / "report.md").read_text().splitlines()[0]
    assert events(finished, "BOOT")[0]["reduced"] is True
    assert events(finished, "EXEC_COMPLETE")[0]["reduced"] is True
    assert events(finished, "GLOBAL_STATS")[0]["reduced"] is True
    assert command("status", finished, "--json").json["reduced"] is True


# Events.


def test_all_events_that_users_search_for_are_there(finished: Path) -> None:
    names = Counter(event["event"] for event in events(finished))
    for name in (
        "BOOT", "PREFLIGHT_START", "PREFLIGHT_OK", "DATASET_DISCOVERY", "TRAIN_DATASET_AUDIT", "TRAIN_COVERAGE_PLAN",
        "TRAIN_COVERAGE_PROGRESS", "TRAIN_COVERAGE_FINAL", "PROGRESS_UPDATE", "HEARTBEAT", "ARRAY_TRACE",
        "CANDIDATE_DONE", "AUTO_TUNE_POLICY_DECISION", "COMPETITION_RULES_VALIDATION", "GLOBAL_STATS", "EXEC_COMPLETE",
    ):  # fmt: skip
        assert names[name] > 0, name
    assert names["CANDIDATE_DONE"] == CANDIDATES
    assert names["EXEC_COMPLETE"] == names["GLOBAL_STATS"] == names["BOOT"] == 1
    driver = [event["event"] for event in events(finished) if event["writer"] == "driver"]
    assert driver[:2] == ["WRITER_OPEN", "BOOT"]
    assert driver[-1] == "EXEC_COMPLETE"


def test_the_boot_event_tells_version_configuration_and_hardware(finished: Path) -> None:
    (boot,) = events(finished, "BOOT")
    assert boot["version"] and boot["config"]["grid.max_iter"] == ITERATIONS
    assert boot["hardware"]["cpus"] >= 1 and boot["hardware"]["memory_bytes"] > 0
    assert boot["hardware"]["device"] == "cpu"


def test_discovery_preflight_and_coverage_count_right(finished: Path) -> None:
    (found,) = events(finished, "DATASET_DISCOVERY")
    assert (found["pair_count"], found["test_count"]) == (5, 1)
    assert sum(found["class_fractions"].values()) == pytest.approx(1.0)
    (audit,) = events(finished, "TRAIN_DATASET_AUDIT")
    assert (audit["pair_count_discovered"], audit["pair_count_selected_for_training"]) == (5, 5)
    assert audit["coverage_pct_selected_vs_discovered"] == 100.0
    (begun,), (ok,) = events(finished, "PREFLIGHT_START"), events(finished, "PREFLIGHT_OK")
    assert begun["train_pairs"] == begun["test_files"] == 1
    assert ok["bytes"] == 3 * 48**3
    (final,) = events(finished, "TRAIN_COVERAGE_FINAL")
    assert final["train_pair_coverage_pct_effective"] == 100.0 and final["coverage_gap_is_justified"] is True
    order = [event["event"] for event in events(finished) if event["writer"] == "driver"]
    assert order.index("PREFLIGHT_OK") < order.index("TRAIN_COVERAGE_PROGRESS") < order.index("TRAIN_COVERAGE_FINAL")


def test_a_chosen_gap_is_stated_with_its_reason(tmp_path: Path, tiny_data: Path) -> None:
    settings = tiny_settings(tiny_data, {"data.max_pairs": 4, "data.max_pairs_reason": "a quick look"})
    report = run(settings, tmp_path / "run")
    coverage = report["coverage"]
    assert coverage["train_pair_coverage_pct_effective"] == 80.0
    assert "a quick look" in coverage["coverage_gap_reason"] and coverage["coverage_gap_is_justified"] is True
    assert "a quick look" in (tmp_path / "run" / "report.md").read_text()
    (final,) = events(tmp_path / "run", "TRAIN_COVERAGE_FINAL")
    assert final["train_pair_coverage_pct_effective"] == 80.0


def test_progress_says_stage_file_index_and_total(finished: Path) -> None:
    progress = events(finished, "PROGRESS_UPDATE")
    for event in progress:
        assert {"stage", "file", "index", "total"} <= event.keys()
        assert event["total"] is None or 1 <= event["index"] <= event["total"]
    substages = {event["substage"] for event in progress if event["stage"] == "train_supervised"}
    assert substages == {"hyperparam_search", "fit_prox_iter", "fit_kpi", "epoch_done"}
    assert {event["stage"] for event in progress} >= {"discovery", "train_supervised", "segment"}


def test_every_iteration_of_every_candidate_is_logged_once(finished: Path) -> None:
    plan = load_fit_plan(finished)
    assert iterations_done(finished) == {c.candidate_id: list(range(1, ITERATIONS + 1)) for c in plan.candidates}
    for event in events(finished, "fit_prox_iter"):
        assert (event["index"], event["total"]) == (event["iter"], ITERATIONS)
        assert math.isfinite(event["ts_ns"])
    assert Counter(e["iter"] for e in events(finished, "fit_kpi")) == {10: CANDIDATES, 20: CANDIDATES}


def test_traced_arrays_can_be_checked_against_what_was_written(finished: Path) -> None:
    traces = events(finished, "ARRAY_TRACE")
    for trace in traces:
        assert {"shape", "dtype", "min", "max", "mean", "sha512"} <= trace.keys() and len(trace["sha512"]) == 128
    import hashlib

    for trace in (trace for trace in traces if trace["array"] == "mask"):
        mask = tifffile.imread(finished / "masks" / f"{trace['case_id']}.tif")
        assert hashlib.sha512(mask.tobytes()).hexdigest() == trace["sha512"]
        assert (trace["min"], trace["max"], trace["mean"]) == (0, 1, mask.mean(dtype=np.float64))


def test_the_log_is_whole(finished: Path) -> None:
    anchors = open_store(load_fit_plan(finished), finished, 0).anchors()
    assert len(anchors) >= CANDIDATES
    assert verify_log(RunPaths(finished).events, anchors) == []


# Same inputs, same bits.


def test_two_runs_give_the_same_bits_whatever_the_threads_blocks_and_place(
    tmp_path: Path, tiny_data: Path, finished: Path
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(tiny_data, moved)
    how = {
        "features.cache_dir": str(tmp_path / "cache"), "features.workers": 1, "features.block": 32,
        "resources.engine_threads": 3, "budget.hours": 2,
    }  # fmt: skip
    run(tiny_settings(moved, how), tmp_path / "run")
    assert results(tmp_path / "run") == results(finished)


def test_the_seed_changes_the_result(tmp_path: Path, tiny_data: Path, finished: Path) -> None:
    run(tiny_settings(tiny_data, {"seed": 3}), tmp_path / "run")
    assert table(tmp_path / "run") != table(finished)


def test_a_run_without_data_makes_its_own_small_volumes(tmp_path: Path, finished: Path) -> None:
    run(tiny_settings(None), tmp_path / "run")
    assert results(tmp_path / "run") == results(finished)
    assert (tmp_path / "run" / "data" / "train_images").is_dir()


# Start, continue, recall, refuse.


@pytest.fixture
def config(tmp_path: Path, tiny_data: Path) -> Path:
    return write_config(tmp_path / "tiny.yaml", flat={"data.dir": str(tiny_data)})


def interrupted(root: Path, tiny_data: Path, looks: int = 3, flat: dict[str, Any] | None = None) -> None:
    with pytest.raises(StoppedError, match="SIGTERM"):
        run(tiny_settings(tiny_data, flat), root, executor=Interrupted(looks))
    report = RunPaths(root).report_json  # a partial submission may be there, and says that it is one
    assert not report.exists() or not orjson.loads(report.read_bytes())["complete"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """An unfinished run. Read only: copy before changing anything."""
    root = tmp_path_factory.mktemp("stopped") / "run"
    interrupted(root, tiny_data)
    return root


def test_a_finished_run_is_recalled_and_not_touched(command: Command, config: Path, finished: Path) -> None:
    before = tree(finished)
    for extra in ([], ["--resume"]):
        ended = command("run", "--config", config, "--out", finished, "--json", *extra)
        assert ended.code == 0
        assert ended.json["submission"] == str(finished / "submission.zip")
    assert tree(finished) == before


def test_a_finished_run_whose_submission_is_gone_makes_it_again(
    command: Command, config: Path, tmp_path: Path, finished: Path
) -> None:
    root = tmp_path / "run"
    shutil.copytree(finished, root)
    (root / "submission.zip").unlink()
    assert command("run", "--config", config, "--out", root).code == 0
    assert results(root) == results(finished)
    assert all(len(done) == ITERATIONS for done in iterations_done(root).values())


@pytest.mark.parametrize(("looks", "flag"), [(0, []), (1, ["--resume"]), (2, []), (3, ["--resume"]), (4, [])])
def test_an_unfinished_run_is_continued_to_the_same_bits(
    command: Command, config: Path, tmp_path: Path, tiny_data: Path, finished: Path, looks: int, flag: list[str]
) -> None:
    root = tmp_path / "run"
    interrupted(root, tiny_data, looks)
    before = command("status", root, "--json").json
    assert before["state"] == "unfinished" and before["iterations_done"] < CANDIDATES * ITERATIONS
    through = [name for name, done in iterations_done(root).items() if len(done) == ITERATIONS]
    assert len(through) == before["candidates_done"]
    assert command("run", "--config", config, "--out", root, *flag).code == 0
    assert results(root) == results(finished)
    assert set(map(len, iterations_done(root).values())) == {ITERATIONS}
    assert {name: opened(root)[name] for name in through} == dict.fromkeys(through, 1), "a finished one ran again"
    anchors = open_store(load_fit_plan(root), root, 0).anchors()
    assert verify_log(RunPaths(root).events, anchors) == []


def test_an_absent_directory_is_started_also_with_resume(command: Command, config: Path, tmp_path: Path) -> None:
    assert command("run", "--config", config, "--out", tmp_path / "a" / "b" / "run", "--resume").code == 0


def test_fresh_starts_what_is_absent_and_refuses_what_is_there(
    command: Command, config: Path, tmp_path: Path, finished: Path
) -> None:
    assert command("run", "--config", config, "--out", tmp_path / "run", "--fresh").code == 0
    (tmp_path / "empty").mkdir()
    for there in (finished, tmp_path / "empty"):
        before = tree(there)
        ended = command("run", "--config", config, "--out", there, "--fresh")
        assert ended.code == 2 and "--fresh" in ended.stderr and ended.stdout == ""
        assert tree(there) == before


@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_another_configuration_is_refused_by_key_and_nothing_is_touched(
    command: Command, config: Path, tmp_path: Path, request: pytest.FixtureRequest, state: str
) -> None:
    root = tmp_path / "run"
    shutil.copytree(request.getfixturevalue(state), root)
    before = tree(root)
    for flag in ([], ["--resume"]):
        ended = command(
            "run", "--config", config, "--out", root, "--set", "seed=9", "--set", "grid.max_iter=30", *flag
        )  # fmt: skip
        assert ended.code == 5 and ended.stdout == ""
        assert "seed" in ended.stderr and "grid.max_iter" in ended.stderr and "mask." not in ended.stderr
        assert tree(root) == before


@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_another_dataset_is_refused(
    command: Command, config: Path, tmp_path: Path, request: pytest.FixtureRequest, state: str
) -> None:
    other, root = tmp_path / "other", tmp_path / "run"
    assert command(
        "make-data", other, "--train", "5", "--test", "1", "--size", "48", "--seed", "8", "--scrolls", "2"
    ).code == 0  # fmt: skip
    shutil.copytree(request.getfixturevalue(state), root)
    ended = command("run", "--config", config, "--out", root, "--data", other)
    assert ended.code == 5 and "data" in ended.stderr and ended.stdout == ""


def test_the_same_dataset_elsewhere_is_the_same(
    command: Command, config: Path, tmp_path: Path, tiny_data: Path, stopped: Path, finished: Path
) -> None:
    root, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(stopped, root)
    shutil.copytree(tiny_data, moved)
    assert command("run", "--config", config, "--out", root, "--data", moved).code == 0
    assert results(root) == results(finished)


def test_a_run_directory_can_be_moved_and_copied(
    command: Command, tmp_path: Path, finished: Path, tiny_data: Path
) -> None:
    """With the volumes that it made for itself in it; without the cache; and the original is left alone."""
    first, cache = tmp_path / "first", tmp_path / "cache"
    with pytest.raises(StoppedError):
        run(tiny_settings(None, {"features.cache_dir": str(cache)}), first, executor=Interrupted(3))
    shutil.copytree(first, tmp_path / "copy")
    before = tree(first)
    shutil.rmtree(cache)
    config = write_config(tmp_path / "tiny.yaml", flat={"features.cache_dir": str(tmp_path / "new-cache")})
    assert command("run", "--config", config, "--out", tmp_path / "copy").code == 0
    assert results(tmp_path / "copy") == results(finished)
    assert tree(first) == before
    first.rename(tmp_path / "moved")
    assert command("run", "--config", config, "--out", tmp_path / "moved").code == 0
    assert results(tmp_path / "moved") == results(finished)


def test_a_held_directory_is_refused_by_the_holders_pid(
    command: Command, config: Path, tmp_path: Path, stopped: Path
) -> None:
    from nx46vx.runtime.lock import DirectoryLock

    root = tmp_path / "run"
    shutil.copytree(stopped, root)
    with DirectoryLock(RunPaths(root).lock):
        before = tree(root)
        ended = command("run", "--config", config, "--out", root)
        assert ended.code == 6 and str(os.getpid()) in ended.stderr and ended.stdout == ""
        assert command("plan", "--config", config, "--out", root).code == 0  # frozen: only read
        assert tree(root) == before
    assert command("run", "--config", config, "--out", root).code == 0


def test_a_folder_that_is_no_run_is_refused(command: Command, config: Path, tmp_path: Path) -> None:
    place = tmp_path / "photos"
    place.mkdir()
    (place / "holiday.jpg").write_text("x")
    ended = command("run", "--config", config, "--out", place)
    assert ended.code == 2 and "holiday.jpg" in ended.stderr
    assert [path.name for path in place.iterdir()] == ["holiday.jpg"]
    ended = command("run", "--config", config, "--out", place / "holiday.jpg")
    assert ended.code == 2


@pytest.mark.parametrize("name", ["config.yaml", "plan.json", "run.json", "decisions.json"])
@pytest.mark.parametrize("damage", [b"", b"\x00\xff{", b"[]", b"{}"])
def test_damaged_records_are_an_integrity_error_not_a_crash(
    command: Command, config: Path, tmp_path: Path, stopped: Path, name: str, damage: bytes
) -> None:
    root = tmp_path / "run"
    shutil.copytree(stopped, root)
    (root / "decisions.json").touch()
    (root / name).write_bytes(damage)
    ended = command("run", "--config", config, "--out", root)
    if ended.code == 0:  # an empty table of decisions holds none
        assert name == "decisions.json"
        return
    assert ended.code == 5, ended.stderr
    assert "Traceback" not in ended.stderr and ended.stdout == ""


def test_the_budget_stops_a_run_that_can_be_continued(
    command: Command, config: Path, tmp_path: Path, finished: Path
) -> None:
    root = tmp_path / "run"
    time_flags = ("--budget", "100s", "--session-start", str(time.time() - 80))
    ended = command("run", "--config", config, "--out", root, *time_flags)
    assert ended.code == 3 and ended.stdout == "" and "the time budget" in ended.stderr
    assert command("run", "--config", config, "--out", root).code == 0
    assert results(root) == results(finished)


# Epochs.


def test_a_budget_too_small_to_hand_in_is_refused_before_anything_is_made(
    command: Command, config: Path, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    ended = command("run", "--config", config, "--out", root, "--budget", "3s", "--session-start", str(time.time()))
    assert ended.code == 2 and "at least" in ended.stderr
    assert not root.exists()
    smallest = ended.stderr.split("at least ")[1].split(" s")[0]
    ended = command(
        "run", "--config", config, "--out", root, "--budget", f"{smallest}s", "--session-start", str(time.time())
    )
    assert ended.code in (0, 3), ended.stderr


def test_a_second_epoch_continues_the_states_and_repeats_nothing(
    tmp_path: Path, tiny_data: Path, finished: Path
) -> None:
    root = tmp_path / "run"
    run(tiny_settings(tiny_data, {"epochs.supervised_epochs": 2}), root)
    assert {(row["epoch"], row["iter"]) for row in table(root)} == {("2", str(2 * ITERATIONS))}
    assert iterations_done(root) == {c: list(range(1, 2 * ITERATIONS + 1)) for c in iterations_done(root)}
    epochs = events(root, "epoch_done")
    assert [(event["index"], event["total"]) for event in epochs] == [(1, 2), (2, 2)]
    assert Counter(event["epoch"] for event in events(root, "fit_prox_iter")) == {
        0: CANDIDATES * ITERATIONS, 1: CANDIDATES * ITERATIONS,
    }  # fmt: skip

    def first(run_root: Path) -> dict[tuple[str, int], tuple[Any, ...]]:
        skip = {"ts_ns", "seq", "prev", "run_id", "fence", "crc32", "total"}
        return {
            (event["candidate_id"], event["iter"]): tuple((k, v) for k, v in event.items() if k not in skip)
            for event in events(run_root, "fit_prox_iter")
            if event["iter"] <= ITERATIONS
        }

    assert first(root) == first(finished)
    losses = {row["candidate_id"]: float(row["train_loss"]) for row in table(finished)}
    assert sum(float(row["train_loss"]) for row in table(root)) < sum(losses.values())


@pytest.mark.parametrize("looks", [5, 8])
def test_a_stop_in_the_second_epoch_is_continued_there(tmp_path: Path, tiny_data: Path, looks: int) -> None:
    flat = {"epochs.supervised_epochs": 2}
    straight, root = tmp_path / "straight", tmp_path / "run"
    run(tiny_settings(tiny_data, flat), straight)
    interrupted(root, tiny_data, looks, flat)
    run(tiny_settings(tiny_data, flat), root)
    assert results(root) == results(straight)
    assert iterations_done(root) == {c: list(range(1, 2 * ITERATIONS + 1)) for c in iterations_done(root)}


def test_zero_epochs_means_until_convergence(tmp_path: Path, tiny_data: Path) -> None:
    flat = {
        "epochs.supervised_epochs": 0, "epochs.convergence_min_delta": 0.01, "epochs.convergence_patience": 2,
    }  # fmt: skip
    root = tmp_path / "run"
    run(tiny_settings(tiny_data, flat), root)
    best = [event["best_objective"] for event in events(root, "epoch_done")]
    assert len(best) >= 3
    gains = [min(best[:k]) - best[k] for k in range(1, len(best))]
    assert all(gain < 0.01 for gain in gains[-2:]), "it ended before two epochs without improvement"
    quiet = [gain < 0.01 for gain in gains]
    assert not any(quiet[k] and quiet[k + 1] for k in range(len(quiet) - 2)), "it should have ended earlier"
    assert {row["iter"] for row in table(root)} == {str(len(best) * ITERATIONS)}
    again = tmp_path / "again"
    interrupted(again, tiny_data, 7, flat)
    run(tiny_settings(tiny_data, flat), again)
    assert results(again) == results(root)


# Growth. With the full penalties a meta-neuron has its 15 candidates.

PENALTIES = {"grid.l1": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2], "grid.l2": [1e-4, 1e-3, 1e-2], "growth.enabled": True}
GROWS, DOES_NOT = {**PENALTIES, "growth.max_meta_neurons": 4, "seed": 7}, {**PENALTIES, "seed": 2}


def decisions_of(root: Path) -> list[tuple[int, bool]]:
    return [(event["neurons"], event["grow"]) for event in events(root, "AUTO_TUNE_POLICY_DECISION")]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    root = tmp_path_factory.mktemp("grown") / "run"
    run(tiny_settings(tiny_data, GROWS), root)
    return root


def test_an_ensemble_that_pays_grows_by_fifteen_candidates(grown: Path) -> None:
    decided = events(grown, "AUTO_TUNE_POLICY_DECISION")
    assert decided[0]["grow"] is True and decided[0]["neurons"] == 2 and decided[0]["replayed"] is False
    figures = decided[0]["figures"]
    assert figures["gain"] > figures["gain_se"] and figures["gap"] < figures["gap_se"]
    assert decided[-1]["grow"] is False and decided[-1]["reason"]
    updates = events(grown, "AUTO_TUNE_PARAM_UPDATE")
    assert (updates[0]["param"], updates[0]["old"], updates[0]["new"]) == ("meta_neurons", 2, 3)
    neurons = 2 + len(updates)
    rows = Counter(row["meta_neuron"] for row in table(grown))
    assert rows == {str(k): 15 for k in range(neurons)}
    assert {len(done) for done in iterations_done(grown).values()} == {ITERATIONS}
    plan = orjson.loads((grown / "plan.json").read_bytes())
    assert len(plan["candidates"]) == 15 * neurons
    views = [spec.view for spec in load_fit_plan(grown).neurons]
    assert len(set(views)) == neurons


def test_the_neurons_there_were_are_not_touched_by_growth(tmp_path: Path, tiny_data: Path, grown: Path) -> None:
    run(tiny_settings(tiny_data, {**GROWS, "growth.enabled": False}), tmp_path / "run")
    without = {row["candidate_id"]: row for row in table(tmp_path / "run")}
    assert {row["candidate_id"]: row for row in table(grown) if row["candidate_id"] in without} == without
    assert decisions_of(tmp_path / "run") == [(2, False)]


def test_an_ensemble_that_does_not_pay_stays(tmp_path: Path, tiny_data: Path) -> None:
    run(tiny_settings(tiny_data, DOES_NOT), tmp_path / "run")
    assert decisions_of(tmp_path / "run") == [(2, False)]
    assert events(tmp_path / "run", "AUTO_TUNE_PARAM_UPDATE") == []
    assert len(table(tmp_path / "run")) == 30


def test_growth_is_bounded(tmp_path: Path, tiny_data: Path) -> None:
    bounded = {**GROWS, "growth.max_meta_neurons": 2}
    run(tiny_settings(tiny_data, bounded), tmp_path / "run")
    assert decisions_of(tmp_path / "run") == [(2, False)]
    assert "max_meta_neurons" in events(tmp_path / "run", "AUTO_TUNE_POLICY_DECISION")[0]["reason"]


@pytest.mark.parametrize("looks", [20, 40])
def test_a_stop_before_or_after_growth_is_continued_to_the_same_bits(
    tmp_path: Path, tiny_data: Path, grown: Path, looks: int
) -> None:
    root = tmp_path / "run"
    interrupted(root, tiny_data, looks, GROWS)
    taken = decisions_of(root)
    run(tiny_settings(tiny_data, GROWS), root)
    assert results(root) == results(grown)
    assert [d for d in decisions_of(root) if d[0] == 2] == taken or not taken
    fresh = [e["neurons"] for e in events(root, "AUTO_TUNE_POLICY_DECISION") if not e["replayed"]]
    assert len(fresh) == len(set(fresh)), "a decision was taken twice"


def test_a_recorded_decision_is_replayed_and_not_taken_again(
    tmp_path: Path, tiny_data: Path, grown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the decision and its deed; and when continued, time or figures would say otherwise."""
    root = tmp_path / "run"

    def killed(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(growing, "write_plan", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tiny_settings(tiny_data, GROWS), root)
    assert len(load_fit_plan(root).neurons) == 2
    real = growing.decide_growth

    def would_refuse(settings: Any, neurons: int, figures: Any, time_allows: bool) -> Any:
        return real(settings, neurons, figures, time_allows=False) if neurons == 2 else real(
            settings, neurons, figures, time_allows
        )  # fmt: skip

    monkeypatch.setattr(growing, "decide_growth", would_refuse)
    run(tiny_settings(tiny_data, GROWS), root)
    of_two = [e for e in events(root, "AUTO_TUNE_POLICY_DECISION") if e["neurons"] == 2]
    assert [(e["grow"], e["replayed"]) for e in of_two] == [(True, False), (True, True)]
    assert results(root) == results(grown)


# Other people's data.


def pages_by_another_program(path: Path, volume: np.ndarray, program: str) -> None:
    if program == "pillow":
        first, *others = (Image.fromarray(plane) for plane in volume)
        first.save(path, compression="tiff_lzw", save_all=True, append_images=others)
    else:
        with tifffile.TiffWriter(path, bigtiff=program == "bigtiff") as writer:
            for plane in volume:
                writer.write(plane, compression="lzw", contiguous=False)


def odd_dataset(root: Path, shapes: list[tuple[int, int, int]], tests: list[tuple[int, int, int]]) -> Path:
    from nx46vx.data.synthetic import make_case

    for name in ("train_images", "train_labels", "test_images"):
        (root / name).mkdir(parents=True)
    programs = ("pillow", "tifffile", "bigtiff")
    for k, shape in enumerate(shapes):
        image, label = make_case(shape, scroll=k % 2, seed=k)
        pages_by_another_program(root / "train_images" / f"{k}.tif", image, programs[k % 3])
        pages_by_another_program(root / "train_labels" / f"{k}.tif", label, programs[(k + 1) % 3])
    for k, shape in enumerate(tests):
        image, _ = make_case(shape, scroll=k % 2, seed=100 + k)
        pages_by_another_program(root / "test_images" / f"t{k}.tif", image, programs[k % 3])
    return root


def test_odd_and_unequal_sizes_of_other_programs_end_in_a_valid_submission(tmp_path: Path) -> None:
    shapes = [(50, 64, 57), (64, 50, 48), (49, 48, 71)]
    tests = [(50, 64, 57), (61, 48, 49)]
    data = odd_dataset(tmp_path / "data", shapes, tests)
    run(tiny_settings(data), tmp_path / "run")
    masks = masks_of(tmp_path / "run" / "submission.zip")
    assert {name: mask.shape for name, mask in masks.items()} == {f"t{k}.tif": tests[k] for k in range(2)}
    for name, mask in masks.items():
        assert mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 1}
        assert digest_array(read_volume(tmp_path / "run" / "masks" / name)) == digest_array(mask)


# The whole grid, through Ray.


@pytest.mark.slow
def test_the_whole_grid_through_ray_is_the_whole_grid_without(cli: Command, tmp_path: Path, tiny_data: Path) -> None:
    config = write_config(tmp_path / "whole.yaml", WHOLE, {"data.dir": str(tiny_data)})
    ray, plain = tmp_path / "ray", tmp_path / "inline"
    ended = cli("run", "--config", config, "--out", ray, "--json")
    assert ended.code == 0, ended.stderr
    assert ended.json["reduced"] is False and "REDUCED" not in (ray / "report.md").read_text()
    assert len(table(ray)) == 135 and {row["iter"] for row in table(ray)} == {"120"}
    assert (ray / "ray").is_dir()
    outside = [path for path in ray.rglob("*") if path.suffix in (".pkl", ".pickle") and "ray" not in path.parts[-4:]]
    assert [path for path in outside if not path.is_relative_to(ray / "ray")] == []
    run(Settings.model_validate(overlaid(WHOLE, {"data.dir": str(tiny_data), "resources.executor": "inline"})), plain)
    assert results(ray) == results(plain)
    views, states, losses = set(), set(), set()
    plan = load_fit_plan(plain)
    store = open_store(plan, plain, 0)
    best: dict[str, dict[str, str]] = {}
    for row in table(plain):
        best.setdefault(row["meta_neuron"], row)
    for k, row in best.items():
        views.add(plan.spec(int(k)).view)
        losses.add(row["val_ce"])
        checkpoint = store.latest(row["candidate_id"])
        assert checkpoint is not None
        states.add(checkpoint.manifest["sha512_payload"])
    assert len(views) == len(states) == len(losses) == 9, "meta-neurons have to differ for real"


@pytest.mark.slow
def test_growth_and_epochs_through_ray_are_those_without(
    cli: Command, tmp_path: Path, tiny_data: Path, grown: Path
) -> None:
    settings = tiny_settings(tiny_data, GROWS).model_dump(mode="json")
    config = write_config(tmp_path / "grows.yaml", settings, {"resources.executor": "ray"})
    assert cli("run", "--config", config, "--out", tmp_path / "run").code == 0
    assert results(tmp_path / "run") == results(grown)
    config = write_config(
        tmp_path / "epochs.yaml", settings,
        {"resources.executor": "ray", "epochs.supervised_epochs": 2, "growth.enabled": False},
    )  # fmt: skip
    assert cli("run", "--config", config, "--out", tmp_path / "epochs").code == 0
    inline = tiny_settings(tiny_data, {**GROWS, "epochs.supervised_epochs": 2, "growth.enabled": False})
    run(inline, tmp_path / "inline")
    assert results(tmp_path / "epochs") == results(tmp_path / "inline")


@pytest.mark.slow
def test_the_smoke_is_better_than_intensity_and_than_its_members(
    cli: Command, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    config = Path(__file__).parents[2] / "configs" / "smoke.yaml"
    ended = cli("run", "--config", config, "--out", tmp_path / "run", "--json")
    assert ended.code == 0, ended.stderr
    hold = orjson.loads((tmp_path / "run" / "report.json").read_bytes())["holdout"]
    shown = ("ensemble_f_half", "intensity_f_half", "ensemble_average_precision", "best_member_average_precision")
    for name in shown:
        record_property(name, hold[name])
        print(name, hold[name])
    assert hold["ensemble_f_half"] >= 1.5 * hold["intensity_f_half"]
    assert hold["ensemble_average_precision"] > 1.03 * hold["best_member_average_precision"]
    rows = table(tmp_path / "run")
    assert len(rows) == 135 and {row["iter"] for row in rows} == {"120"}


@pytest.mark.slow
def test_the_laptop_configuration_works_on_other_peoples_tiffs(cli: Command, tmp_path: Path) -> None:
    shapes = [(80, 88, 96), (72, 81, 80), (81, 80, 75), (88, 72, 79), (75, 90, 80), (80, 80, 85)]
    data = odd_dataset(tmp_path / "data", shapes, [(80, 88, 96), (77, 80, 83)])
    config = Path(__file__).parents[2] / "configs" / "laptop.yaml"
    ended = cli(
        "run", "--config", config, "--data", data, "--out", tmp_path / "run", "--json", "--set", "mask.search.trials=8"
    )
    assert ended.code == 0, ended.stderr
    hold = orjson.loads((tmp_path / "run" / "report.json").read_bytes())["holdout"]
    print(hold["ensemble_f_half"], hold["intensity_f_half"])
    assert hold["ensemble_f_half"] >= 1.5 * hold["intensity_f_half"]
    assert {name: mask.shape for name, mask in masks_of(tmp_path / "run" / "submission.zip").items()} == {
        "t0.tif": (80, 88, 96), "t1.tif": (77, 80, 83),
    }  # fmt: skip


@pytest.mark.slow
def test_a_relative_run_directory_is_the_drivers_also_for_trials_in_other_processes(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "tiny.yaml", flat={"data.dir": str(tiny_data), "resources.executor": "ray"})
    ended = cli("run", "--config", "tiny.yaml", "--out", "runs/here", "--json")
    assert ended.code == 0, ended.stderr
    assert Path(ended.json["submission"]) == Path("runs/here/submission.zip")
    assert len(list((tmp_path / "runs/here/checkpoints").iterdir())) == 4


def test_a_plan_of_a_finished_run_counts_the_cache_and_touches_nothing(finished: Path, tiny_data: Path) -> None:
    from nx46vx.pipeline.planning import plan

    before = tree(finished)
    told = plan(tiny_settings(tiny_data), finished)
    assert told["frozen"] and told["cache_misses"] == 0 and told["cache_hits"] == 5
    assert tree(finished) == before


def test_a_signal_while_growth_is_decided_leaves_the_decision_to_the_next_session(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nx46vx.pipeline.growing import Grower

    straight, root = tmp_path / "straight", tmp_path / "run"
    run(tiny_settings(tiny_data, GROWS), straight)
    figures = Grower._figures

    def signalled(self: Grower, records: Any) -> Any:
        self.session.stop.set("SIGTERM")
        return figures(self, records)

    with monkeypatch.context() as patch:
        patch.setattr(Grower, "_figures", signalled)
        with pytest.raises(StoppedError, match="SIGTERM"):
            run(tiny_settings(tiny_data, GROWS), root)
    run(tiny_settings(tiny_data, GROWS), root)
    assert results(root) == results(straight)


def test_an_ensemble_without_a_member_gives_the_same_probability_everywhere() -> None:
    from nx46vx.inference.predict import probability_volume
    from nx46vx.model.ensemble import Ensemble

    found = probability_volume(np.ones((4, 5, 6), np.uint8), Ensemble((), 0.0), block=32)
    assert found.shape == (4, 5, 6)
    assert (found == 0.5).all()
