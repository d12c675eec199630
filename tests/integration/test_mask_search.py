"""The mask search in a run: stopped midway and resumed, through Ray or not, short of time: the same masks."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import orjson
import pytest
from tiny import events, results, run, tiny_settings

from nx46vx.errors import StoppedError
from nx46vx.paths import RunPaths
from nx46vx.pipeline import masksearch
from nx46vx.pipeline.verifying import verify
from trainables.mask_task import MaskVolumes

pytest.importorskip("optuna")

SEARCH = {"mask.search.trials": 6, "mask.search.batch": 2, "mask.calibration_volumes": 1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    root = tmp_path_factory.mktemp("searched") / "run"
    run(tiny_settings(tiny_data, SEARCH), root)
    return root


def report(root: Path) -> dict[str, Any]:
    return orjson.loads(RunPaths(root).report_json.read_bytes())


def found(root: Path) -> dict[str, Any]:
    paths = RunPaths(root)
    return {
        **results(root),
        "leaderboard of masks": paths.mask_leaderboard.read_bytes(),
        "masks": report(root)["masks"],
    }


def test_a_searched_run_proves_itself_and_reports(whole: Path) -> None:
    value, paths = report(whole), RunPaths(whole)
    search = value["masks"]["search"]
    assert (search["trials"], search["reason"]) == (6, "complete")
    assert search["leaderboard"][0]["score"] >= search["start"]["score"]
    assert "![What decides the score](mask_search/importance.svg)" in paths.report_md.read_text()
    assert sorted(path.name for path in paths.mask_search.iterdir()) == [
        "importance.svg", "journal.log", "leaderboard.csv",
    ]  # fmt: skip
    verified = verify(whole)
    assert verified["ok"], verified["problems"]
    assert verified["checked"]["mask trials"] == 6


@pytest.mark.parametrize("trial", [0, 3, 5])
def test_stopped_in_the_search_it_hands_in_and_goes_on_to_the_same_masks(
    tmp_path: Path, tiny_data: Path, whole: Path, trial: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, scored = MaskVolumes.score, []

    def score(self: MaskVolumes, rule: Any) -> dict[str, Any]:
        scored.append(rule)
        if len(scored) == trial + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, rule)

    monkeypatch.setattr(MaskVolumes, "score", score)
    root, settings = tmp_path / "run", tiny_settings(tiny_data, SEARCH)
    if trial < 5:
        with pytest.raises(StoppedError):
            run(settings, root)
        assert len(scored) == trial + 1
        assert report(root)["complete"] is False and RunPaths(root).submission.is_file()
        assert verify(root)["ok"], verify(root)["problems"]
    run(settings, root)
    assert len(scored) == 6  # none was scored twice
    assert found(root) == found(whole)
    assert verify(root)["ok"]


def test_killed_after_the_search_it_is_not_searched_again(
    tmp_path: Path, tiny_data: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    shutil.copytree(whole, root)
    for name in ("report_json", "submission"):
        getattr(RunPaths(root), name).unlink()
    monkeypatch.setattr(MaskVolumes, "score", lambda self, rule: pytest.fail("scored again"))
    run(tiny_settings(tiny_data, SEARCH), root)
    assert found(root) == found(whole)
    assert all(event["replayed"] for event in events(root, "MASK_SEARCH")[1:])


@pytest.mark.parametrize(("batches", "trials"), [(0, 0), (2, 4)])
def test_short_of_time_whole_batches_count_and_the_decision_holds(
    tmp_path: Path, tiny_data: Path, whole: Path, batches: int, trials: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter([""] * (batches + 1 if batches else 0))
    monkeypatch.setattr(masksearch, "_short_of_time", lambda session: next(asked, "time"))
    root, settings = tmp_path / "run", tiny_settings(tiny_data, SEARCH)
    run(settings, root)
    search = report(root)["masks"]["search"]
    assert (search["trials"], search["reason"]) == (trials, "time")
    assert len(events(root, "MASK_SEARCH" if trials else "MASK_SEARCH_SKIPPED")) == 1
    assert verify(root)["ok"], verify(root)["problems"]
    before = found(root) if trials else results(root)
    monkeypatch.undo()
    for path in (RunPaths(root).report_json, RunPaths(root).mask_journal):  # even without its journal
        path.unlink(missing_ok=True)
    run(settings, root)
    assert (found(root) if trials else results(root)) == before


@pytest.mark.slow
def test_through_ray_the_masks_are_the_same(tmp_path: Path, tiny_data: Path, whole: Path) -> None:
    root = tmp_path / "run"
    run(tiny_settings(tiny_data, {**SEARCH, "resources.executor": "ray"}), root)
    assert found(root) == found(whole)
    assert verify(root)["ok"]


def test_what_was_tampered_with_is_named(tmp_path: Path, whole: Path) -> None:
    for name, old, new in (
        ("journal.log", b'"score":0', b'"score":1'), ("leaderboard.csv", b"0.", b"1."),
        ("importance.svg", b"too few", b"too many"),
    ):  # fmt: skip
        root = tmp_path / name
        shutil.copytree(whole, root)
        path = RunPaths(root).mask_search / name
        data = path.read_bytes()
        assert old in data or name == "journal.log"
        path.write_bytes(data.replace(old, new, 1) if old in data else data[: len(data) // 2])
        assert {one["path"] for one in verify(root)["problems"]} == {f"mask_search/{name}"}
