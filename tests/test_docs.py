"""What the documents say is so: the tree, the commands, the keys, the events, the exit codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nx46vx import errors
from nx46vx.settings import Settings, flatten, load_settings
from tests.readme_tree import ROOT, describe, files, in_readme, render

USAGE = (ROOT / "docs/usage.md").read_text()
README = (ROOT / "README.md").read_text()


def test_the_readme_has_a_line_for_every_file() -> None:
    assert in_readme() == render(), "run: python -m tests.readme_tree"


def test_every_file_says_what_it_is() -> None:
    silent = [str(path) for path in files() if path.name != "__init__.py" and len(describe(path)) < 10]
    assert silent == []


def test_ci_calls_the_readmes_test_command() -> None:
    commands = re.findall(r"^python3 -m venv .+$", README, re.MULTILINE)
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci/run").read_text()


def test_usage_lists_every_exit_code() -> None:
    codes = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "exit_code")}
    for code in codes | {errors.EXIT_DONE, errors.EXIT_INTERRUPTED_TWICE}:
        assert f"| {code} |" in USAGE


def test_usage_names_every_event_that_the_code_emits() -> None:
    source = "\n".join(
        path.read_text() for top in ("nx46vx", "search", "trainables") for path in (ROOT / top).rglob("*.py")
    )
    emitted = set(re.findall(r'(?:emit|_event)\(\s*"([A-Z][A-Z_]+)"', source))
    assert len(emitted) > 20
    assert {event for event in emitted if f"`{event}`" not in USAGE} == set()


def test_default_yaml_shows_every_key_at_its_default() -> None:
    shown = load_settings(ROOT / "configs/default.yaml", environ={})
    assert shown == Settings()
    text = (ROOT / "configs/default.yaml").read_text()
    unset = {"features.workers"}
    for key in flatten(Settings().model_dump(mode="json")).keys() - unset:
        assert re.search(rf"\b{key.rsplit('.', 1)[-1]}:", text), key


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "configs").glob("*.yaml")))
def test_shipped_configurations_cut_nothing(name: str) -> None:
    settings = load_settings(ROOT / "configs" / name, environ={})
    assert not settings.allow_reduced
    assert not settings.reduced


def test_what_is_said_of_quality_stands_in_its_table() -> None:
    """The table is that of the benchmark at its full size, labelled; every figure in the conclusions is one of its."""
    from nx46vx.bench.quality import NAMES, Sizes

    text = (ROOT / "docs/quality.md").read_text()
    _, table, said = re.split(r"^## The table$|^## What it says$", text, flags=re.MULTILINE)
    sizes, rows = Sizes(), [line.split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    assert f"Synthetic data: {sizes.held_out} generated volumes of {sizes.edge}^3 voxels" in table
    assert [row[0].removeprefix("| ") for row in rows] == list(NAMES.values())
    assert {len(row) for row in rows} == {11}
    for row in rows:
        mean, topo, dice, voi = (float(cell.split()[0]) for cell in row[1:5])
        assert abs(mean - 0.3 * topo - 0.35 * (dice + voi)) < 0.002
    figures = set(re.findall(r"\d+\.\d+", table))
    assert len(said) > 200 and set(re.findall(r"\d+\.\d+", said)) <= figures


@pytest.mark.slow
def test_the_tour_in_the_usage_runs(tmp_path: Path) -> None:
    tour = re.search(r"<!-- tour -->\n```sh\n(.*?)```", USAGE, re.DOTALL)
    assert tour is not None
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "XDG_CACHE_HOME": f"{tmp_path}/cache"}
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    done = subprocess.run(["bash", "-e", "-c", tour[1]], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/first/submission.zip").is_file()
