"""Runs to kill, the uninterrupted one they are compared with, and a room where they go fast."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from processes import Process, quick_folder
from tiny import WHOLE, overlaid, run

from nx46vx.settings import Settings


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder for runs that are killed.

    A kill takes nothing from the operating system's cache, on whatever disk. Where syncs cost nothing, a run is over
    in seconds, and the kills fall close together.
    """
    with quick_folder(tmp_path) as folder:
        yield folder


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Iterator[Path]:
    """The whole grid, uninterrupted, without Ray."""
    flat = {"data.dir": str(tiny_data), "resources.executor": "inline"}
    with quick_folder(tmp_path_factory.mktemp("reference")) as folder:
        run(Settings.model_validate(overlaid(WHOLE, flat)), folder / "run")
        yield folder / "run"


@pytest.fixture
def processes() -> Iterator[Callable[..., Process]]:
    """Starts runs; whatever is left of them at the end of the test is killed."""
    made: list[Process] = []
    families: list[psutil.Process] = []

    def begin(*arguments: object) -> Process:
        made.append(Process(*arguments))
        return made[-1]

    yield begin
    for process in made:
        families += [*process.family(), *process.left]
    for one in families:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
