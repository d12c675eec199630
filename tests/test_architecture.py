"""The rooms and their doors: imports go one way, and what has to be light stays light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def lint_imports(config: Path) -> subprocess.CompletedProcess[str]:
    program = "import sys; from importlinter.cli import lint_imports_command as main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", program, "--config", str(config), "--no-cache"], cwd=ROOT, text=True,
        capture_output=True, check=False,
    )  # fmt: skip


def test_every_import_contract_is_kept() -> None:
    checked = lint_imports(ROOT / "pyproject.toml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "4 kept, 0 broken" in checked.stdout


def test_the_contracts_notice_a_wrong_way_round(tmp_path: Path) -> None:
    """The check itself can fail: with two layers exchanged it does."""
    text = (ROOT / "pyproject.toml").read_text()
    swapped = text.replace('"nx46vx.model",\n  "nx46vx.features",', '"nx46vx.features",\n  "nx46vx.model",')
    assert swapped != text
    config = tmp_path / "pyproject.toml"
    config.write_text(swapped)
    checked = lint_imports(config)
    assert checked.returncode == 1
    assert "nx46vx.features is not allowed to import nx46vx.model" in checked.stdout or "BROKEN" in checked.stdout


def loaded_by(statement: str) -> set[str]:
    """Top-level packages that a statement loads in a fresh interpreter."""
    program = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import nx46vx", {"torch", "ray", "optuna", "numpy"}),
        ("import nx46vx.settings, nx46vx.cli.app", {"torch", "ray", "optuna"}),
        ("import trainables.task", {"torch", "ray", "optuna"}),
        ("import trainables.tune_adapter", {"torch", "optuna"}),
        ("import search.source, search.executor, search.resources", {"torch", "ray", "optuna"}),
        ("import nx46vx.pipeline.run", {"ray", "optuna"}),
    ],
)
def test_light_modules_stay_light(statement: str, unwanted: set[str]) -> None:
    assert not loaded_by(statement) & unwanted


def test_the_check_for_light_modules_sees_what_is_loaded() -> None:
    assert "torch" in loaded_by("import nx46vx.model.passes_torch")


def test_the_wheel_carries_exactly_the_three_packages() -> None:
    import tomllib

    from setuptools import find_packages

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    include = project["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = find_packages(str(ROOT), include=include)
    assert {name.partition(".")[0] for name in packages} == {"nx46vx", "search", "trainables"}
    for folder in ("nx46vx", "search", "trainables"):
        for path in (ROOT / folder).rglob("*.py"):
            assert ".".join(path.parent.relative_to(ROOT).parts) in packages, f"{path} is left out of the wheel"
