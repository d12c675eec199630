"""Features on a GPU that gives the processor's bits; where there is none the log says why."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from nx46vx.errors import EnvironmentFault
from nx46vx.features.build import Sampling
from nx46vx.features.cache import Executor
from nx46vx.features.gpu import Gpu
from nx46vx.features.gpu_check import open_gpu
from nx46vx.features.gpu_sampling import GpuSampling
from nx46vx.features.spread import usable_cpus
from nx46vx.logs import say
from nx46vx.pipeline.session import Session
from nx46vx.runtime.device import DeviceChoice
from nx46vx.runtime.gpu_phases import PhaseUse

#: Cases in work while the GPU has one of them: labels are counted, references measured and entries written beside it.
CASES = 4


@dataclass(frozen=True)
class How:
    """``executor`` maps over cases, ``at_once`` of them; ``sampling`` computes a case's features."""

    executor: Executor
    at_once: int
    sampling: Sampling


@contextmanager
def features_on_gpu(session: Session, device: DeviceChoice, use: PhaseUse | None) -> Iterator[How | None]:
    """How cases are computed on a GPU: in this process, one case after the other on the first of ``device``'s GPUs,
    ``use`` being told how long it worked. None where none can, or none is to.

    Raises:
        EnvironmentFault: the configuration insists on a GPU, and none can.
    """
    use = use or PhaseUse("features", asked=False)
    gpu = _gpu(session, device, use)
    if gpu is None:
        yield None
        return
    sampling = GpuSampling(gpu, use.fall_back)
    try:
        at_once = min(CASES, usable_cpus() + 1)
        with ThreadPoolExecutor(at_once, thread_name_prefix="gpu-features") as threads:
            yield How(threads, at_once, sampling)
    finally:
        use.on_gpu(gpu.seconds)
        session.log.emit(
            "GPU_FEATURES", cases_on_gpu=sampling.on_gpu, cases_on_cpu=sampling.on_cpu, gpu_seconds=gpu.seconds,
            times_out_of_memory=sampling.shrunk, held_bytes=gpu.held_bytes(), reason=sampling.reason,
        )  # fmt: skip
        gpu.release()


def _gpu(session: Session, device: DeviceChoice, use: PhaseUse) -> Gpu | None:
    """The GPU, if one was asked for and passes its check."""
    asked = session.settings.features.device
    if asked == "cpu":
        use.nothing_to_do()
        return None
    gpu, reason = None, f"the run computes on the CPU: {device.reason}"
    if device.name == "cuda" and session.settings.resources.ray_address is not None:
        reason = "on a cluster features are computed by its processors"
    elif device.name == "cuda":
        started = time.monotonic()
        gpu, reason = open_gpu(device.gpus[0].index)
        session.log.emit(
            "GPU_FEATURES_CHECK", gpu=device.gpus[0].name, passed=gpu is not None, found=reason,
            cupy=gpu.version if gpu is not None else None, seconds=time.monotonic() - started,
        )  # fmt: skip
        say(f"features: {device.gpus[0].name}, {reason}")
    if gpu is None:
        if asked == "cuda":
            raise EnvironmentFault(
                "the configuration asks for features on a GPU", where="features.device", found=reason,
                fix="set features.device to cpu or auto, or mend what is named",
            )  # fmt: skip
        use.fall_back(reason)
    return gpu
