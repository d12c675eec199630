"""A mean and how sure it is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from scipy.stats import t

#: What an interval is, in words.
KIND = "95 %, Student's t over the held-out volumes"
_TAIL = 0.975


@dataclass(frozen=True)
class Interval:
    """The mean of some values and the bounds of its 95 % interval by Student's t distribution."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """From independent values, two or more."""
        mean = statistics.fmean(values)
        reach = float(t.ppf(_TAIL, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
        return cls(mean, mean - reach, mean + reach)

    @classmethod
    def of_difference(cls, values: Sequence[float], others: Sequence[float]) -> Interval:
        """Of the mean difference of paired values: each with the other's of the same volume."""
        return cls.of([one - other for one, other in zip(values, others, strict=True)])

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    def text(self, sign: str = "") -> str:
        """``mean [low, high]`` with three digits; ``sign`` is ``+`` where it is always wanted."""
        mean, low, high = (f"{value:{sign}.3f}" for value in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}]"
