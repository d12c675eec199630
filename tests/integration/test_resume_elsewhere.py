"""A run that was stopped is taken elsewhere, as a zip or as a copy, and ends as if nothing had happened."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import CANDIDATES, ITERATIONS, Ended, Interrupted, events, iterations_done, results, run, tiny_settings, tree
from tiny import TINY as TINY_CONFIG

from nx46vx.errors import StoppedError, UsageError
from nx46vx.pipeline.elsewhere import take_up
from nx46vx.pipeline.verifying import verify
from nx46vx.runtime.archive import export_run

Command = Callable[..., Ended]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A tiny run that was asked to stop in the middle of its first candidate, with what it could hand in."""
    root = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(StoppedError):
        run(tiny_settings(tiny_data), root, executor=Interrupted(1))
    done = iterations_done(root)
    assert list(map(len, done.values())) == [ITERATIONS // 2]
    assert (root / "submission.zip").is_file()
    return root


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, stopped: Path) -> Path:
    path = tmp_path_factory.mktemp("archive") / "run.zip"
    export_run(stopped, path)
    return path


def whole(root: Path) -> bool:
    done = iterations_done(root)
    return len(done) == CANDIDATES and all(one == list(range(1, ITERATIONS + 1)) for one in done.values())


def test_an_imported_run_ends_like_an_uninterrupted_one(
    command: Command, archive: Path, finished: Path, tiny_data: Path, tmp_path: Path
) -> None:
    root = tmp_path / "elsewhere" / "run"
    ended = command(
        "run", "--resume-from-checkpoint", archive, "--out", root, "--data", tiny_data,
        "--set", "resources.executor=inline", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.stderr
    assert ended.json["run"] == str(root)
    assert results(root) == results(finished)
    assert whole(root)
    assert events(root, "RESUME_OK"), "it went on where the checkpoints stood"
    found = verify(root, data=tiny_data)
    assert found["problems"] == []
    again = command(
        "run", "--resume-from-checkpoint", archive, "--out", root, "--data", tiny_data, "--json"
    )  # the same command, once more
    assert again.code == 0 and again.json == ended.json


def test_a_copied_run_ends_like_an_uninterrupted_one_and_its_source_is_untouched(
    command: Command, stopped: Path, finished: Path, tiny_data: Path, tmp_path: Path
) -> None:
    before, root = tree(stopped), tmp_path / "copy"
    (tmp_path / "tiny.yaml").write_text((stopped / "config.yaml").read_text())
    ended = command("run", "--config", tmp_path / "tiny.yaml", "--resume-from-checkpoint", stopped, "--out", root)
    assert ended.code == 0, ended.stderr
    assert results(root) == results(finished) and whole(root)
    assert tree(stopped) == before


def test_without_out_a_directory_is_continued_where_it_is(
    command: Command, stopped: Path, finished: Path, tmp_path: Path
) -> None:
    """A copy made by hand, lock and all; its own configuration says what it needs."""
    root = tmp_path / "moved"
    shutil.copytree(stopped, root)
    ended = command("run", "--resume-from-checkpoint", root)
    assert ended.code == 0, ended.stderr
    assert results(root) == results(finished) and whole(root)


def test_without_out_an_archive_goes_to_runs(
    command: Command, archive: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = command(
        "run", "--resume-from-checkpoint", archive, "--data", tiny_data, "--set", "resources.executor=inline"
    )
    assert ended.code == 0, ended.stderr
    assert (tmp_path / "runs" / "run" / "report.json").is_file()


def test_a_finished_run_travels_whole(command: Command, finished: Path, tiny_data: Path, tmp_path: Path) -> None:
    ended = command("checkpoint", "export", finished, "--out", tmp_path / "f.zip", "--json")
    assert ended.code == 0 and ended.json["archive"] == str(tmp_path / "f.zip")
    root = tmp_path / "back"
    told = command("run", "--resume-from-checkpoint", tmp_path / "f.zip", "--out", root, "--data", tiny_data)
    assert told.code == 0 and results(root) == results(finished)
    assert verify(root)["problems"] == []
    names = zipfile.ZipFile(tmp_path / "f.zip").namelist()
    assert not any(name.startswith(("ray", "data", ".")) or name == "run.lock" for name in names)


def test_a_run_on_volumes_of_its_own_makes_them_again(tmp_path: Path, finished: Path) -> None:
    """Synthetic volumes do not travel: they follow from the configuration, to the same digests."""
    root = tmp_path / "own"
    with pytest.raises(StoppedError):
        run(tiny_settings(None), root, executor=Interrupted(2))
    assert (root / "data").is_dir()
    export_run(root, tmp_path / "own.zip")
    shutil.rmtree(root)
    place, settings = take_up(tmp_path / "own.zip", tmp_path / "there", None, {"resources.executor": "inline"})
    assert not (place / "data").exists()
    run(settings, place)
    assert results(place) == results(finished)


def test_paths_and_addresses_of_another_machine_are_not_followed(archive: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.zip"
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(hostile, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            data = source.read(member)
            if member.filename == "config.yaml":
                text = data.decode().replace("cache_dir: null", f"cache_dir: {tmp_path / 'trap'}")
                data = text.replace("ray_address: null", "ray_address: evil.example:6379").encode()
                assert b"trap" in data and b"evil" in data
            target.writestr(member, data)
    given = tmp_path / "dataset"
    given.mkdir()
    _, settings = take_up(hostile, tmp_path / "out", None, {"data.dir": str(given)})
    assert settings.features.cache_dir is None and settings.resources.ray_address is None
    assert settings.data.dir == given
    assert settings.grid.max_iter == ITERATIONS
    with pytest.raises(UsageError, match="dataset does not come with the run"):
        take_up(hostile, tmp_path / "other", None, {})
    assert not (tmp_path / "other").exists() and not (tmp_path / "trap").exists()


def test_another_configuration_is_refused_before_anything_is_brought(
    command: Command, archive: Path, stopped: Path, tiny_data: Path, tmp_path: Path
) -> None:
    for source in (archive, stopped):
        ended = command(
            "run", "--resume-from-checkpoint", source, "--out", tmp_path / "out", "--data", tiny_data,
            "--set", "seed=3",
        )  # fmt: skip
        assert ended.code == 5 and "seed is 2 there and 3 here" in ended.stderr and str(source) in ended.stderr
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_taken_up_is_named(
    command: Command, archive: Path, stopped: Path, finished: Path, tmp_path: Path
) -> None:
    def ends(code: int, *arguments: object) -> str:
        ended = command("run", *arguments)
        assert ended.code == code, ended.stderr
        assert ended.stdout == ""
        return ended.stderr

    assert "no run to continue" in ends(2, "--resume-from-checkpoint", tmp_path / "absent")
    assert "no run directory" in ends(2, "--resume-from-checkpoint", tmp_path)
    assert "no run directory" in ends(2, "--resume-from-checkpoint", tmp_path, "--out", tmp_path / "new")
    assert "exclude" in ends(2, "--resume-from-checkpoint", archive, "--fresh")
    (tmp_path / "taken").mkdir()
    assert "taken" in ends(2, "--resume-from-checkpoint", archive, "--out", tmp_path / "taken")
    assert "another run" in ends(2, "--resume-from-checkpoint", archive, "--out", finished)
    assert "another run" in ends(2, "--resume-from-checkpoint", stopped, "--out", finished)
    (tmp_path / "evil.zip").write_bytes(b"PK")
    assert "no readable zip" in ends(5, "--resume-from-checkpoint", tmp_path / "evil.zip", "--out", tmp_path / "new")
    for name, data, what in (("plan.json", b"{", "plan"), ("run.json", b"[]", "identity"),
                             ("config.yaml", b"seed: many", "configuration")):  # fmt: skip
        with zipfile.ZipFile(archive) as source, zipfile.ZipFile(tmp_path / "bad.zip", "w") as target:
            for member in source.infolist():
                target.writestr(member.filename, data if member.filename == name else source.read(member))
        told = ends(5, "--resume-from-checkpoint", tmp_path / "bad.zip", "--out", tmp_path / "new", "--data", tmp_path)
        assert what in told
    assert not (tmp_path / "new").exists()


KILLED = """
import os, sys
from pathlib import Path
from nx46vx.runtime import archive
archive.check_content = lambda *given: os.kill(os.getpid(), 9)
archive.import_run(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_import_has_not_taken_the_place(archive: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, archive, tmp_path / "run"], check=False)
    assert done.returncode == -9
    assert not (tmp_path / "run").exists()
    take_up(archive, tmp_path / "run", None, {"data.dir": str(tmp_path)})
    assert (tmp_path / "run" / "config.yaml").is_file()
    assert TINY_CONFIG["seed"] == 2
