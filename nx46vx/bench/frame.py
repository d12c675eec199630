"""What benchmarks have in common: sides measured in turn, figures with their spread, and what a benchmark found."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Units that the ending of a name tells.
_UNITS = {"per_s": "1/s", "_s": "s", "seconds": "s", "_gib": "GiB"}


@dataclass(frozen=True)
class Figure:
    """A number that was measured some times, and the bound it has to keep, if any.

    ``name`` is its key in JSON, ``says`` what it is in a few words; ``unit`` is empty for a ratio.
    """

    name: str
    says: str
    values: tuple[float, ...]
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median keeps the bound; None where there is none."""
        if self.at_least is not None:
            return self.median >= self.at_least
        return None if self.at_most is None else self.median <= self.at_most

    @property
    def bound(self) -> str:
        if self.at_least is not None:
            return f">= {number(self.at_least)}"
        return "" if self.at_most is None else f"<= {number(self.at_most)}"

    def to_json(self) -> dict[str, Any]:
        return {
            "median": self.median, "min": min(self.values), "max": max(self.values), "repetitions": len(self.values),
            "unit": self.unit, "at_least": self.at_least, "at_most": self.at_most, "met": self.met,
        }  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a benchmark found: its figures, and the sizes it was taken at."""

    bench: str
    figures: Sequence[Figure]
    sizes: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Sizes and medians by name; ``spread`` holds each figure's minimum, maximum and bound."""
        return {
            "bench": self.bench,
            **self.sizes,
            **{figure.name: figure.median for figure in self.figures},
            "spread": {figure.name: figure.to_json() for figure in self.figures},
        }


def outcome_of(bench: str, found: Mapping[str, Any], bounds: Mapping[str, tuple[str, float]]) -> Outcome:
    """What was measured under plain names. A list is a figure taken some times, and so is a single number with a
    fraction; counts and words are sizes. ``bounds``: name -> (``at_least`` or ``at_most``, value)."""
    figures, sizes = [], {}
    for name, value in found.items():
        if isinstance(value, list | float):
            values = tuple(value) if isinstance(value, list) else (value,)
            unit = next((unit for ending, unit in _UNITS.items() if name.endswith(ending)), "")
            bound = dict([bounds[name]]) if name in bounds else {}
            figures.append(Figure(name, name.removesuffix("_s").replace("_", " "), values, unit, **bound))
        else:
            sizes[name] = value
    return Outcome(bench, figures, sizes)


def in_turn(
    sides: Mapping[str, Callable[[], float]], repetitions: int, *, warm_up: bool = True
) -> dict[str, tuple[float, ...]]:
    """Measure every side once, then every side again, and so on, so that a busy spell hits them all.

    Each side measures itself and returns its value. The first round is thrown away (``warm_up``).
    """
    values: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(repetitions + warm_up):
        for name, side in sides.items():
            value = side()
            if repetition or not warm_up:
                values[name].append(value)
    return {name: tuple(found) for name, found in values.items()}


def ratios(over: Sequence[float], under: Sequence[float]) -> tuple[float, ...]:
    """Round by round: what was measured side by side is compared with each other."""
    return tuple(a / b for a, b in zip(over, under, strict=True))


def number(value: float) -> str:
    """A number for people: three significant digits, thousands set apart."""
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.3g}"


def table(outcome: Outcome) -> str:
    """The figures as a Markdown table."""
    rows = [("", "median", "min", "max", "unit", "target", "")]
    for figure in outcome.figures:
        verdict = {True: "met", False: "missed", None: ""}[figure.met]
        low, high = number(min(figure.values)), number(max(figure.values))
        rows.append((figure.says, number(figure.median), low, high, figure.unit, figure.bound, verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
