"""A run that was made otherwise is refused untouched, or, if asked for, retrained just where it does not fit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from tiny import TINY, Ended, Interrupted, events, iterations_done, overlaid, results, run, tiny_settings, tree
from tiny import write_config as written

from nx46vx.errors import IncompatibleError, StoppedError
from nx46vx.paths import RunPaths
from nx46vx.pipeline import signature
from nx46vx.pipeline.verifying import verify
from nx46vx.settings import Settings

Command = Callable[..., Ended]


@pytest.fixture
def copy(tmp_path: Path, finished: Path) -> Path:
    """A finished tiny run of one's own."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def settings(data: Path, flat: dict[str, Any]) -> Settings:
    return tiny_settings(data, flat)


def fresh(tmp_path: Path, data: Path, flat: dict[str, Any]) -> Path:
    root = tmp_path / "fresh"
    run(settings(data, flat), root)
    return root


def sound(root: Path) -> None:
    found = verify(root)
    assert found["problems"] == []


def test_another_grid_is_refused_by_name_with_5_and_nothing_is_touched(
    command: Command, copy: Path, tmp_path: Path, tiny_data: Path
) -> None:
    config = written(tmp_path / "other.yaml", TINY, {"data.dir": str(tiny_data), "grid.l1": [0.001, 0.003]})
    before = tree(copy)
    ended = command("run", "--config", config, "--out", copy)
    assert ended.code == 5
    assert "RESUME_INCOMPATIBLE" in ended.stderr and "grid.l1" in ended.stderr
    assert "--retrain-mismatched" in ended.stderr
    assert tree(copy) == before


@pytest.mark.parametrize("key", ["features", "model_signature", "preprocessing"])
def test_another_program_is_refused_by_name_and_nothing_is_touched(
    monkeypatch: pytest.MonkeyPatch, copy: Path, tiny_data: Path, key: str
) -> None:
    """Feature pool, model signature, preprocessing version: as a later version of the program would have them."""
    here = signature.program_identity()
    monkeypatch.setattr("nx46vx.pipeline.standing.program_identity", lambda: {**here, key: "of a later version"})
    (copy / "report.json").unlink()  # unfinished
    before = tree(copy)
    with pytest.raises(IncompatibleError, match=f"RESUME_INCOMPATIBLE.*{key}"):
        run(tiny_settings(tiny_data), copy)
    assert tree(copy) == before


def test_a_wider_grid_keeps_the_candidates_that_fit(tmp_path: Path, copy: Path, tiny_data: Path) -> None:
    flat = {"grid.l1": [0.001, 0.003, 0.01]}
    old = iterations_done(copy)
    run(settings(tiny_data, flat), copy, retrain=True)
    assert not events(copy, "RETRAIN_MISMATCHED")  # nothing had to go
    (why,) = events(copy, "RESUME_INCOMPATIBLE")
    assert why["action"] == "retrain_mismatched" and any("grid.l1" in item for item in why["differing"])
    assert results(copy) == results(fresh(tmp_path, tiny_data, flat))
    assert not [event for event in events(copy, "SUPERSEDES") if event["writer"] in old]
    sound(copy)


def test_another_method_retrains_every_candidate_and_keeps_the_old_ones_aside(
    tmp_path: Path, copy: Path, tiny_data: Path
) -> None:
    flat = {"solver.method": "ista"}
    before = tree(copy / "checkpoints")
    run(settings(tiny_data, flat), copy, retrain=True)
    (told,) = events(copy, "RETRAIN_MISMATCHED")
    assert told["kept"] == [] and len(told["retrained"]) == 4
    assert results(copy) == results(fresh(tmp_path, tiny_data, flat))
    (aside,) = (copy / "superseded").iterdir()
    assert {name: digest for name, (digest, _) in tree(aside / "checkpoints").items() if "fence" not in name} == {
        name: digest for name, (digest, _) in before.items() if "fence" not in name
    }
    assert (aside / "submission.zip").exists() and (aside / "plan.json").exists()
    assert iterations_done(copy) == {name: list(range(1, 21)) for name in iterations_done(copy)}
    sound(copy)


def test_a_dropped_penalty_and_more_iterations_go_on_where_the_others_stand(
    tmp_path: Path, copy: Path, tiny_data: Path
) -> None:
    flat = {"grid.l1": [0.001], "grid.max_iter": 30}
    run(settings(tiny_data, flat), copy, retrain=True)
    (told,) = events(copy, "RETRAIN_MISMATCHED")
    assert len(told["kept"]) == 2 and told["retrained"] == [] and len(told["dropped"]) == 2
    assert results(copy) == results(fresh(tmp_path, tiny_data, flat))
    kept = {name: done for name, done in iterations_done(copy).items() if name in told["kept"]}
    assert kept == {name: list(range(1, 31)) for name in told["kept"]}
    sound(copy)


def test_fewer_features_per_neuron_or_another_dataset_fit_nothing(tmp_path: Path, copy: Path, tiny_data: Path) -> None:
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    case = sorted((data / "train_images").iterdir())[0].stem
    for folder in ("train_images", "train_labels"):
        (data / folder / f"{case}.tif").unlink()
    flat = {"grid.features_per_neuron": 4}
    run(settings(data, flat), copy, retrain=True)
    (told,) = events(copy, "RETRAIN_MISMATCHED")
    assert told["kept"] == [] and len(told["retrained"]) == 4
    assert results(copy) == results(fresh(tmp_path, data, flat))
    sound(copy)


def test_masks_alone_are_made_again_where_only_they_differ(tmp_path: Path, copy: Path, tiny_data: Path) -> None:
    flat = {"mask.dust_min_size": 3}
    before = iterations_done(copy)
    run(settings(tiny_data, flat), copy, retrain=True)
    assert iterations_done(copy) == before and not events(copy, "RETRAIN_MISMATCHED")
    assert results(copy) == results(fresh(tmp_path, tiny_data, flat))
    sound(copy)


def test_a_retraining_that_was_stopped_goes_on_with_the_plain_command(
    tmp_path: Path, copy: Path, tiny_data: Path
) -> None:
    wanted = settings(tiny_data, {"solver.method": "ista"})
    with pytest.raises(StoppedError):
        run(wanted, copy, retrain=True, executor=Interrupted(1))
    sound(copy)
    run(wanted, copy)
    assert results(copy) == results(fresh(tmp_path, tiny_data, {"solver.method": "ista"}))
    sound(copy)


def test_a_plan_that_was_lost_is_made_again_and_a_foreign_one_is_noticed(
    tmp_path: Path, copy: Path, tiny_data: Path
) -> None:
    """Without its plan a run draws the same one again; checkpoints that this would not have made are refused."""
    (copy / "report.json").unlink()
    RunPaths(copy).plan.unlink()
    run(tiny_settings(tiny_data), copy)
    assert results(copy) == results(fresh(tmp_path, tiny_data, {}))
    (copy / "report.json").unlink()
    RunPaths(copy).plan.unlink()
    written(RunPaths(copy).config, overlaid(TINY, {"data.dir": str(tiny_data)}), {"solver.method": "ista"})
    with pytest.raises(IncompatibleError, match="RESUME_INCOMPATIBLE"):
        run(settings(tiny_data, {"solver.method": "ista"}), copy)


def test_the_retrained_run_travels(command: Command, tmp_path: Path, copy: Path, tiny_data: Path) -> None:
    run(settings(tiny_data, {"solver.method": "ista"}), copy, retrain=True)
    ended = command("checkpoint", "export", copy, "--out", tmp_path / "out.zip", "--json")
    assert ended.code == 0, ended.stderr
    ended = command(
        "run", "--resume-from-checkpoint", tmp_path / "out.zip", "--data", tiny_data, "--out", tmp_path / "there",
        "--set", "resources.executor=inline", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    assert orjson.loads((tmp_path / "there" / "report.json").read_bytes())["complete"]
