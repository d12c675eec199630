"""``nx46vx bench engine``: what one iteration of one candidate costs per sample, when the whole grid runs at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nx46vx.bench.frame import Figure, Outcome, in_turn, ratios
from nx46vx.bench.lanes import NEURONS, iterations_ns, learnable_data, neurons_of, plan_of
from nx46vx.bench.serial import serial_ns
from nx46vx.model.blocks import LaneRequest
from nx46vx.model.engine import FitEngine
from nx46vx.model.fitplan import FitPlan
from nx46vx.model.passes import Passes
from nx46vx.model.samples import FitData
from search.resources import usable_cpus


@dataclass(frozen=True)
class Sizes:
    """``iterations`` of the grid, of one lane and of the serial twin in each repetition."""

    samples: int = 400_000
    validation: int = 50_000
    iterations: int = 20
    one_lane_iterations: int = 40
    serial_iterations: int = 10
    repetitions: int = 9


QUICK = Sizes(iterations=5, one_lane_iterations=10, serial_iterations=3, repetitions=3)


def measure(sizes: Sizes) -> Outcome:
    """The grid, one lane of the same engine, and the serial twin, in turn, on the same samples.

    All in nanoseconds per sample, lane and iteration. The twin has the better of one and of all BLAS threads.
    """
    data = learnable_data(sizes.samples, sizes.validation)
    plan = plan_of(data, neurons_of(data, NEURONS), "bench")
    threads = usable_cpus()
    passes = Passes(data, seed=plan.seed, threads=threads)
    for spec in plan.neurons:
        passes.add(spec)
    engine = FitEngine(Passes(data, seed=plan.seed, threads=threads), plan.grid, block=plan.block)
    for spec in plan.neurons:
        engine.add_neuron(spec)
    sides: dict[str, Callable[[], float]] = {
        "grid": lambda: iterations_ns(passes, plan, plan.candidates, sizes.iterations),
        "block": _blocks(engine, plan, data),
        "one": lambda: iterations_ns(passes, plan, plan.candidates[:1], sizes.one_lane_iterations),
        "serial_1": lambda: serial_ns(data, plan, sizes.serial_iterations, 1),
        "serial_all": lambda: serial_ns(data, plan, sizes.serial_iterations, threads),
    }
    found = in_turn(sides, sizes.repetitions)
    kernel = engine.stats()["kernel"]
    passes.close()
    engine.close()
    serial = tuple(min(pair) for pair in zip(found["serial_1"], found["serial_all"], strict=True))
    facts = {"samples": sizes.samples, "lanes": len(plan.candidates), "threads": threads, "kernel": kernel}
    figures = [
        Figure("ns_per_sample_lane_iter", "engine, whole grid", found["grid"], "ns", at_most=1.0),
        Figure("ns_per_sample_lane_iter_with_kpis", "engine, whole grid, KPIs included", found["block"], "ns"),
        Figure("single_lane_ns_per_sample_iter", "engine, one lane", found["one"], "ns"),
        Figure("serial_twin_ns_per_sample_iter", "serial twin", serial, "ns"),
        Figure("ratio_vs_serial_twin", "serial twin against the grid", ratios(serial, found["grid"]), at_least=16.0),
        Figure("ratio_vs_single_lane", "one lane against the grid", ratios(found["one"], found["grid"])),
    ]
    return Outcome("engine", figures, facts)


def _blocks(engine: FitEngine, plan: FitPlan, data: FitData) -> Callable[[], float]:
    """Advances the whole grid by a block each time: ten iterations, and the figures that follow every tenth."""
    far = 1_000_000
    engine.expect(plan.start(candidate, far) for candidate in plan.candidates)
    first = plan.candidates[0]
    state = plan.start(first, far).state

    def side() -> float:
        nonlocal state
        before = engine.stats()
        state = engine.advance(LaneRequest(first, state, far))[-1].state
        after = engine.stats()
        seconds = after["busy_seconds"] - before["busy_seconds"]
        return 1e9 * seconds / (data.train_samples * (after["lane_iterations"] - before["lane_iterations"]))

    return side
