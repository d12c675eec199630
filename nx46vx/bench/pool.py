"""``nx46vx bench pool``: the feature pool chosen by measurement on generated scrolls that were held out.

Each family left out, candidate families added, volumes turned, costs; and one neuron, ensembles and boosted trees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nx46vx.bench.ensembles import Split, compared
from nx46vx.bench.families import CANDIDATES
from nx46vx.bench.frame import Figure, Outcome
from nx46vx.bench.judges import WIDE_ITERATIONS, need_sklearn
from nx46vx.bench.pool_cost import family_costs
from nx46vx.bench.pool_samples import ROTATIONS, scroll_samples
from nx46vx.bench.pool_table import JUDGES, WHOLE, Verdict, leave_one_out, mean_and_error, turned_features
from nx46vx.features.pool import POOL_VERSION

#: A feature that changes by more than this share of its spread when its volume is turned is named.
TURNS = 0.01


_COLUMNS = (
    "Seed", "Single, by validation", "Single, in hindsight", "Sum of 9", "Ensemble of 9", "Grown (neurons)", "Trees",
    "9 over single", "9 over hindsight", "Grown over trees",
)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """Scrolls that are held out in turn, their edge and samples; the volume that costs are measured on; the seeds of
    the comparison of ensembles and what each is made of."""

    scrolls: int = 8
    edge: int = 96
    fitted: int = 4000
    judged: int = 16_000
    cost_edge: int = 128
    cost_repetitions: int = 3
    seeds: int = 5
    split: Split = field(default_factory=Split)


QUICK = Sizes(
    scrolls=2, edge=48, fitted=600, judged=2000, cost_edge=48, cost_repetitions=1, seeds=1,
    split=Split(fitted=2, validated=1, held_out=1, samples=4000, edge=64),
)  # fmt: skip


def measure(sizes: Sizes) -> Outcome:
    """Everything of both tables; a figure's values are those of the held-out scrolls, or of the seeds.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    need_sklearn()
    scrolls = scroll_samples(range(1, sizes.scrolls + 1), sizes.edge, sizes.fitted, sizes.judged, CANDIDATES)
    verdicts = leave_one_out(scrolls, CANDIDATES)
    turned = {name: off for name, off in turned_features(scrolls, CANDIDATES).items() if off > TURNS}
    costs = family_costs(sizes.cost_edge, sizes.cost_repetitions, CANDIDATES)
    seeds = [compared(seed, sizes.split) for seed in range(sizes.seeds)]
    figures = [
        Figure(f"{_key(row)}_{judge}_ap", f"{row}: average precision, {judge}", tuple(verdict.upright.tolist()))
        for row, judged in verdicts.items()
        for judge, verdict in judged.items()
    ]
    figures += [
        Figure("pool_s", "the pool of 320^3 voxels, one processor", tuple(costs[WHOLE]), "s"),
        Figure("single_ap", "the best single neuron", tuple(one.single for one in seeds)),
        Figure("summed_ap", "the nine members' weighted sum", tuple(one.summed for one in seeds)),
        Figure("ensemble_ap", "the ensemble of nine", tuple(one.nine for one in seeds)),
        Figure("grown_ap", "the grown ensemble", tuple(one.grown for one in seeds)),
        Figure("trees_ap", "boosted trees", tuple(one.trees for one in seeds)),
        Figure("ensemble_gain", "ensemble over the single neuron, relative", tuple(one.gain for one in seeds)),
        Figure("grown_over_trees", "grown ensemble over boosted trees", tuple(one.ratio for one in seeds)),
    ]
    facts = {
        "pool_version": POOL_VERSION, "neuron_iterations": WIDE_ITERATIONS,
        "rotations": [rotation.name for rotation in ROTATIONS],
        "families": {row: _row(row, judged, verdicts[WHOLE], costs) for row, judged in verdicts.items()},
        "turned": turned, "seeds_compared": [one.to_json() for one in seeds],
    }  # fmt: skip
    return Outcome("pool", figures, {**asdict(sizes), **facts})


def table(outcome: Outcome) -> str:
    """Both tables as Markdown, and the features that do not turn with their volume."""
    told = outcome.sizes
    lines = [
        "| Features | AP, neuron | against whole | turned | AP, trees | against whole | turned | s per 320^3 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, found in told["families"].items():
        cells = [row]
        for judge in JUDGES:
            one = found[judge]
            against = "" if row == WHOLE else f"{one['gain']:+.4f} +- {one['gain_se']:.4f}"
            cells += [f"{one['ap']:.4f} +- {one['ap_se']:.4f}", against, f"{one['turned']:+.4f}"]
        lines.append("| " + " | ".join([*cells, f"{found['cost_s']:.2f}"]) + " |")
    named = ", ".join(f"{name} {off:.2f}" for name, off in sorted(told["turned"].items(), key=lambda one: -one[1]))
    lines += ["", f"Change when turned, over spread (above {TURNS}): {named or 'none'}.", ""]
    lines += ["| " + " | ".join(_COLUMNS) + " |", "|" + len(_COLUMNS) * "---|"]
    for one in told["seeds_compared"]:
        lines.append(
            f"| {one['seed']} | {one['single']:.4f} | {one['hindsight']:.4f} | {one['summed']:.4f} | {one['nine']:.4f} "
            f"| {one['grown']:.4f} ({one['neurons']}) | {one['trees']:.4f} | {100 * one['gain']:+.2f} % "
            f"| {100 * one['gain_over_hindsight']:+.2f} % | {one['ratio']:.4f} |"
        )
    lines.append(_mean_row(told["seeds_compared"]))
    return "\n".join(lines)


def _mean_row(seeds: Sequence[Mapping[str, Any]]) -> str:
    def mean(key: str, factor: float = 1.0, digits: int = 4) -> str:
        value, error = mean_and_error([factor * one[key] for one in seeds])
        return f"{value:.{digits}f} +- {error:.{digits}f}"

    cells = [mean(key) for key in ("single", "hindsight", "summed", "nine", "grown", "trees")]
    return (
        "| "
        + " | ".join(
            ["mean", *cells, *(f"{mean(gain, 100, 2)} %" for gain in ("gain", "gain_over_hindsight")), mean("ratio")]
        )
        + " |"
    )


def _row(
    row: str, judged: Mapping[str, Verdict], whole: Mapping[str, Verdict], costs: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for judge, verdict in judged.items():
        (ap, ap_se), (gain, gain_se) = mean_and_error(verdict.upright), mean_and_error(verdict.gain(whole[judge]))
        found[judge] = {
            "ap": ap, "ap_se": ap_se, "gain": gain, "gain_se": gain_se, "turned": verdict.largest_change,
            "turned_mean": float(verdict.changes.mean()),
        }  # fmt: skip
    family = row if row == WHOLE else row.partition(" ")[2]
    return {**found, "cost_s": sorted(costs[family])[len(costs[family]) // 2]}


def _key(row: str) -> str:
    return row.replace(" ", "_")
