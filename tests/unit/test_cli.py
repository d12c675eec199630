"""The command line: stdout is data, stderr is talk, the exit code says how it ended."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tifffile
from tiny import CANDIDATES, Ended, tree, write_config

import nx46vx
from nx46vx.cli import app as app_module
from nx46vx.cli import main as main_module
from nx46vx.errors import (
    DataError,
    EnvironmentFault,
    IncompatibleError,
    IntegrityError,
    LockedError,
    NX46Error,
    StoppedError,
    UsageError,
)  # fmt: skip

Command = Callable[..., Ended]


@pytest.fixture
def config(tmp_path: Path, tiny_data: Path) -> Path:
    return write_config(tmp_path / "tiny.yaml", flat={"data.dir": str(tiny_data)})


def test_help_and_version(command: Command) -> None:
    assert command("--version").stdout.strip() == nx46vx.__version__
    told = command("--help")
    assert told.code == 0
    for name in ("run", "plan", "status", "make-data"):
        assert name in told.stdout
        assert command(name, "--help").code == 0
    for flag in ("--config", "--data", "--out", "--resume", "--fresh", "--set"):
        assert flag in command("run", "--help").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"], ["run", "--nonsense"], ["run", "stray"], ["status"], ["make-data"],
        ["run", "--set", "seed"], ["run", "--set", "=1"], ["run", "--set", "seed=[1"],
        ["run", "--resume", "--fresh"], ["make-data", "x", "--size", "47"], ["make-data", "x", "--train", "many"],
    ],
)  # fmt: skip
def test_wrong_usage_ends_with_2_and_says_nothing_on_stdout(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = command(*arguments)
    assert ended.code == 2
    assert ended.stdout == "" and ended.stderr != ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "key", "reason"),
    [
        ("grid.nonsense=1", "grid.nonsense", "not permitted"),
        ("seed=abc", "seed", "integer"),
        ("mask.z_radius=99", "mask.z_radius", "less than or equal to 8"),
        ("grid.max_iter=119", "configuration", "allow_reduced"),
    ],
)
def test_bad_configuration_ends_with_2_and_touches_nothing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, key: str, reason: str
) -> None:
    key_of, _, value = given.partition("=")
    branch, _, leaf = key_of.rpartition(".")
    yaml = tmp_path / "bad.yaml"
    yaml.write_text(f"{branch}: {{{leaf}: {value}}}\n" if branch else f"{leaf}: {value}\n")
    by_flag = command("run", "--out", tmp_path / "run", "--set", given)
    by_file = command("run", "--out", tmp_path / "run", "--config", yaml)
    monkeypatch.setenv("NX46VX_" + key_of.upper().replace(".", "__"), value)
    by_variable = command("run", "--out", tmp_path / "run")
    for ended in (by_flag, by_file, by_variable):
        assert ended.code == 2
        assert ended.stdout == ""
        assert key in ended.stderr and reason in ended.stderr
    assert not (tmp_path / "run").exists()


def test_a_missing_configuration_file_ends_with_2(command: Command, tmp_path: Path) -> None:
    ended = command("run", "--config", tmp_path / "absent.yaml", "--out", tmp_path / "run")
    assert ended.code == 2 and "absent.yaml" in ended.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2), (StoppedError("x"), 3), (DataError("x"), 4), (IntegrityError("x"), 5),
        (IncompatibleError("x"), 5), (LockedError("x"), 6), (EnvironmentFault("x"), 7), (NX46Error("x"), 1),
        (OSError(errno.ENOSPC, "No space left on device", "/there"), 7),
        (OSError(errno.EROFS, "Read-only file system", "/there"), 7),
        (PermissionError(errno.EACCES, "no", "/there"), 7),
        (MemoryError(), 7), (KeyboardInterrupt(), 3), (ValueError("a fault of ours"), 1),
    ],
)  # fmt: skip
def test_every_kind_of_end_has_its_code(
    command: Command, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(*given: Any) -> Any:
        raise error

    monkeypatch.setattr(app_module, "_settle", fail)
    ended = command("run")
    assert ended.code == code
    assert ended.stdout == "" and ended.stderr.strip()
    if isinstance(error, NX46Error):
        assert type(error).__name__ in ended.stderr and "Traceback" not in ended.stderr
    elif isinstance(error, OSError):
        assert "EnvironmentFault" in ended.stderr and "/there" in ended.stderr
    elif isinstance(error, ValueError):
        assert "Traceback" in ended.stderr


def test_the_console_script_is_the_same_program() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["scripts"]["nx46vx"] == "nx46vx.cli.main:entry"
    assert callable(main_module.entry)


def test_make_data_makes_the_competitions_layout(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "data"
    ended = command("make-data", out, "--train", "3", "--test", "1", "--size", "48", "--scrolls", "2", "--json")
    assert ended.code == 0
    assert ended.json == {"data": str(out), "train_cases": 3, "test_cases": 1}
    images, labels = sorted((out / "train_images").iterdir()), sorted((out / "train_labels").iterdir())
    assert [path.name for path in images] == [path.name for path in labels] and len(images) == 3
    assert len(list((out / "test_images").glob("*.tif"))) == 1
    for path in (*images, *labels):
        volume = tifffile.imread(path)
        assert volume.shape == (48, 48, 48) and volume.dtype == "uint8"
    assert set(tifffile.imread(labels[0]).ravel().tolist()) == {0, 1, 2}
    again = tree(out)
    assert command("make-data", out, "--train", "3", "--test", "1", "--size", "48", "--scrolls", "2").code == 0
    assert tree(out) == again


def test_make_data_leaves_other_folders_alone(command: Command, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    ended = command("make-data", tmp_path, "--train", "3", "--test", "1", "--size", "48")
    assert ended.code != 0 and ended.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_plan_counts_and_estimates_and_trains_nothing(command: Command, config: Path, tmp_path: Path) -> None:
    root, cache = tmp_path / "run", tmp_path / "cache"
    options = ["--config", config, "--out", root, "--set", f"features.cache_dir={cache}", "--json"]
    ended = command("plan", *options)
    assert ended.code == 0
    planned = ended.json
    assert planned["cases"] == {"train": 3, "validation": 1, "holdout": 1, "test": 1}
    assert (planned["candidates"], planned["iterations"]) == (CANDIDATES, 20 * CANDIDATES)
    assert (planned["cache_hits"], planned["cache_misses"]) == (0, 5)
    assert planned["reduced"] is True
    assert all(seconds >= 0 for seconds in planned["estimate"].values())
    assert planned["estimate"]["total_seconds"] > 0
    assert Path(planned["plan"]) == root / "plan.json" and (root / "plan.json").is_file()
    assert not (root / "leaderboard.csv").exists() and not list((root).glob("checkpoints/*"))
    assert not list(cache.glob("entries/*"))
    told = command("status", root, "--json").json
    assert (told["state"], told["candidates_total"], told["candidates_done"]) == ("planned", CANDIDATES, 0)
    assert command("run", *options, "--resume").code == 0
    warm = command("plan", *options).json
    assert (warm["cache_hits"], warm["cache_misses"]) == (5, 0)


def test_planning_a_finished_run_changes_no_result(command: Command, config: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    assert command("run", "--config", config, "--out", root).code == 0
    plan, before = (root / "plan.json").read_bytes(), tree(root)
    assert command("plan", "--config", config, "--out", root).code == 0
    assert (root / "plan.json").read_bytes() == plan
    after = tree(root)
    changed = {name for name in before if before[name] != after.get(name)}
    assert all(name.startswith(("events/", "run.lock")) for name in changed)
    assert command("status", root, "--json").json["state"] == "complete"


def test_status_reads_and_touches_nothing(command: Command, finished: Path) -> None:
    before = tree(finished)
    told = command("status", finished, "--json").json
    assert told["state"] == "complete" and told["reduced"] is True
    assert (told["candidates_done"], told["candidates_total"]) == (CANDIDATES, CANDIDATES)
    assert (told["iterations_done"], told["iterations_total"]) == (20 * CANDIDATES, 20 * CANDIDATES)
    assert Path(told["submission"]).is_file() and Path(told["report"]).is_file()
    assert told["holdout"].keys() == {
        "ensemble_f_half", "intensity_f_half", "ensemble_average_precision", "best_member_average_precision",
    }  # fmt: skip
    plain = command("status", finished)
    assert plain.code == 0 and f"run: {finished}" in plain.stdout
    assert tree(finished) == before


def test_status_of_something_else_ends_with_2(command: Command, tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "absent"):
        ended = command("status", place)
        assert ended.code == 2 and "no run directory" in ended.stderr and ended.stdout == ""


def test_stdout_is_data_only_in_a_real_process(cli: Command, config: Path, tmp_path: Path) -> None:
    ended = cli("run", "--config", config, "--out", tmp_path / "run", "--json")
    assert ended.code == 0
    result = ended.json
    assert result.keys() >= {"run", "submission", "report", "reduced"}
    assert Path(result["submission"]).is_file() and Path(result["report"]).is_file()
    assert "REDUCED" in ended.stderr and "submission" not in ended.stderr
    assert "Traceback" not in ended.stderr


def test_without_out_the_run_is_named_after_its_configuration(
    command: Command, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("plan", "--config", config).code == 0
    assert (tmp_path / "runs" / "tiny" / "plan.json").is_file()


def test_a_benchmark_is_either_full_or_quick(command: Command) -> None:
    ended = command("bench", "grid", "--full", "--quick")
    assert ended.code == 2 and "exclude each other" in ended.stderr
