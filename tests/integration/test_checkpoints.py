"""When checkpoints are written, where else they are kept, and how a session says where it goes on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest
from tiny import CANDIDATES, Interrupted, events, iterations_done, results, run, tiny_settings

from nx46vx.errors import IncompatibleError, StoppedError
from nx46vx.model.fitplan import load_fit_plan
from nx46vx.paths import RunPaths
from nx46vx.pipeline import session as session_room
from nx46vx.pipeline.verifying import verify
from trainables.task import Keeping, open_store


def stopped(root: Path, data: Path, looks: int, flat: dict[str, Any] | None = None) -> Path:
    with pytest.raises(StoppedError):
        run(tiny_settings(data, flat), root, executor=Interrupted(looks))
    return root


def commits(root: Path) -> list[tuple[str, int, str]]:
    """(candidate, iteration, kind) of every commit."""
    return [
        (event["owner"], event["cursor"]["epoch"] * event["cursor"]["max_iter"] + event["cursor"]["iter"],
         event["kind"])
        for event in events(root, "CHECKPOINT_COMMIT", all_lines=True)
    ]  # fmt: skip


@pytest.mark.parametrize("block", [1, 7, 10, 25, 1000])
def test_a_checkpoint_is_written_every_tenth_iteration_whatever_the_block(
    tmp_path: Path, tiny_data: Path, block: int
) -> None:
    """Light ones on the way, a full one at the end of each epoch and of the candidate."""
    root = tmp_path / "run"
    run(tiny_settings(tiny_data, {"solver.block_iterations": block, "grid.max_iter": 25}), root)
    written: dict[str, list[tuple[int, str]]] = {}
    for owner, iteration, kind in commits(root):
        written.setdefault(owner, []).append((iteration, kind))
    assert len(written) == CANDIDATES
    assert all(one == [(10, "light"), (20, "light"), (25, "full")] for one in written.values())


@pytest.mark.parametrize("looks", [2, 5])
def test_a_stop_between_two_checkpoints_forces_one(tmp_path: Path, tiny_data: Path, looks: int) -> None:
    flat = {"solver.block_iterations": 3}
    root = stopped(tmp_path / "run", tiny_data, looks, flat)
    (owner, iteration, kind), *_ = commits(root)[::-1]
    assert iteration % 10 and kind == "light"
    assert verify(root)["problems"] == []
    run(tiny_settings(tiny_data, flat), root)
    assert iterations_done(root)[owner] == list(range(1, 21))


def test_a_session_says_where_it_goes_on_and_that_it_is_exact(tmp_path: Path, tiny_data: Path, finished: Path) -> None:
    root = stopped(tmp_path / "run", tiny_data, 1)
    latest = orjson.loads(RunPaths(root).latest_valid.read_bytes())
    assert not events(root, "RESUME_OK") and not events(root, "RESUME_EXACT_OK")
    store = open_store(load_fit_plan(root), root, 0)
    newest = {owner: store.latest(owner) for owner in store.owners()}
    assert latest["ts_ns"] == max(one.manifest["ts_ns"] for one in newest.values() if one)
    assert (RunPaths(root).checkpoints / latest["path"]).is_dir()
    run(tiny_settings(tiny_data), root)
    told = {event["writer"]: event for event in events(root, "RESUME_OK")}
    assert told["driver"]["resume_from_ts_ns"] == latest["ts_ns"]
    (trial,) = told.keys() - {"driver"}
    source = newest[trial]
    assert source is not None
    assert told[trial]["resume_from_ts_ns"] == source.manifest["ts_ns"]
    assert told[trial]["next_iter"] == source.manifest["iter"] + 1
    assert (told["driver"]["epoch"], told["driver"]["candidate_index"], told["driver"]["next_iter"]) == (
        source.manifest["epoch"], source.manifest["candidate_index"], source.manifest["iter"] + 1,
    )  # fmt: skip
    exact = {event["writer"]: event for event in events(root, "RESUME_EXACT_OK")}
    assert set(exact) == {"driver", trial}
    first = next(
        e for e in events(root, "CHECKPOINT_COMMIT") if e["owner"] == trial and e["ts_ns"] > told[trial]["ts_ns"]
    )
    assert exact[trial]["source_ts_ns"] == source.manifest["ts_ns"]
    assert told[trial]["ts_ns"] < exact[trial]["target_ts_ns"] <= first["ts_ns"]
    assert events(root, "LATEST_VALID_CKPT")[-1]["checkpoint_ts_ns"] > latest["ts_ns"]
    assert results(root) == results(finished)


def test_the_note_of_the_latest_checkpoint_is_never_believed(tmp_path: Path, tiny_data: Path, finished: Path) -> None:
    root = stopped(tmp_path / "run", tiny_data, 1)
    RunPaths(root).latest_valid.write_text('{"path": "../../elsewhere", "iter": 20}')
    run(tiny_settings(tiny_data), root)
    assert results(root) == results(finished)


def test_another_numeric_environment_is_said_and_then_nothing_is_called_exact(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = stopped(tmp_path / "run", tiny_data, 1)
    real = session_room.numeric_environment
    for room in ("session", "planfile", "run"):
        monkeypatch.setattr(f"nx46vx.pipeline.{room}.numeric_environment", lambda device: real(device) | {"numpy": "0"})
    with pytest.raises(IncompatibleError, match="numeric environment"):
        run(tiny_settings(tiny_data, {"strict_numeric": True}), root)
    assert events(root, "RESUME_NUMERIC_ENV_DIFFERS")[-1]["strict"] is True
    run(tiny_settings(tiny_data), root)
    assert events(root, "RESUME_NUMERIC_ENV_DIFFERS")[-1]["differing"]["numpy"][1] == "0"
    assert events(root, "RESUME_OK") and not events(root, "RESUME_EXACT_OK")
    assert verify(root)["problems"] == []


def test_a_second_root_holds_every_checkpoint_and_is_enough_when_the_first_is_damaged(
    tmp_path: Path, tiny_data: Path, finished: Path
) -> None:
    flat = {"checkpoints.mirror": str(tmp_path / "mirror")}
    root = stopped(tmp_path / "run", tiny_data, 3, flat)
    run_id = orjson.loads(RunPaths(root).identity.read_bytes())["run_id"]
    first = sorted(p.relative_to(root / "checkpoints") for p in (root / "checkpoints").glob("*/ckpt-*/*"))
    second = sorted(p.relative_to(tmp_path / "mirror" / run_id) for p in (tmp_path / "mirror").glob("*/*/ckpt-*/*"))
    assert first == second and first
    for payload in (root / "checkpoints").glob("*/ckpt-*/payload.safetensors"):
        payload.write_bytes(b"lost")
    run(tiny_settings(tiny_data, flat), root)
    assert results(root) == results(finished)
    assert iterations_done(root) == {name: list(range(1, 21)) for name in iterations_done(finished)}
    rejected = {event["owner"] for event in events(root, "CHECKPOINT_REJECTED")}
    differ = {event["owner"] for event in events(root, "CHECKPOINT_ROOTS_DIFFER")}
    assert rejected and rejected == differ


def test_a_second_root_that_cannot_be_written_to_costs_events_only(
    tmp_path: Path, tiny_data: Path, finished: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    root = tmp_path / "run"
    run(tiny_settings(tiny_data, {"checkpoints.mirror": str(tmp_path / "file")}), root)
    assert results(root) == results(finished)
    assert len(events(root, "CHECKPOINT_MIRROR_FAILED")) == len(commits(root))


def test_a_run_elsewhere_does_not_follow_the_second_root_of_its_first_place(tmp_path: Path, tiny_data: Path) -> None:
    flat = {"checkpoints.mirror": str(tmp_path / "mirror")}
    root = stopped(tmp_path / "run", tiny_data, 3, flat)
    shutil.rmtree(tmp_path / "mirror")
    run(tiny_settings(tiny_data), root)
    assert not (tmp_path / "mirror").exists()
    assert Keeping().mirror is None
