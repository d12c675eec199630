"""``nx46vx bench scaling``: how time grows with samples, lanes and iterations; a pass over samples on disk.

Growth is told as an exponent: the slope of log(time) over log(size), 1 being proportional.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nx46vx.bench.cold import cold_figures
from nx46vx.bench.frame import Figure, Outcome, in_turn
from nx46vx.bench.lanes import NEURONS, iterations_ns, learnable_data, neurons_of, plan_of
from nx46vx.model.fitplan import FitPlan
from nx46vx.model.neuron import bootstrap
from nx46vx.model.passes import Passes
from nx46vx.model.samples import FitData
from nx46vx.runtime.digest import digest_array
from search.resources import usable_cpus

#: Cases of every size that is compared, so that bootstraps draw the same ones.
CASES = 25


@dataclass(frozen=True)
class Sizes:
    """``cold_samples``: of the cache on disk, of which a process may keep ``cold_resident_bytes`` mapped."""

    samples: tuple[int, ...] = (100_000, 1_000_000, 25_000_000)
    neurons: tuple[int, ...] = (1, 3, 9, 20)
    iterations: tuple[int, ...] = (120, 240, 480)
    cold_samples: int = 8_000_000
    cold_resident_bytes: int = 128 << 20
    repetitions: int = 3


QUICK = Sizes(samples=(100_000, 1_000_000, 5_000_000), cold_samples=2_000_000, cold_resident_bytes=64 << 20)


def measure(sizes: Sizes, folder: Path | None = None) -> Outcome:
    """Seconds of a pass of the whole grid by samples, of a pass by lanes, of a lone tile by iterations; and a pass over
    a cache of which nothing is in memory, against reading its files from the same disk, with the memory it takes."""
    figures = [
        *_growth("samples", "samples", sizes.samples, sizes.repetitions, _pass_seconds),
        *_growth("lanes", "lanes", sizes.neurons, sizes.repetitions, lambda n: _pass_seconds(400_000, n, 10), per=15),
        *_growth("iterations", "iterations", sizes.iterations, sizes.repetitions, _iterations_seconds),
        *cold_figures(sizes.cold_samples, sizes.cold_resident_bytes, sizes.repetitions, folder),
    ]
    told = {"samples": list(sizes.samples), "lanes": [15 * n for n in sizes.neurons], "cases": CASES,
            "threads": usable_cpus(), "iterations": list(sizes.iterations), "cold_samples": sizes.cold_samples,
            "cold_resident_bytes": sizes.cold_resident_bytes}  # fmt: skip
    return Outcome("scaling", figures, told)


def exponent(sizes: tuple[int, ...], seconds: list[float]) -> float:
    """Slope of a straight line through log(seconds) over log(sizes)."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def _growth(
    name: str, says: str, sizes: tuple[int, ...], repetitions: int, seconds: Callable[[int], Callable[[], float]],
    per: int = 1,
) -> list[Figure]:  # fmt: skip
    """One side for each size, in turn; the exponent of each round."""
    found = in_turn({str(size): seconds(size) for size in sizes}, repetitions)
    rounds = [exponent(sizes, list(one)) for one in zip(*found.values(), strict=True)]
    first, last = sizes[0] * per, sizes[-1] * per
    return [
        Figure(f"{name}_exponent", f"growth of time with {says}, {first:,} to {last:,}", tuple(rounds), at_most=1.05),
        Figure(f"{name}_largest_s", f"time at {last:,} {says}", found[str(sizes[-1])], "s"),
    ]


def _pass_seconds(samples: int, neurons: int = NEURONS, passes_each: int = 2) -> Callable[[], float]:
    """Seconds of one iteration of all lanes, from ``passes_each`` of them; a case's samples may stand in memory once,
    and be met several times."""
    size = samples // CASES
    one, other = (learnable_data(size, 1024, seed=seed) for seed in (0, 1))
    cases = [(one, other)[number % 2].train[0] for number in range(CASES)]
    data = FitData(one.pool, cases, one.validation)
    passes, plan = _known(data, one, neurons)
    lanes = len(plan.candidates)
    return lambda: 1e-9 * iterations_ns(passes, plan, plan.candidates, passes_each) * data.train_samples * lanes


def _iterations_seconds(iterations: int) -> Callable[[], float]:
    """Seconds of so many iterations of one meta-neuron's lanes."""
    one = learnable_data(400_000, 1024)
    passes, plan = _known(one, one, 1)
    cells = one.train_samples * len(plan.candidates) * iterations
    return lambda: 1e-9 * iterations_ns(passes, plan, plan.candidates, iterations) * cells


def _known(data: FitData, sample: FitData, neurons: int) -> tuple[Passes, FitPlan]:
    """Passes over ``data`` that know meta-neurons measured on ``sample`` (what they are worth does not matter here)."""
    specs = [
        replace(spec, weights_digest=digest_array(bootstrap(data, 0, spec.meta_neuron)))
        for spec in neurons_of(sample, neurons)
    ]
    passes = Passes(data, seed=0, threads=usable_cpus())
    for spec in specs:
        passes.add(spec)
    return passes, plan_of(data, specs, "bench")
