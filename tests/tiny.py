"""A reduced run that takes a second or two, and ways to look at what a run left behind."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import yaml

from nx46vx.events import iter_events
from nx46vx.paths import RunPaths
from nx46vx.pipeline.run import run
from nx46vx.settings import Settings
from search.executor import SearchJob
from search.inline import InlineExecutor

#: Two meta-neurons x two l1 x one l2, 20 iterations, 48^3 volumes, few samples, no Ray.
TINY: dict[str, Any] = {
    "allow_reduced": True,
    "seed": 2,
    "data": {"synthetic": {"train_cases": 5, "test_cases": 1, "size": 48, "scrolls": 2}},
    "features": {"max_samples_per_volume": 600, "validation_samples_per_volume": 800, "block": 64},
    "grid": {"meta_neurons": 2, "l1": [0.001, 0.01], "l2": [0.001], "max_iter": 20},
    "growth": {"enabled": False},
    "mask": {"search": {"trials": 0}},
    "resources": {"executor": "inline", "device": "cpu"},
}
CANDIDATES, ITERATIONS = 4, 20

#: The whole grid, 135 x 120, on the same small samples.
WHOLE: dict[str, Any] = {
    **{key: value for key, value in TINY.items() if key not in ("allow_reduced", "grid")},
    "resources": {"executor": "ray", "device": "cpu"},
}


def overlaid(base: Mapping[str, Any], flat: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with some dotted keys set."""
    copy: dict[str, Any] = yaml.safe_load(yaml.safe_dump(dict(base)))
    for dotted, value in flat.items():
        *branches, leaf = dotted.split(".")
        node = copy
        for branch in branches:
            node = node.setdefault(branch, {})
        node[leaf] = value
    return copy


def tiny_settings(data: Path | None, flat: Mapping[str, Any] | None = None) -> Settings:
    given = {} if data is None else {"data.dir": str(data)}
    return Settings.model_validate(overlaid(TINY, {**given, **(flat or {})}))


def write_config(path: Path, base: Mapping[str, Any] = TINY, flat: Mapping[str, Any] | None = None) -> Path:
    path.write_text(yaml.safe_dump(overlaid(base, flat or {})))
    return path


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return orjson.loads(self.stdout)


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """``python -m nx46vx ...`` in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "nx46vx", *map(str, arguments)], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, start_new_session=True, **options,
    )  # fmt: skip


def events(root: Path, name: str | None = None, *, all_lines: bool = False) -> list[dict[str, Any]]:
    """Events of a run; without ``all_lines`` those that a resumed writer repeated are left out."""
    return list(iter_events(RunPaths(root).events, event=name, superseded=all_lines))


def iterations_done(root: Path) -> dict[str, list[int]]:
    """Iterations that count, by candidate, in the order they were done."""
    done: dict[str, list[int]] = {}
    for event in events(root, "fit_prox_iter"):
        done.setdefault(event["candidate_id"], []).append(event["iter"])
    return done


def table(root: Path) -> list[dict[str, str]]:
    """The leaderboard as text, without ``seconds``."""
    rows = list(csv.DictReader(io.StringIO(RunPaths(root).leaderboard.read_text())))
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def results(root: Path) -> dict[str, Any]:
    """All that equal data, configuration and seed have to make equal, byte for byte."""
    paths = RunPaths(root)
    return {
        "leaderboard": table(root),
        "ensemble": paths.ensemble.read_bytes(),
        "submission": paths.submission.read_bytes(),
    }


def tree(root: Path) -> dict[str, tuple[str, int]]:
    """Digest and modification time of every file."""
    return {
        str(path.relative_to(root)): (hashlib.sha512(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def opened(root: Path) -> Counter[str]:
    """How many times each writer was opened."""
    return Counter(event["writer"] for event in events(root, "WRITER_OPEN", all_lines=True))


class Interrupted:
    """The inline executor; the process is asked to stop at the n-th time a trial looks whether it should."""

    def __init__(self, looks: int, number: int = signal.SIGTERM) -> None:
        self._looks: Iterator[int] = iter(range(looks, -1, -1))
        self._number = number

    def run(self, job: SearchJob) -> None:
        def look() -> bool:
            if next(self._looks, 0) == 0:
                os.kill(os.getpid(), self._number)
            return job.should_stop()

        InlineExecutor().run(replace(job, should_stop=look))

    def close(self) -> None:
        return None


__all__ = [
    "CANDIDATES", "ITERATIONS", "TINY", "WHOLE", "Ended", "Interrupted", "events", "iterations_done", "opened",
    "overlaid", "results", "run", "start", "table", "tiny_settings", "tree", "write_config",
]  # fmt: skip
