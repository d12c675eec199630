"""The numeric environment: what the last bits of a result depend on besides inputs and seeds."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

#: Goes up whenever this code's own sums give other bits than before: the fit's kernel, its order of samples, its steps.
ARITHMETIC = 2

#: Thread counts of the BLAS and OpenMP libraries; the engine brings its own threads.
PINNED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def pin_threads() -> None:
    """Give each numeric library one thread. Has to run before NumPy or torch is imported."""
    for name, value in PINNED.items():
        os.environ[name] = value


def numeric_environment(device: str) -> dict[str, Any]:
    """Versions, this code's own arithmetic, processor and device: equal environments give equal bits."""
    return {
        "arithmetic": ARITHMETIC,
        "python": platform.python_version(),
        "numpy": _version("numpy"),
        "scipy": _version("scipy"),
        "torch": _version("torch"),
        "llvmlite": _version("llvmlite"),
        "machine": platform.machine(),
        "cpu_flags": _cpu_flags(),
        "device": device,
        **PINNED,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def _cpu_flags() -> list[str]:
    """The vector instruction sets, by which libraries pick their kernels."""
    wanted = {"avx", "avx2", "fma", "avx512f", "avx512vl", "avx512_bf16", "asimd", "sve"}
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith(("flags", "Features")):
                    return sorted(wanted & set(line.split(":", 1)[1].split()))
    except OSError:
        pass
    return []
