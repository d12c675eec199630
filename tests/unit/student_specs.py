"""Small students to test with, over the tiny dataset's cases."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from nx46vx.data.cases import Case
from nx46vx.data.discovery import discover
from nx46vx.data.integrity import DigestBook
from nx46vx.data.volume_io import read_volume, write_volume
from nx46vx.runtime.sink import NullSink
from nx46vx.settings import StudentSettings
from nx46vx.student.spec import StudentSpec, Variant

SMALL: dict[str, Any] = {
    "base_channels": 4, "levels": 2, "cell": 2, "patch": [16, 16, 16], "slab": [4, 16, 16], "context_slices": 3,
    "batch_size": 3, "patches_per_visit": 2, "steps_per_epoch": 4, "epochs": 3, "validation_cases": 1,
    "overlap": 0.0, "checkpoint_steps": 3, "loader_workers": 0,
}  # fmt: skip


def small(**changes: Any) -> StudentSettings:
    return StudentSettings.model_validate({**SMALL, **changes})


def cases_of(data: Path, book: Path) -> list[Case]:
    """The labelled cases of a dataset, by id."""
    with ThreadPoolExecutor(2) as mapper:
        return list(discover(data, book=DigestBook(book), sink=NullSink(), executor=mapper).train)


def cut_cases_of(data: Path, folder: Path) -> list[Case]:
    """The middles of the same cases, 32 voxels along each axis, in files that are mapped instead of unpacked."""
    for case in cases_of(data, folder / "whole.json"):
        for path in (case.image, case.label):
            assert path is not None
            inner = np.asarray(read_volume(path))[8:40, 8:40, 8:40]
            place = folder / "data" / path.parent.name
            place.mkdir(parents=True, exist_ok=True)
            write_volume(place / path.name, inner, compression=None)
    shutil.copytree(data / "test_images", folder / "data" / "test_images")
    return cases_of(folder / "data", folder / "cut.json")


def spec_of(
    cases: list[Case], *, variant: Variant = "3d", seed: int = 1, threads: int = 1, **changes: Any
) -> StudentSpec:
    """A student trained on all cases but the last two, which judge it."""
    settings = small(**changes)
    judges = tuple(cases[-2:][: settings.validation_cases])
    return StudentSpec("run", seed, variant, settings, tuple(cases[:-2]), judges, settings.epochs, "cpu", threads)
