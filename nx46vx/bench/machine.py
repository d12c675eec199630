"""The machine that a benchmark ran on: what its figures cannot be read without."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from nx46vx import __version__
from nx46vx.errors import UsageError
from nx46vx.runtime.device import Gpu, choose_device
from nx46vx.runtime.numeric import PINNED
from search.resources import usable_cpus

#: What computes in benchmarks, the peers included.
LIBRARIES = ("numpy", "scipy", "llvmlite", "torch", "ray", "scikit-learn", "skglm")


def find_gpu(asked: str) -> Gpu | None:
    """The GPU that a run would take first; None where there is none and ``asked`` is ``auto``, not ``cuda``.

    Raises:
        UsageError: it is ``cuda``, and no GPU runs a kernel here.
    """
    found = choose_device("auto")
    if found.gpus:
        return found.gpus[0]
    if asked == "cuda":
        raise UsageError(
            "there is no GPU to measure", where="--device cuda", found=found.reason,
            fix="leave --device out, or say --device auto, to measure the CPU; or mend the driver",
        )  # fmt: skip
    return None


def machine_facts(folder: Path | None = None) -> dict[str, Any]:
    """Processor, cores, memory (GiB), versions, thread settings and load average (1, 5, 15 minutes).

    ``folder``: where files are written; its file system's type is told too.
    """
    facts: dict[str, Any] = {
        "cpu": cpu_model(),
        "cores": usable_cpus(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "nx46vx": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in LIBRARIES},
        "thread_settings": {name: os.environ.get(name) for name in PINNED},
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }
    if folder is not None:
        facts["file_system"] = _file_system(folder)
    return facts


def cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _file_system(folder: Path) -> str:
    """Type of the file system that holds a folder: that of the longest mount point above it."""
    real = folder.resolve()
    mounts = [part for part in psutil.disk_partitions(all=True) if real.is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"
