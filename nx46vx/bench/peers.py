"""``nx46vx bench peers``: a candidate's 120 iterations against the time other solvers take to come as far."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nx46vx.bench.designs import Design
from nx46vx.bench.engine import NEURONS
from nx46vx.bench.fits import fitted
from nx46vx.bench.frame import Figure, Outcome, in_turn, ratios
from nx46vx.bench.lanes import plan_of, spread_out
from nx46vx.bench.scroll_data import drawn_neurons, scroll_data
from nx46vx.bench.solvers import TOLERANCE, need_peers, prox_newton, saga, seconds_to_reach
from search.resources import usable_cpus


@dataclass(frozen=True)
class Sizes:
    """``candidates``: how many of the grid the peers are timed on, drawn from all over it."""

    samples: int = 400_000
    validation: int = 50_000
    candidates: int = 5
    repetitions: int = 3


QUICK = Sizes(candidates=1, repetitions=1)


def measure(sizes: Sizes) -> Outcome:
    """Our whole grid and each peer on some candidates, in turn.

    A peer's time is that of the shortest fit which reaches our objective + 0.1 %; searching for it is not counted. Ours
    is that of the iterations; what the figures at every tenth one take besides, which peers have none of, is told too.
    """
    need_peers()
    data = scroll_data(sizes.samples, sizes.validation)
    plan = plan_of(data, drawn_neurons(data, NEURONS), "bench")
    threads = usable_cpus()
    *_, thetas = fitted(data, plan, threads)
    chosen = spread_out(plan.candidates, sizes.candidates)
    designs = {k: Design.of(plan.spec(k), data, plan.seed) for k in sorted({one.meta_neuron for one in chosen})}
    goals = {
        one: (1 + TOLERANCE) * designs[one.meta_neuron].objective(thetas[one], one.l1, one.l2) for one in chosen
    }  # fmt: skip
    tiny = Design(np.random.default_rng(0).standard_normal((50, 18), np.float32), np.arange(50) % 2)
    prox_newton(tiny, 1e-2, 1e-2, 1)  # compiles once

    whole = []

    def ours() -> float:
        iterations, figures, _ = fitted(data, plan, threads)
        whole.append((iterations + figures) / len(plan.candidates))
        return iterations / len(plan.candidates)

    def peer(solver: str) -> float:
        fit = {"saga": saga, "prox_newton": prox_newton}[solver]
        return float(
            np.mean([seconds_to_reach(fit, designs[c.meta_neuron], c.l1, c.l2, goal)[0] for c, goal in goals.items()])
        )

    found = in_turn(
        {
            "ours": ours,
            "saga": lambda: peer("saga"),
            "prox_newton": lambda: peer("prox_newton"),
        },
        sizes.repetitions, warm_up=False,
    )  # fmt: skip
    figures = [
        Figure("seconds_per_candidate", "a candidate's 120 iterations in the grid", found["ours"], "s"),
        Figure("seconds_per_candidate_with_figures", "with its figures at every tenth iteration", tuple(whole), "s"),
        Figure("saga_seconds", "scikit-learn SAGA, to our objective + 0.1 %", found["saga"], "s"),
        Figure("prox_newton_seconds", "skglm ProxNewton, to our objective + 0.1 %", found["prox_newton"], "s"),
        Figure("ratio_vs_saga", "SAGA against ours", ratios(found["saga"], found["ours"]), at_least=50.0),
        Figure(
            "ratio_vs_prox_newton", "ProxNewton against ours", ratios(found["prox_newton"], found["ours"]),
            at_least=35.0,
        ),
    ]  # fmt: skip
    sizes_told = {"samples": sizes.samples, "lanes": len(plan.candidates), "peer_candidates": len(chosen)}
    return Outcome("peers", figures, {**sizes_told, "iterations": plan.max_iter, "threads": threads})
