"""What benchmarks of quality have in common: a whole run on generated volumes, and further volumes of other scrolls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from nx46vx.data.synthetic import make_case
from nx46vx.model.ensemble import Ensemble
from nx46vx.paths import RunPaths
from nx46vx.pipeline.run import run
from nx46vx.settings import Settings

#: Scrolls below are those that a run is fitted on, and the ones that choose thresholds.
HELD_OUT = 40
#: A score and its three parts.
PARTS = ("score", "topo", "surface_dice", "voi")
_SCROLLS = 6


def generated(edge: int, count: int, first: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """``count`` volumes of edge^3 voxels and their labels, each of a scroll of its own, numbered from ``first``."""
    return [make_case((edge, edge, edge), scroll=number, seed=number) for number in range(first, first + count)]


def choosing(edge: int, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Volumes that thresholds are chosen on: of scrolls that are neither fitted on nor held out."""
    return generated(edge, count, HELD_OUT - count)


def fitted_settings(
    folder: Path, *, edge: int, cases: int, samples: int, student: Mapping[str, Any] | None = None
) -> Settings:
    """Of a whole run, the full grid included, on ``cases`` volumes made for it; its features are kept in ``folder``.

    ``samples`` of each volume; ``student``: its settings, where one is trained. No search over the mask's parameters.
    """
    return Settings.model_validate(
        {
            "data": {
                "synthetic": {"train_cases": cases, "test_cases": 1, "size": edge, "scrolls": _SCROLLS},
                "validation_fraction": 0.25, "holdout_fraction": 0.2,
            },
            "features": {
                "max_samples_per_volume": samples, "validation_samples_per_volume": samples,
                "cache_dir": folder / "features",
            },
            "growth": {"enabled": False},
            "mask": {"search": {"trials": 0}},
            "resources": {"executor": "inline", "device": "cpu"},
            "student": {"enabled": False} if student is None else {"enabled": True, **student},
        }
    )  # fmt: skip


def fitted_run(
    folder: Path, *, edge: int, cases: int, samples: int, student: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The report of a run in ``folder`` with ``fitted_settings``."""
    return run(fitted_settings(folder, edge=edge, cases=cases, samples=samples, student=student), folder / "run")


def ensemble_of(folder: Path) -> Ensemble:
    """The ensemble that ``fitted_run`` left in ``folder``."""
    return Ensemble.from_json(orjson.loads(RunPaths(folder / "run").ensemble.read_bytes()))
