"""A test volume's probabilities from an ensemble as a run has it, in a process of its own: seconds, memory, voxels."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from nx46vx.bench.children import in_child
from nx46vx.data.synthetic import make_case
from nx46vx.features.pool import feature_names
from nx46vx.features.spread import usable_cpus
from nx46vx.inference.predict import probability_volume
from nx46vx.model.ensemble import Ensemble, Member
from nx46vx.model.joint import Joint
from nx46vx.model.neuron import NeuronSpec

MEMBERS, VIEW, BLOCK = 9, 6, 160
_EDGE, _QUICK_EDGE = 320, 128


#: What is promised on two cores, for 320^3 voxels.
BOUNDS = {"seconds": ("at_most", 30.0), "peak_gib": ("at_most", 2.5)}


def measure(quick: bool) -> dict[str, Any]:
    """Seconds and processor seconds (lists, one for each repetition), peak resident bytes, voxels per second.

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
