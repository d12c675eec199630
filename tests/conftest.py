"""Every test has a cache of its own, away from the user's; volumes and one finished run are made once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import TINY, Ended, run, start, tiny_settings

from nx46vx.cli.main import main
from nx46vx.data.synthetic import make_dataset
from nx46vx.runtime.sink import NullSink
from nx46vx.settings import SyntheticSettings
from search.cluster import prepare_environment

prepare_environment(None)  # Ray reads it once a process, when the first module that wants it is imported


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """``XDG_CACHE_HOME`` for this process and its children; no ``NX46VX_*`` of the user's gets in."""
    home = tmp_path_factory.mktemp("cache-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        for name in [name for name in os.environ if name.startswith("NX46VX_")]:
            patch.delenv(name)
        yield home


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five labelled volumes of 48^3 and one to segment. Read only: copy before changing anything."""
    folder = tmp_path_factory.mktemp("tiny") / "data"
    make_dataset(folder, SyntheticSettings.model_validate(TINY["data"]["synthetic"]), sink=NullSink())
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A finished tiny run. Read only: copy before changing anything."""
    root = tmp_path_factory.mktemp("finished") / "run"
    run(tiny_settings(tiny_data), root)
    return root


@pytest.fixture
def cli() -> Callable[..., Ended]:
    """Runs ``python -m nx46vx ...`` and waits for it."""

    def call(*arguments: object, **options: Any) -> Ended:
        process = start(*arguments, **options)
        stdout, stderr = process.communicate(timeout=240)
        return Ended(process.returncode, stdout, stderr)

    return call


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The same in this process, which saves the start."""

    def call(*arguments: object) -> Ended:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    return call
