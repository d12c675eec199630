"""Every session writes where its time went, in a file, an event and the report; verify holds them together."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from tiny import CANDIDATES, ITERATIONS, Interrupted, events, run, tiny_settings

from nx46vx.errors import StoppedError
from nx46vx.paths import RunPaths
from nx46vx.pipeline.verifying import verify


def profile(root: Path) -> dict:
    return orjson.loads(RunPaths(root).profile.read_bytes())


def test_a_run_leaves_its_profile_in_three_places_that_agree(finished: Path) -> None:
    found, (event,) = profile(finished), events(finished, "RUN_PROFILE_SUMMARY")
    assert {key: event[key] for key in found} == found
    report = orjson.loads(RunPaths(finished).report_json.read_bytes())
    assert report["profile"] == {key: found[key] for key in report["profile"]}
    assert {name: part["seconds"] for name, part in found["phases"].items()} == report["seconds"]
    assert "## Where the time went" in RunPaths(finished).report_md.read_text()
    assert report["gpu"] == {"gpu_phase_coverage_pct": None, "gpu_time_ratio": None, "cpu_fallback_count": 0}


def test_its_figures_are_those_of_the_log(finished: Path) -> None:
    found = profile(finished)
    (engine,) = events(finished, "ENGINE_STATS")
    assert found["search"]["engine_busy_seconds"] == engine["busy_seconds"]
    assert found["search"]["lane_iterations"] == engine["lane_iterations"] == CANDIDATES * ITERATIONS
    commits = events(finished, "CHECKPOINT_COMMIT")
    assert found["search"]["trial_checkpoints"] == len(commits) == CANDIDATES * ITERATIONS // 10
    spent = sum(commit["seconds"] for commit in commits)
    assert spent <= found["search"]["trial_checkpoint_seconds"] < spent + 0.5
    rows = len(events(finished, "fit_prox_iter")) + len(events(finished, "fit_kpi"))
    assert found["search"]["trial_events"] == rows
    assert found["rates"]["candidates"] == CANDIDATES
    assert 0 < found["wall_seconds"] >= sum(part["seconds"] for part in found["phases"].values())
    assert found["memory"]["driver_peak_bytes"] > 50 << 20 and found["memory"]["family_peak_bytes"] > 0
    assert found["rates"]["ns_per_sample_lane_iteration"] > 0


def test_it_says_what_reading_and_writing_took(finished: Path) -> None:
    """Every file of the dataset is measured once, and the drawn ones are read again; five cases have features."""
    found = profile(finished)
    io, kinds = found["io"], found["io"]["kinds"]
    assert found["parts"]["io"]["seconds"] == io["wall_seconds"]
    assert 0 < io["alone_seconds"] < io["wall_seconds"] < found["wall_seconds"]
    assert kinds.keys() == {"read_volumes", "map_features", "write_features", "write_masks", "package"}
    assert kinds["write_features"]["times"] == kinds["map_features"]["times"] == 5
    assert kinds["read_volumes"]["times"] >= 11 + 2 + 5 and kinds["write_masks"]["times"] == 3  # with two maps
    assert io["overlapped"], "features are read ahead"
    assert io["read_seconds"] + io["write_seconds"] == pytest.approx(sum(kind["seconds"] for kind in kinds.values()))
    assert kinds["write_features"]["seconds"] <= found["phases"]["features"]["seconds"] * 8  # threads side by side


def test_an_edited_profile_is_caught(finished: Path, tmp_path: Path) -> None:
    for change in (
        lambda value: value["parts"]["compute"].update(seconds=0.001),
        lambda value: value.update(wall_seconds=1.0),
        lambda value: value["phases"]["features"].update(seconds=99.0),
    ):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(finished, copy)
        value = profile(copy)
        change(value)
        RunPaths(copy).profile.write_bytes(orjson.dumps(value))
        found = verify(copy)
        assert not found["ok"]
        assert {problem["path"] for problem in found["problems"]} == {"RUN_PROFILE_SUMMARY.json"}
    untouched = verify(finished)
    assert untouched["ok"] and untouched["checked"]["profile"] == 1
    assert not any("PROFILE" in one or "profile" in one for one in map(str, untouched["not_checked"]))


def test_the_same_plan_is_compared_with_the_time_before(tmp_path: Path, tiny_data: Path) -> None:
    settings = tiny_settings(tiny_data, {"features.cache_dir": str(tmp_path / "cache")})
    run(settings, tmp_path / "first")
    first = profile(tmp_path / "first")
    assert first["speedup"] is None and first["whole_in_one_session"]
    run(settings, tmp_path / "second")
    second = profile(tmp_path / "second")
    assert second["plan_digest"] == first["plan_digest"]
    assert second["speedup"]["previous_wall_seconds"] == first["wall_seconds"]
    assert second["speedup"]["wall"] == pytest.approx(first["wall_seconds"] / second["wall_seconds"])
    for number, other in enumerate(({"seed": 9}, {"mask.slice_gap": 0}, {"epochs.supervised_epochs": 2})):
        run(tiny_settings(tiny_data, {"features.cache_dir": str(tmp_path / "cache"), **other}), tmp_path / str(number))
        assert profile(tmp_path / str(number))["speedup"] is None
    assert profile(tmp_path / "2")["whole_in_one_session"], "also with two passes over the grid"


def test_a_stopped_session_has_a_profile_and_is_no_yardstick(
    tmp_path: Path, tiny_data: Path, command: Callable[..., object]
) -> None:
    settings = tiny_settings(tiny_data, {"features.cache_dir": str(tmp_path / "cache")})
    with pytest.raises(StoppedError):
        run(settings, tmp_path / "run", executor=Interrupted(2))
    found = profile(tmp_path / "run")
    assert not found["complete"] and not found["whole_in_one_session"]
    assert not (tmp_path / "cache" / "run_seconds.json").exists()
    run(settings, tmp_path / "run")
    found = profile(tmp_path / "run")
    assert found["complete"] and not found["whole_in_one_session"] and found["session"] == 2
    assert verify(tmp_path / "run")["ok"]


def test_a_resumed_run_that_has_nothing_left_to_train_says_so(tmp_path: Path, finished: Path, tiny_data: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    RunPaths(copy).report_json.unlink()
    run(tiny_settings(tiny_data), copy)
    found = profile(copy)
    assert found["search"]["lane_iterations"] == 0 and found["rates"]["ns_per_sample_lane_iteration"] is None
