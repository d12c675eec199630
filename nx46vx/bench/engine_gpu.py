"""``nx46vx bench engine --device cuda``: the grid on a GPU, its memory, and how near it comes to the memory's speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import psutil

from nx46vx.bench.frame import Figure, Outcome, in_turn
from nx46vx.bench.lanes import NEURONS, VIEW, iterations_ns, learnable_data, neurons_of, plan_of
from nx46vx.bench.roofline import copy_speed, fit_seconds, moved_per_sample, needed_bytes, share_pct
from nx46vx.errors import EnvironmentFault
from nx46vx.model.calibration import RandomSamples
from nx46vx.model.fitplan import FitPlan
from nx46vx.model.neuron import bootstrap
from nx46vx.model.options import EngineOptions
from nx46vx.model.samples import CASE_BOOTSTRAP_MIN, FitData

if TYPE_CHECKING:
    from nx46vx.model.passes_gpu import GpuPasses

#: What a run on a GPU uses unless it is told otherwise.
OPTIONS = EngineOptions(mixed_precision=True)
#: Training samples of the competition's pairs, as the shipped configurations draw them.
FULL = 25_200_000


@dataclass(frozen=True)
class Sizes:
    """``samples`` in cases of ``per_case``. ``full``: samples with which ``full_iterations`` are measured if the memory
    holds them; 0: the whole fit is scaled up from the smaller size."""

    samples: int = 4_000_000
    per_case: int = 40_000
    iterations: int = 20
    one_lane_iterations: int = 20
    copied_bytes: int = 1 << 30
    repetitions: int = 9
    full: int = FULL
    full_iterations: int = 120


QUICK = Sizes(samples=400_000, iterations=5, one_lane_iterations=5, copied_bytes=1 << 28, repetitions=3, full=0)


@dataclass(frozen=True)
class Sampled:
    """What was measured: by side, in turn; bytes of features a pass reads; words of the engine; peak of the memory."""

    found: dict[str, tuple[float, ...]]
    gathered: int
    samples: int
    told: list[str]
    peak: int


def measure(sizes: Sizes, device: str, name: str) -> Outcome:
    """The engine's passes on one device (``cuda:0``; torch's ``cpu`` for tests), which ``name`` says in words."""
    base = learnable_data(sizes.per_case, sizes.per_case)
    plan = plan_of(base, neurons_of(base, NEURONS), "bench")
    one = _sampled(sizes, base, plan, device)
    seconds, how, peak = _whole_fit(sizes, base, plan, device, one)
    moved = one.gathered // (8 * VIEW) * moved_per_sample(VIEW)
    pairs = list(zip(one.found["pass"], one.found["copy"], strict=True))
    figures = [
        Figure("ns_per_sample_lane_iter", "engine, whole grid", one.found["grid"], "ns"),
        Figure("single_lane_ns_per_sample_iter", "engine, one lane", one.found["one"], "ns"),
        Figure("pass_ms", "a pass for nine tiles, on the device's clock", one.found["pass"], "ms"),
        Figure("full_size_s", f"120 iterations at full size, {how.partition(':')[0]}", seconds, "s"),
        Figure("copy_gb_per_s", "copying on the device, read and written", one.found["copy"], "GB/s"),
        Figure("features_of_copy_pct", "features read in a pass, of what copying reaches",
               tuple(share_pct(one.gathered, ms, speed) for ms, speed in pairs), "%"),
        Figure("moved_of_copy_pct", "all that a pass moves, of what copying reaches",
               tuple(share_pct(moved, ms, speed) for ms, speed in pairs), "%"),
    ]  # fmt: skip
    if peak:
        figures.append(Figure("gpu_peak_gib", "most memory taken", (peak / 2**30,), "GiB"))
    facts = {
        "device": name, "samples": one.samples, "lanes": len(plan.candidates), "full_size": how, "options": one.told,
        "feature_bytes_per_pass": one.gathered, "moved_bytes_per_pass": moved,
    }  # fmt: skip
    return Outcome("engine", figures, facts)


def _sampled(sizes: Sizes, base: FitData, plan: FitPlan, device: str) -> Sampled:
    """The grid, one lane of it, a pass alone, and copying, in turn."""
    passes = _passes(repeated(base, sizes.samples), plan, device)
    lanes, samples = len(plan.candidates), passes.data.train_samples

    def pass_ms() -> float:
        before = passes.gpu_seconds
        ns = iterations_ns(passes, plan, plan.candidates, sizes.iterations)
        worked = (passes.gpu_seconds - before) / sizes.iterations
        return 1e3 * (worked or fit_seconds(ns, samples, lanes, 1))  # torch's CPU has no clock of its own

    sides: dict[str, Callable[[], float]] = {
        "grid": lambda: iterations_ns(passes, plan, plan.candidates, sizes.iterations),
        "one": lambda: iterations_ns(passes, plan, plan.candidates[:1], sizes.one_lane_iterations),
        "pass": pass_ms,
        "copy": lambda: copy_speed(device, sizes.copied_bytes),
    }
    found = in_turn(sides, sizes.repetitions)
    told = [f"{event}: " + ", ".join(f"{k} {v}" for k, v in fields.items()) for event, fields in passes.notes.take()]
    done = Sampled(found, passes.gathered_bytes, samples, told, passes.gpu_peak_bytes)
    passes.close()
    return done


def _whole_fit(
    sizes: Sizes, base: FitData, plan: FitPlan, device: str, one: Sampled
) -> tuple[tuple[float, ...], str, int]:  # fmt: skip
    """Seconds of a fit's iterations at full size, how they were found, and the memory's peak.

    Measured where the memory holds the samples, else scaled up from what the smaller size took.
    """
    import torch

    lanes, why = len(plan.candidates), "not measured with --quick"
    if sizes.full:
        needed, free = needed_bytes(sizes.full, 2 * len(plan.pool), len(plan.neurons)), free_bytes(device)
        why = f"measuring takes about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
        if needed <= free:
            try:
                passes = _passes(repeated(base, sizes.full), plan, device)
                iterations_ns(passes, plan, plan.candidates, 1)  # options are tried before the first pass
                cost = iterations_ns(passes, plan, plan.candidates, sizes.full_iterations)
                samples, peak = passes.data.train_samples, passes.gpu_peak_bytes
                passes.close()
                how = f"measured: {samples} samples, {sizes.full_iterations} iterations"
                return (fit_seconds(cost, samples, lanes, plan.max_iter),), how, max(peak, one.peak)
            except (EnvironmentFault, torch.OutOfMemoryError) as error:
                why = (str(error).splitlines() or [type(error).__name__])[0]
    scaled = tuple(fit_seconds(ns, sizes.full or FULL, lanes, plan.max_iter) for ns in one.found["grid"])
    return scaled, f"scaled: from {one.samples} to {sizes.full or FULL} samples; {why}", one.peak


def repeated(base: FitData, samples: int) -> FitData:
    """As many cases like the base's as make so many samples, and no fewer than have cases drawn by bootstraps. The host
    holds one of them, a GPU a copy of each."""
    case = cast(RandomSamples, base.train[0])
    cases = max(samples // case.y.size, CASE_BOOTSTRAP_MIN)
    return FitData(base.pool, [replace(case, case_id=str(number)) for number in range(cases)], base.validation)


def free_bytes(device: str) -> int:
    """Memory of the device that is free."""
    if device.partition(":")[0] != "cuda":
        return int(psutil.virtual_memory().available)
    import torch

    torch.cuda.empty_cache()  # what torch keeps of earlier tensors is free for new ones
    return int(torch.cuda.mem_get_info(device)[0])


def _passes(data: FitData, plan: FitPlan, device: str) -> GpuPasses:
    """The plan's neurons, with bootstraps of these data, whose cases hold what the neurons were prepared on."""
    from nx46vx.model.passes_gpu import GpuPasses

    passes = GpuPasses(data, device=device, options=OPTIONS)
    for spec in plan.neurons:
        passes.add(spec, bootstrap(data, plan.seed, spec.meta_neuron))
    return passes
