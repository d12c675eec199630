"""The student's place in a run: decided, trained, stopped and continued, judged, fused, or left out."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from tiny import TINY, events, overlaid, results, run, tiny_settings, write_config

from nx46vx.errors import IncompatibleError, StoppedError
from nx46vx.model.gpu_clock import GpuClock
from nx46vx.paths import RunPaths
from nx46vx.pipeline import run as run_room
from nx46vx.pipeline import session as session_room
from nx46vx.pipeline.decisions import Decisions
from nx46vx.pipeline.elsewhere import take_up
from nx46vx.pipeline.findings import Findings
from nx46vx.pipeline.primary import read_log
from nx46vx.pipeline.verify_plan import check_plan
from nx46vx.pipeline.verify_student import check_student
from nx46vx.pipeline.verifying import verify
from nx46vx.runtime.archive import export_run
from nx46vx.runtime.budget import Governor
from nx46vx.runtime.checkpoint import CheckpointStore
from nx46vx.runtime.device import DeviceChoice, Gpu
from nx46vx.runtime.gpu_phases import GpuLedger
from nx46vx.settings import Settings
from nx46vx.student import estimate as estimate_room
from nx46vx.student import fusion as fusion_room
from nx46vx.student.estimate import Estimate
from nx46vx.student.fusion import Fusion, FusionCase, Verdict
from nx46vx.student.trainer import Trainer

#: Two validation cases, and a student of a few steps.
STUDENT: dict[str, Any] = {
    "data.validation_fraction": 0.4,
    "student.enabled": True, "student.base_channels": 4, "student.levels": 2, "student.block_convolutions": 1,
    "student.patch": [16, 16, 16], "student.slab": [4, 16, 16], "student.context_slices": 3,
    "student.batch_size": 2, "student.patches_per_visit": 2, "student.steps_per_epoch": 4, "student.epochs": 2,
    "student.validation_cases": 1, "student.overlap": 0.0, "student.learning_rate": 0.01,
    "student.loader_workers": 0,
}  # fmt: skip


def with_student(data: Path, **changes: Any) -> Settings:
    return tiny_settings(data, {**STUDENT, **{f"student.{key}": value for key, value in changes.items()}})


def weights(root: Path, owner: str = "student-3d") -> dict[str, bytes]:
    """The student's arrays in its newest checkpoint."""
    identity = events(root, "BOOT")[0]["run_id"]
    newest = CheckpointStore(RunPaths(root).checkpoints, run_id=identity, identity={}).latest(owner)
    assert newest is not None
    return {name: array.tobytes() for name, array in newest.arrays().items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A finished run with a student. Read only."""
    root = tmp_path_factory.mktemp("student") / "run"
    run(with_student(tiny_data), root)
    return root


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Do something when a student begins its n-th piece of work, counted over the test."""
    real, done = Trainer.advance, [0]

    def arrange(number: int, act: Callable[[], None]) -> None:
        def advance(self: Trainer) -> Any:
            done[0] += 1
            if done[0] == number:
                act()
            return real(self)

        monkeypatch.setattr(Trainer, "advance", advance)

    return arrange


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fusion counts as a stable gain, with these weights."""
    monkeypatch.setattr(fusion_room, "fit_fusion", lambda cases: Fusion(0.6, 0.8, 0.1))
    monkeypatch.setattr(
        fusion_room, "judge_fusion", lambda cases, min_gain: Verdict(True, "a stable gain", (0.1, 0.1), (0.5, 0.5))
    )


# What a run with a student leaves.


def test_the_student_is_trained_judged_and_reported(whole: Path) -> None:
    (decision,) = events(whole, "STUDENT_DECISION")
    assert decision["asked"] is True and decision["epochs"] == 2 and not decision["replayed"]
    told = events(whole, "STUDENT_EPOCH")
    assert [event["epoch"] for event in told] == [1, 2] and {event["writer"] for event in told} == {"student-3d"}
    assert all(event["loss"] > 0 and 0 <= event["f_beta"] <= 1 and event["lr"] > 0 for event in told)
    (fusion,) = events(whole, "STUDENT_FUSION")
    report = run_report(whole)
    assert report["student"]["weights"] == fusion["weights"] and report["student"]["fused"] == fusion["fused"]
    assert len(fusion["fusion"]["gains"]) == 2 and fusion["fusion"]["reason"]
    assert set(fusion["holdout"]) == {"cases", "neurons_f_half", "student_f_half", "fused_f_half"}
    assert [event["stage"] for event in events(whole, "STAGE_END")][4:6] == ["student", "ensemble"]
    phases = [event for event in events(whole, "GPU_PHASE_END") if event["phase"] == "student"]
    assert [(phase["asked"], phase["on_gpu"]) for phase in phases] == [(False, False)]  # the run is on the CPU


def run_report(root: Path) -> dict[str, Any]:
    report: dict[str, Any] = orjson.loads(RunPaths(root).report_json.read_bytes())
    return report


def test_a_run_with_a_student_verifies(whole: Path) -> None:
    found = verify(whole)
    assert found["ok"], found["problems"]
    assert found["checked"]["students"] == 1
    assert not [told for told in found["not_checked"] if "decisions.json" in told or "report.json" in told]


def test_what_was_tampered_with_is_named(tmp_path: Path, whole: Path) -> None:
    """In files that no seal covers, and in the store."""
    root = tmp_path / "run"
    shutil.copytree(whole, root)
    paths = RunPaths(root)
    for path, key in ((paths.decisions, "student"), (paths.report_json, "")):
        before = path.read_bytes()
        value = orjson.loads(before)
        fusion = value[key]["fusion"] if key else value["student"]
        fusion["weights"]["student"] += 0.125
        path.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n")
        assert [
            one for one in verify(root)["problems"] if one["path"] == path.name and "weights.student" in one["what"]
        ]
        path.write_bytes(before)
    assert verify(root)["ok"]
    paths.decisions.write_bytes(orjson.dumps({"progress": Decisions(paths.decisions)._all["progress"]}))
    assert [one for one in verify(root)["problems"] if "student.decision" in one["what"]]
    shutil.copytree(paths.checkpoints / "student-3d", paths.checkpoints / "student-2.5d")
    assert "the configuration asks for no such student" in [one["what"] for one in verify(root)["problems"]]


def test_scores_and_verdicts_are_computed_again(whole: Path, tiny_data: Path) -> None:
    """Records that agree with each other and are wrong all the same."""
    paths, settings = RunPaths(whole), with_student(tiny_data)
    log = read_log(paths.events, Findings(whole))
    plan = check_plan(Findings(whole), paths, settings, events(whole, "BOOT")[0]["run_id"], log)
    assert plan is not None
    written = log.candidates["student-3d"]
    written.epochs[1] = {**written.epochs[1], "score": 2.0}
    fusion = Decisions(paths.decisions).get("student", "fusion")
    fusion["fusion"] |= {"kept": not fusion["fused"]}
    log.newest["STUDENT_FUSION"] = {"event": "STUDENT_FUSION", **fusion}
    findings = Findings(whole)
    check_student(findings, paths, settings, plan, log, None)
    told = " ".join(problem.what for problem in findings.problems)
    assert "score of epoch 1" in told and "stopping.best" in told and "student.fusion.fusion.kept" in told


def test_without_one_a_run_says_nothing_of_students(finished: Path) -> None:
    assert not [event for event in events(finished) if event["event"].startswith("STUDENT")]
    assert "student" not in run_report(finished)
    assert not Settings().student.enabled


def test_a_run_without_a_student_loads_nothing_of_it(tmp_path: Path, tiny_data: Path) -> None:
    """Nor does importing the pipeline or verifying load torch."""
    config = write_config(tmp_path / "c.yaml", overlaid(TINY, {"data.dir": str(tiny_data)}))
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from nx46vx.pipeline.run import run\nfrom nx46vx.pipeline.verifying import verify\nimport search.student\n"
        "from nx46vx.settings import load_settings\n"
        "assert 'torch' not in sys.modules\nbefore = {*sys.modules}\n"
        f"run(load_settings(Path({str(config)!r}), environ={{}}), Path({str(tmp_path / 'run')!r}))\n"
        "print([name for name in {*sys.modules} - before if 'student' in name], 'torch' in before)"
    )
    done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] False"


# Stopped and continued.


@pytest.mark.parametrize("work", [2, pytest.param(6, marks=pytest.mark.slow)], ids=["in-an-epoch", "between-epochs"])
def test_a_student_that_was_stopped_goes_on_to_the_same_bits(
    tmp_path: Path, tiny_data: Path, whole: Path, at: Callable[..., None], work: int
) -> None:
    root = tmp_path / "run"
    at(work, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StoppedError, match="SIGTERM") as told:
        run(with_student(tiny_data), root)
    assert "4 of 4 candidates complete, the student is not" in str(told.value.found)
    assert run_report(root)["complete"] is False  # a partial submission, by the ensemble alone
    assert not events(root, "STUDENT_FUSION") and verify(root)["ok"]
    run(with_student(tiny_data), root)
    assert results(root) == results(whole)
    assert weights(root) == weights(whole)
    assert [event["replayed"] for event in events(root, "STUDENT_DECISION")] == [False, True]
    (resumed,) = [event for event in events(root, "RESUME_OK") if event.get("student")]
    assert resumed["student"] == "3d" and [e for e in events(root, "RESUME_EXACT_OK") if e.get("student")]
    assert verify(root)["ok"]


@pytest.mark.slow
def test_a_student_that_was_stopped_travels_and_ends_in_the_same_bits(
    tmp_path: Path, tiny_data: Path, whole: Path, at: Callable[..., None]
) -> None:
    at(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(StoppedError):
        run(with_student(tiny_data), tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "run.zip")
    shutil.rmtree(tmp_path / "run")
    given = {"data.dir": str(tiny_data), "resources.executor": "inline", "student.loader_workers": 0}
    root, settings = take_up(tmp_path / "run.zip", tmp_path / "there", None, given)
    run(settings, root)
    assert weights(root) == weights(whole) and results(root) == results(whole)
    assert verify(root)["ok"]


@pytest.mark.slow
def test_a_killed_student_goes_on_to_the_same_bits(tmp_path: Path, tiny_data: Path, whole: Path) -> None:
    """kill -9 while it trains, in a process of its own."""
    config = write_config(tmp_path / "c.yaml", overlaid(TINY, {**STUDENT, "data.dir": str(tiny_data)}))
    root = tmp_path / "run"
    program = (
        "import os, sys\n"
        "from nx46vx.student.trainer import Trainer\n"
        "real, count = Trainer.advance, [0]\n"
        "def advance(self):\n"
        "    count[0] += 1\n"
        "    if count[0] == 8: os.kill(os.getpid(), 9)\n"
        "    return real(self)\n"
        "Trainer.advance = advance\n"
        "from nx46vx.cli.main import entry\n"
        f"sys.argv = ['nx46vx', 'run', '--config', {str(config)!r}, '--out', {str(root)!r}]\n"
        "entry()\n"
    )
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run(with_student(tiny_data), root)
    assert weights(root) == weights(whole) and results(root) == results(whole)
    assert len(events(root, "STUDENT_EPOCH")) == 2 < len(events(root, "STUDENT_EPOCH", all_lines=True)) + 1
    assert verify(root)["ok"]


@pytest.mark.slow
def test_through_ray_the_bits_are_those_of_the_inline_executor(tmp_path: Path, tiny_data: Path) -> None:
    both = {"variants": ["3d", "2.5d"]}
    run(with_student(tiny_data, **both), tmp_path / "inline")
    settings = Settings.model_validate(
        overlaid(TINY, {**STUDENT, "data.dir": str(tiny_data), "student.variants": both["variants"],
                        "resources.executor": "ray"})
    )  # fmt: skip
    run(settings, tmp_path / "ray")
    for owner in ("student-3d", "student-2.5d"):
        assert weights(tmp_path / "ray", owner) == weights(tmp_path / "inline", owner)
    assert results(tmp_path / "ray") == results(tmp_path / "inline")
    (one,), (other,) = (events(tmp_path / name, "STUDENT_FUSION") for name in ("ray", "inline"))
    assert one["weights"] == other["weights"] and one["variant"] == other["variant"]
    assert sorted(path.name for path in (tmp_path / "ray/ray").glob("students-*/student-*")) != []


@pytest.mark.slow
def test_other_settings_of_the_student_retrain_it_and_keep_the_candidates(
    tmp_path: Path, tiny_data: Path, whole: Path
) -> None:
    root = tmp_path / "run"
    shutil.copytree(whole, root)
    changed = with_student(tiny_data, learning_rate=0.02)
    with pytest.raises(IncompatibleError, match="learning_rate"):
        run(changed, root)
    run(changed, root, retrain=True)
    (told,) = events(root, "RETRAIN_MISMATCHED")
    assert told["dropped"] == ["student-3d"] and told["retrained"] == [] and len(told["kept"]) == 4
    assert len(events(root, "STUDENT_EPOCH")) == 2 and weights(root) != weights(whole)
    assert verify(root)["ok"]


# Fusion.


def test_a_stable_gain_changes_the_masks_and_is_replayed(
    tmp_path: Path, tiny_data: Path, whole: Path, kept: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    run(with_student(tiny_data, tta=False), root)
    (fusion,) = events(root, "STUDENT_FUSION")
    assert fusion["fused"] and fusion["tta"] == {"kept": False, "reason": "not asked for"}
    assert results(root)["leaderboard"] == results(whole)["leaderboard"]
    assert results(root)["submission"] != results(whole)["submission"]
    assert verify(root)["ok"]
    RunPaths(root).submission.unlink()  # so that the run is not finished, and segments again
    monkeypatch.setattr(fusion_room, "judge_fusion", lambda cases, min_gain: pytest.fail("it was decided already"))
    before = results_of_masks(root)
    run(with_student(tiny_data, tta=False), root)
    assert results_of_masks(root) == before
    assert [event["replayed"] for event in events(root, "STUDENT_FUSION")] == [False, True]


def test_the_time_that_a_gpu_works_for_the_student_counts_in_every_phase_where_it_does(
    tmp_path: Path, tiny_data: Path, kept: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if there were a GPU, which works a second for each step and each volume of the student, and for no one else.
    When the run is taken up after the student was judged, nothing is left for it to do there."""
    pretended = DeviceChoice("cuda", (Gpu(0, "0", "Pretended", 80 << 30, 79 << 30, "90"),), "pretended")

    @contextmanager
    def second(self: GpuClock) -> Iterator[None]:
        yield
        self.seconds += 1.0

    monkeypatch.setattr(GpuClock, "running", second)
    monkeypatch.setattr(run_room, "GpuLedger", lambda sink, device, **how: GpuLedger(sink, pretended))
    root = tmp_path / "run"
    settings = tiny_settings(
        tiny_data, {**STUDENT, "student.tta": False, "features.cache_dir": str(tmp_path / "cache")}
    )
    run(settings, root)
    ends = {event["phase"]: event for event in events(root, "GPU_PHASE_END")}
    worked = {phase: end["gpu_seconds"] for phase, end in ends.items()}
    assert worked["student"] > 1.0
    assert worked["student_fusion"] == 3.0, "two validation volumes and one that is held out"
    assert worked["mask_rule"] == 2.0 and worked["segment"] == 1.0, "each phase has the volumes of its own"
    assert all(end["asked"] for end in ends.values())
    fallbacks = [event["what"] for event in events(root, "GPU_FALLBACK_DETECTED")]
    assert fallbacks == ["features", "train_supervised"]
    report = run_report(root)["gpu"]
    assert (report["gpu_phase_coverage_pct"], report["cpu_fallback_count"]) == (100 * 4 / 6, 2)
    assert len(events(root, "GPU_MEMORY_SNAPSHOT")) == 2 * len(ends)
    RunPaths(root).submission.unlink()  # so that the run is not finished, and goes on
    run(settings, root)
    again = {event["phase"]: event for event in events(root, "GPU_PHASE_END") if event["fence"] == 2}
    assert {phase for phase, end in again.items() if end["asked"]} == {"mask_rule"}
    assert again["mask_rule"]["gpu_seconds"] == 2.0 and again["student_fusion"]["gpu_seconds"] == 0.0


def test_without_a_student_the_mask_rule_and_the_masks_are_the_cpus_and_say_so(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended = DeviceChoice("cuda", (Gpu(0, "0", "Pretended", 80 << 30, 79 << 30, "90"),), "pretended")
    monkeypatch.setattr(run_room, "GpuLedger", lambda sink, device, **how: GpuLedger(sink, pretended))
    run(tiny_settings(tiny_data, {"features.cache_dir": str(tmp_path / "cache")}), tmp_path / "run")
    told = {event["what"]: event["reason"] for event in events(tmp_path / "run", "GPU_FALLBACK_DETECTED")}
    assert told.keys() == {"features", "train_supervised", "mask_rule", "segment"}
    assert "CPU's kernels" in told["mask_rule"] and "CPU's kernels" in told["segment"]


def results_of_masks(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(RunPaths(root).masks.iterdir())}


@pytest.mark.slow
def test_test_time_augmentation_is_used_only_where_it_gains(
    tmp_path: Path, tiny_data: Path, kept: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[FusionCase], list[FusionCase]]] = []

    def judged(plain: list[FusionCase], averaged: list[FusionCase], min_gain: float) -> Verdict:
        seen.append((plain, averaged))
        return Verdict(True, "a stable gain", (0.1, 0.1), (0.2, 0.2))

    monkeypatch.setattr(fusion_room, "judge_averaging", judged)
    run(with_student(tiny_data), tmp_path / "run")
    (fusion,) = events(tmp_path / "run", "STUDENT_FUSION")
    assert fusion["averaged"] and fusion["tta"]["mean_gain"] == pytest.approx(0.1)
    ((plain, averaged),) = seen
    assert len(plain) == 2 and not np.array_equal(plain[0].student, averaged[0].student)
    assert np.array_equal(plain[0].neurons, averaged[0].neurons)


# Whether there is time.


@pytest.mark.slow
def test_auto_trains_as_long_as_the_time_left_allows(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine hours, of which 35 % are reserved; an epoch of four steps is expected to take 4000 s, half as much again."""
    monkeypatch.setattr(estimate_room, "rehearse", lambda spec, sink: Estimate(step=1000.0, window=0.0))
    root = tmp_path / "run"
    run(with_student(tiny_data, enabled="auto", epochs=5), root)
    (decision,) = events(root, "STUDENT_DECISION")
    assert decision["enabled"] and decision["until_stop_s"] < 0.65 * 9 * 3600
    assert decision["epochs"] == int(decision["until_stop_s"] / 1.5 / 4000) < 5
    assert [event["epochs"] for event in events(root, "STUDENT_EPOCH")] == [decision["epochs"]] * decision["epochs"]


def test_auto_leaves_it_out_where_time_is_short_and_stays_with_that(
    tmp_path: Path, tiny_data: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, at: Callable[..., None]
) -> None:
    monkeypatch.setattr(estimate_room, "rehearse", lambda spec, sink: Estimate(step=1e6, window=1.0))
    at(1, lambda: pytest.fail("a student was begun"))
    root, settings = tmp_path / "run", with_student(tiny_data, enabled="auto")
    run(settings, root)
    assert not events(root, "STUDENT_EPOCH") and not events(root, "STUDENT_FUSION")
    monkeypatch.setattr(estimate_room, "rehearse", lambda spec, sink: pytest.fail("it was decided already"))
    RunPaths(root).submission.unlink()
    run(settings, root)
    decisions = events(root, "STUDENT_DECISION")
    assert [event["replayed"] for event in decisions] == [False, True]
    assert all(not event["enabled"] and "too little time" in event["reason"] for event in decisions)


def test_a_run_that_is_late_has_no_optional_phases(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = session_room.make_governor

    def late(*given: Any) -> Governor:
        governor = real(*given)
        governor.accelerate(governor.budget)
        return governor

    monkeypatch.setattr(session_room, "make_governor", late)
    run(with_student(tiny_data, enabled="auto"), tmp_path / "run")
    (told,) = events(tmp_path / "run", "RUNTIME_ACCELERATION_MODE_ON")
    assert {"optional_phases_off", "test_time_augmentation_off"} <= set(told["actions"])
    (decision,) = events(tmp_path / "run", "STUDENT_DECISION")
    assert not decision["enabled"] and "late" in decision["reason"]


@pytest.mark.slow
def test_in_auto_a_student_whose_time_is_up_ends_with_its_best_epoch(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, at: Callable[..., None]
) -> None:
    governors: list[Governor] = []
    real = session_room.make_governor

    def make(*given: Any) -> Governor:
        governors.append(real(*given))
        return governors[-1]

    def hurry() -> None:
        """Nothing is left but the reserve, and that is long."""
        governors[-1]._started -= 1e5
        governors[-1].budget = 1.5 * governors[-1].elapsed

    monkeypatch.setattr(session_room, "make_governor", make)
    monkeypatch.setattr(estimate_room, "rehearse", lambda spec, sink: Estimate(step=1e-3, window=1e-3))
    at(7, hurry)  # an epoch is four steps and one validation volume
    root = tmp_path / "run"
    run(with_student(tiny_data, enabled="auto", epochs=4), root)
    assert [event["epoch"] for event in events(root, "STUDENT_EPOCH")] == [1]
    assert Decisions(RunPaths(root).decisions).get("student", "ended")["reason"] == "time"
    assert events(root, "STUDENT_ENDED")[0]["reason"] == "time" and verify(root)["ok"]
    assert run_report(root)["complete"] and run_report(root)["student"]["best_epoch"] == 1


def test_in_auto_a_student_that_fails_costs_no_submission(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Trainer) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Trainer, "advance", broken)
    run(with_student(tiny_data, enabled="auto"), tmp_path / "run")
    (told,) = events(tmp_path / "run", "STUDENT_FAILED")
    assert "illegal memory access" in told["error"]
    assert run_report(tmp_path / "run")["complete"] and not events(tmp_path / "run", "STUDENT_FUSION")
    assert events(tmp_path / "run", "STUDENT_ENDED")[0]["reason"] == "failure" and verify(tmp_path / "run")["ok"]
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(with_student(tiny_data), tmp_path / "asked-for")
