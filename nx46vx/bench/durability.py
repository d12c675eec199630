"""``nx46vx bench durability``: what it costs that nothing is lost."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from nx46vx.bench.checkpoint_speed import checkpoint_speed
from nx46vx.bench.frame import Outcome
from nx46vx.bench.log_speed import verified_speed, written_speed
from nx46vx.bench.overheads import overheads


@dataclass(frozen=True)
class Sizes:
    """How much is written, verified, committed and run in each repetition.

    A full-size run logs 20,000 events; 100,000 in one log fill seven segments.
    """

    repetitions: int = 7
    events: int = 100_000
    naive_events: int = 10_000
    verified_events: int = 200_000
    verified_writers: int = 8
    commits: int = 200
    candidates: int = 27
    calibration_samples: int = 262_144
    features_edge: int = 320


QUICK = Sizes(
    repetitions=3, events=100_000, naive_events=3_000, verified_events=80_000, verified_writers=4, commits=60,
    candidates=9, calibration_samples=65_536,
)  # fmt: skip


def measure(sizes: Sizes, folder: Path | None = None) -> Outcome:
    """Measure in a new folder below ``folder`` (the system's temporary one unless given), removed at the end."""
    with tempfile.TemporaryDirectory(prefix="nx46vx-bench-", dir=folder) as place:
        root = Path(place)
        figures = [
            *written_speed(root, sizes.events, sizes.naive_events, sizes.repetitions),
            *verified_speed(root, sizes.verified_events, sizes.verified_writers, sizes.repetitions),
            *checkpoint_speed(root, sizes.commits, sizes.repetitions),
            *overheads(
                root,
                sizes.candidates,
                sizes.repetitions,
                calibration=sizes.calibration_samples,
                edge=sizes.features_edge,
            ),
        ]
    return Outcome("durability", figures, asdict(sizes))
