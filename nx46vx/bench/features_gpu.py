"""nx46vx bench features --device cuda: a volume's samples on the GPU, and whether they are the processor's."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from nx46vx.data.synthetic import make_case
from nx46vx.errors import EnvironmentFault
from nx46vx.features.blocks import sample_features
from nx46vx.features.gpu_check import open_gpu
from nx46vx.features.gpu_sampling import GpuSampling
from nx46vx.features.pool import feature_names
from nx46vx.features.reference import measure_reference
from nx46vx.features.sampling import case_seed, sample_balanced
from nx46vx.features.spread import usable_cpus
from nx46vx.runtime.device import Gpu

#: Samples of a case and edge of the processor's blocks, as the shipped configurations have them.
SAMPLES, BLOCK = 40_000, 160
GIB = 1 << 30
#: What is wanted of a data-centre GPU for 320^3 voxels.
BOUNDS = {"case_s": ("at_most", 1.0)}


@dataclass(frozen=True)
class Sizes:
    volume: int = 320
    repetitions: int = 5


QUICK = Sizes(volume=128, repetitions=3)


def measure(sizes: Sizes, device: Gpu) -> dict[str, Any]:
    """Seconds of a case's features by the wall and by the GPU's clock, of the processor's part beside them and of the
    processor alone, most memory that CuPy held, and whether both ways give the same bits.

    Raises:
        EnvironmentFault: the GPU does not compute features.
    """
    gpu, reason = open_gpu(device.index)
    if gpu is None:
        raise EnvironmentFault(
            "this GPU does not compute features", where=f"--device, {device.name}", found=reason,
            fix="leave --device out, or mend what is named",
        )  # fmt: skip
    volume, label = make_case((sizes.volume,) * 3, scroll=1, seed=1)
    index = sample_balanced(label, SAMPLES, case_seed(0, "bench", "balanced"))
    failed: list[str] = []
    sampling, names, threads = GpuSampling(gpu, failed.append), feature_names(), usable_cpus()
    figures: dict[str, list[float]] = {name: [] for name in ("case_s", "case_gpu_s", "reference_s", "processor_s")}
    same = True
    for _ in range(sizes.repetitions + 1):  # the first time makes kernels
        started = time.perf_counter()
        reference = measure_reference(volume, threads=threads)
        figures["reference_s"].append(time.perf_counter() - started)
        started, worked = time.perf_counter(), gpu.seconds
        found = sampling(volume, reference, names, index, block=BLOCK, threads=threads)
        figures["case_s"].append(time.perf_counter() - started)
        figures["case_gpu_s"].append(gpu.seconds - worked)
        started = time.perf_counter()
        expected = sample_features(volume, reference, names, index, block=BLOCK, threads=threads)
        figures["processor_s"].append(time.perf_counter() - started)
        same = same and np.array_equal(found, expected)
    if failed:
        raise EnvironmentFault(
            "the GPU failed", where=f"--device, {device.name}", found=failed[0], fix="mend what is named"
        )
    return {
        "gpu": device.name, "cupy": gpu.version, "volume_edge": sizes.volume, "samples": len(index),
        "same_bits": same, "times_out_of_memory": sampling.shrunk, "held_gib": gpu.held_bytes() / GIB,
        **{name: values[1:] for name, values in figures.items()},
    }  # fmt: skip
