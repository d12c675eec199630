"""A test volume's probabilities from an ensemble as a run has it, in a process of its own: seconds, memory, voxels.

On a smaller volume, side by side with SciPy and NumPy in one process, at equal values.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from nx46vx.bench.children import in_child
from nx46vx.bench.frame import in_turn, ratios
from nx46vx.bench.scipy_inference import comparable_voxels, scipy_probabilities
from nx46vx.data.synthetic import make_case
from nx46vx.features.pool import feature_names
from nx46vx.features.reference import measure_reference
from nx46vx.features.spread import usable_cpus
from nx46vx.inference.predict import probability_volume
from nx46vx.model.ensemble import Ensemble, Member
from nx46vx.model.joint import Joint
from nx46vx.model.neuron import NeuronSpec

MEMBERS, VIEW, BLOCK = 9, 6, 160
_EDGE, _QUICK_EDGE = 320, 128
#: Edges of the volumes that SciPy computes too.
_COMPARED_EDGE, _QUICK_COMPARED_EDGE = 96, 64


#: What is promised on two cores, for 320^3 voxels; and how near to SciPy's in float64 a probability has to be.
BOUNDS = {"seconds": ("at_most", 30.0), "peak_gib": ("at_most", 2.5), "deviation": ("at_most", 1e-5)}


def measure(quick: bool) -> dict[str, Any]:
    """Seconds and processor seconds (lists, one for each repetition), peak resident bytes, voxels per second; and what
    ``compared`` gives.

    On a busy machine the processor seconds, of all threads, say more than the wall's.
    """
    edge = _QUICK_EDGE if quick else _EDGE
    found = in_child(__name__, "run", edge=edge, repetitions=3)
    return {
        "edge": edge,
        "members": MEMBERS,
        "features": found["features"],
        "processors": usable_cpus(),
        "first_s": found["first_s"],
        "seconds": found["seconds"],
        "processor_s": found["processor_s"],
        "voxels_per_s": [edge**3 / seconds for seconds in found["seconds"]],
        "peak_gib": found["peak_bytes"] / (1 << 30),
        **compared(_QUICK_COMPARED_EDGE if quick else _COMPARED_EDGE, repetitions=3),
    }


def compared(edge: int, repetitions: int) -> dict[str, Any]:
    """The same probabilities from SciPy and NumPy in float32, in turn with ours on one and on all processors.

    Seconds, SciPy's over ours round by round, and the largest deviation of ours from SciPy's in float64, where the
    sheet normal is well defined (``comparable_share`` of the voxels).
    """
    volume, _ = make_case((edge, edge, edge), scroll=1, seed=1)
    ensemble, found = random_ensemble(), np.empty(volume.shape, np.float32)

    def ours(threads: int) -> float:
        started = time.perf_counter()
        found[:] = probability_volume(volume, ensemble, block=BLOCK, threads=threads)
        return time.perf_counter() - started

    def theirs() -> float:
        started = time.perf_counter()
        scipy_probabilities(volume, ensemble)
        return time.perf_counter() - started

    ours(usable_cpus())  # compiles once
    told = in_turn(
        {"one": lambda: ours(1), "all": lambda: ours(usable_cpus()), "scipy": theirs}, repetitions, warm_up=False
    )  # fmt: skip
    comparable = comparable_voxels(volume, measure_reference(volume))
    off = np.abs(found - scipy_probabilities(volume, ensemble, np.float64))
    return {
        "compared_edge": edge,
        "compared_s": list(told["all"]),
        "compared_one_core_s": list(told["one"]),
        "scipy_s": list(told["scipy"]),
        "ratio_vs_scipy": list(ratios(told["scipy"], told["all"])),
        "ratio_vs_scipy_one_core": list(ratios(told["scipy"], told["one"])),
        "deviation": float(off[comparable].max()),
        "comparable_share": float(comparable.mean()),
    }


def run(edge: int, repetitions: int) -> dict[str, Any]:
    """Probabilities of a synthetic volume; ``first_s`` has the compilation in it."""
    volume, _ = make_case((edge, edge, edge), scroll=1, seed=1)
    ensemble = random_ensemble()
    seconds, busy = [], []
    for _ in range(repetitions + 1):
        started, worked = time.perf_counter(), time.process_time()
        probability_volume(volume, ensemble, block=BLOCK)
        seconds.append(time.perf_counter() - started)
        busy.append(time.process_time() - worked)
    return {
        "first_s": seconds[0], "seconds": seconds[1:], "processor_s": busy[1:], "features": len(ensemble.features),
    }  # fmt: skip


def random_ensemble(seed: int = 0) -> Ensemble:
    """Nine neurons, each with a view of its own, and a joint fit of the whole pool, as a run has them: all have a say,
    whatever their figures are."""
    rng = np.random.default_rng(seed)
    members = []
    for number in range(MEMBERS):
        view = tuple(sorted(rng.choice(feature_names(), VIEW, replace=False).tolist()))
        spec, theta = _random_neuron(rng, number, view, 1.5)
        members.append(Member(f"neuron{number}", spec, theta, 1.0 / MEMBERS))
    spec, theta = _random_neuron(rng, MEMBERS, tuple(feature_names()), 1.0)
    return Ensemble(tuple(members), 0.1, Joint(spec, theta, 1e-4, members_share=0.6, share=0.5, intercept=-0.1))


def _random_neuron(
    rng: np.random.Generator, number: int, view: tuple[str, ...], deviation: float
) -> tuple[NeuronSpec, tuple[float, ...]]:
    width = 3 * len(view)
    spec = NeuronSpec(
        meta_neuron=number, view=view, shift=tuple(rng.normal(0.2, 0.2, width).tolist()),
        scale=tuple(rng.uniform(0.5, 1.5, width).tolist()), curvature=1.0, prior=0.5, natural_prior=0.08,
        log_variance=1.0, weights_digest="",
    )  # fmt: skip
    return spec, tuple(rng.normal(0.0, deviation, width + 1).tolist())
