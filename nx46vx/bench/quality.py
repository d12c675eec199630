"""nx46vx bench quality: the competition's score of every way to a mask, on generated volumes that no way has seen.

A whole run is fitted on generated volumes. Every method is fitted on the same ones, chooses its free thresholds on
others by the competition's score, and makes the masks of further ones; all three are of different scrolls.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nx46vx.bench.boosted_trees import need_trees
from nx46vx.bench.children import in_child
from nx46vx.bench.fitted import HELD_OUT, PARTS, choosing, fitted_run, generated
from nx46vx.bench.frame import Figure, Outcome
from nx46vx.bench.intervals import KIND, Interval
from nx46vx.bench.product import fusion_of
from nx46vx.bench.quality_child import METHODS, OF_STUDENT, keep
from nx46vx.bench.quality_methods import Training

#: What the table calls them.
NAMES: Mapping[str, str] = {
    "reference_2d": "2D projections, one mask for all slices", "intensity_threshold": "intensity threshold",
    "ridge_nms": "ridges along the structure tensor's normal", "single_candidate": "single candidate",
    "ensemble": "ensemble", "boosted_trees": "boosted trees", "u_net": "U-Net", "fusion": "ensemble and U-Net fused",
}  # fmt: skip
_COMPARED_WITH = "ensemble"


def _student(steps: int, epochs: int) -> dict[str, Any]:
    """The smoke configuration's network, trained for so many steps an epoch and epochs."""
    return {
        "base_channels": 8, "levels": 3, "block_convolutions": 1, "patch": [32, 32, 32], "batch_size": 2,
        "steps_per_epoch": steps, "epochs": epochs, "learning_rate": 0.01, "dropout": 0.0, "deep_supervision": False,
        "intensity_noise": 0.05, "symmetries": "all", "validation_cases": 2, "overlap": 0.25, "tta": False,
    }  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """Edge of the volumes, how many there are of each kind, samples of each for the fit, settings of the student (None:
    no student, and neither method that needs one), and the methods, the ensemble among them."""

    edge: int = 96
    fitted: int = 12
    chosen_on: int = 3
    held_out: int = 16
    samples: int = 20_000
    student: Mapping[str, Any] | None = field(default_factory=lambda: _student(60, 20))
    methods: tuple[str, ...] = tuple(METHODS)


QUICK = Sizes(edge=56, fitted=6, chosen_on=1, held_out=2, samples=4000, student=None)


def measure(sizes: Sizes) -> Outcome:
    """Scores, times and memory of every method; a figure's values are those of the held-out volumes.

    Raises:
        UsageError: scikit-learn, whose trees are one of the methods, is not installed.
    """
    if "boosted_trees" in sizes.methods:
        need_trees()
    present = [name for name in METHODS if name in sizes.methods and (sizes.student or name not in OF_STUDENT)]
    with tempfile.TemporaryDirectory(prefix="nx46vx-bench-") as folder:
        fitted_run(
            Path(folder), edge=sizes.edge, cases=sizes.fitted, samples=sizes.samples, student=sizes.student
        )  # fmt: skip
        keep(Path(folder), "choosing", choosing(sizes.edge, sizes.chosen_on))
        keep(Path(folder), "held_out", generated(sizes.edge, sizes.held_out, HELD_OUT))
        found = {name: in_child("nx46vx.bench.quality_child", "assess", method=name, folder=folder) for name in present}
        fusion = fusion_of(Training(Path(folder)))["fusion"] if sizes.student else None
    told = {
        "data": "synthetic", "interval": KIND, **asdict(sizes),
        "left_out": [name for name in METHODS if name not in present],
        "fusion_kept": fusion and {key: fusion[key] for key in ("kept", "reason")},
        "methods": {name: _row(one, found[_COMPARED_WITH]) for name, one in found.items()},
    }  # fmt: skip
    return Outcome("quality", [figure for name, one in found.items() for figure in _figures(name, one)], told)


def table(outcome: Outcome) -> str:
    """Means with intervals as Markdown, and above them what the data are."""
    sizes = outcome.sizes
    lines = [
        f"Synthetic data: {sizes['held_out']} generated volumes of {sizes['edge']}^3 voxels, each of a scroll that "
        f"neither the fit ({sizes['fitted']} volumes) nor the choice of thresholds ({sizes['chosen_on']}) saw.",
        f"Mean [interval: {sizes['interval']}].", "",
        "| Method | Score | Topo | SurfaceDice | VOI | Score less the ensemble's "
        "| Lowest score | s a volume | processor s | GiB | Fit, s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, says in NAMES.items():
        row = sizes["methods"].get(name)
        if row is None:
            lines.append(f"| {says} | left out |" + "  |" * 9)
            continue
        less = "" if name == _COMPARED_WITH else Interval(**row["difference_to_ensemble"]).text("+")
        cells = [says, *(Interval(**row[part]).text() for part in PARTS), less]
        cells += [
            f"{min(row['volumes']['score']):.3f}",
            f"{row['seconds']['mean']:.3f}",
            f"{row['processor_s']['mean']:.3f}",
        ]
        cells += [f"{row['peak_memory_gib']:.2f}", f"{row['fit_s']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _row(one: Mapping[str, Any], compared: Mapping[str, Any]) -> dict[str, Any]:
    """A method's means with their intervals, and what else there is to tell of it."""
    return {
        **{part: Interval.of(one[part]).to_json() for part in (*PARTS, "seconds", "processor_s")},
        "difference_to_ensemble": Interval.of_difference(one["score"], compared["score"]).to_json(),
        "peak_memory_gib": one["masking_bytes"] / 2**30,
        "peak_memory_of": one["masking_bytes_of"],
        "volumes": {part: one[part] for part in PARTS},
        **{key: one[key] for key in ("fit_s", "chosen", "tried", "choosing_score")},
    }


def _figures(name: str, one: Mapping[str, Any]) -> list[Figure]:
    says = NAMES[name]
    figures = [Figure(f"{name}_{part}", f"{says}: {part.replace('_', ' ')}", tuple(one[part])) for part in PARTS]
    return [
        *figures,
        Figure(f"{name}_s", f"{says}: seconds of a volume", tuple(one["seconds"]), "s"),
        Figure(f"{name}_gib", f"{says}: memory while it makes masks", (one["masking_bytes"] / 2**30,), "GiB"),
        Figure(f"{name}_fit_s", f"{says}: seconds of its fit", (one["fit_s"],), "s"),
    ]
