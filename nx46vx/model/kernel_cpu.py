"""The kernel on this processor: compiled in memory when first wanted, checked once, called from threads.

LLVM comes with llvmlite; nothing is written to disk. A call holds no lock of the interpreter.
"""

from __future__ import annotations

import ctypes
import functools
import platform
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import binding  # type: ignore[import-untyped]

from nx46vx.features.jit import Code
from nx46vx.model.candidates import TILE
from nx46vx.model.kernel_build import build
from nx46vx.model.kernel_ir import Machine
from nx46vx.model.kernel_layout import BLOCK, JOB, PADDING_ERROR, SLOTS, scratch_floats
from nx46vx.model.kernel_plan import plain_plan
from nx46vx.model.metrics import THRESHOLDS
from nx46vx.model.samples import Chunk

_ADDRESS, _NUMBER = ctypes.c_void_p, ctypes.c_int64
_SIGNATURE = ctypes.CFUNCTYPE(None, _ADDRESS, _NUMBER, _ADDRESS, _NUMBER, _ADDRESS, _NUMBER, _ADDRESS, _ADDRESS)


@dataclass(frozen=True)
class Kernel:
    """Machine code for views of one width. ``train`` and ``validate`` take the arguments that kernel_build documents,
    as addresses and integers."""

    train: Any
    validate: Any
    machine: Machine
    features: int
    _code: Code  # it has to stay

    def scratch(self) -> np.ndarray:
        """Working memory of one thread, on a cache line's bound."""
        raw = np.zeros(scratch_floats(self.features, len(THRESHOLDS)) + SLOTS, np.float32)
        return raw[-raw.ctypes.data % 64 // 4 :]


@functools.cache
def host() -> Machine:
    """This processor, as LLVM finds it.

    Raises:
        RuntimeError: the kernel was never tried on such a system, or LLVM does not know its processor.
    """
    if platform.system() not in ("Linux", "Darwin"):
        raise RuntimeError(f"not tried on {platform.system()}")
    found = binding.get_host_cpu_features()
    if platform.machine().lower() in ("x86_64", "amd64"):
        wide, fused = found.get("avx512f", False), found.get("fma", False)
        width = 16 if wide else 8 if found.get("avx2", False) else 4
        registers, exponents = (32 if wide else 16), wide and found.get("avx512dq", False)
    else:
        width, registers, fused, exponents = 4, 32, True, False
    return Machine(binding.get_host_cpu_name(), found.flatten(), width, registers, fused, exponents)


@functools.cache
def compiled(features: int, machine: Machine | None = None) -> Kernel:
    """The kernel for views of ``features`` features.

    Raises:
        Exception: LLVM cannot compile it, of whatever class it chooses.
        RuntimeError: the code gives wrong figures.
    """
    machine = machine or host()
    code = Code(build(features, len(THRESHOLDS), machine), machine.cpu, machine.features)
    train, validate = (_SIGNATURE(code.address(name)) for name in ("train", "validate"))
    kernel = Kernel(train, validate, machine, features, code)
    _check(kernel, features)
    return kernel


def _check(kernel: Kernel, f: int) -> None:
    """Compare one small problem with float64 NumPy."""
    rng = np.random.default_rng(0)
    n = BLOCK + 37
    raw = rng.standard_normal((2 * f, n), dtype=np.float32)
    y = rng.integers(0, 2, n).astype(np.uint8)
    constants = np.tile(np.array([0.5, 2.0, 0.5, -1.0, 0.25, 4.0], np.float32), (f, 1))
    theta = (rng.standard_normal((3 * f + 1, TILE)) / np.sqrt(3 * f)).astype(np.float32)
    x = (raw[:f].astype(np.float64) - 0.5) * 2
    design = np.concatenate([x, 0.5 * x * x - 1, (raw[f:] - 0.25) * 4.0, np.ones((1, n))])
    z = theta.T.astype(np.float64) @ design * np.log(2)
    loss = (np.logaddexp(0, z) - y * z).sum(axis=1) / np.log(2)
    gradient = design @ (1 / (1 + np.exp(-z)) - y).T
    plan, rows, cuts = plain_plan([Chunk(0, 0, n)]), np.arange(2 * f), np.zeros(len(THRESHOLDS), np.float32)
    out, counts = np.zeros((3 * f + 2, TILE)), np.zeros((len(THRESHOLDS), 2, TILE), np.int32)
    scratch = kernel.scratch()
    job: dict[str, Any] = {
        "rows": rows, "constants": constants, "bounds": plan.bounds, "blocks": plan.blocks, "pieces": plan.pieces,
        "weights": theta, "lanes": TILE, "out": out, "out_step": 0, "counts": counts, "counts_step": 0,
    }  # fmt: skip
    words = (job[name] for name in JOB)
    jobs = np.array([word if isinstance(word, int) else word.ctypes.data for word in words], np.int64)
    arguments = (raw.ctypes.data, n, y.ctypes.data, 0, jobs.ctypes.data, 1, cuts.ctypes.data, scratch.ctypes.data)
    kernel.validate(*arguments)
    validated = out[0].copy()
    kernel.train(*arguments)
    truth, size = np.concatenate([loss[None], gradient]), np.abs(design).sum(axis=1).max()
    out[0] -= plan.padding[0]
    out[-1] -= PADDING_ERROR * plan.padding[0]
    off = max(np.abs(out - truth).max(), np.abs(validated - plan.padding[0] - loss).max())
    counted = np.abs(counts[0].sum(axis=0) - (z >= 0).sum(axis=1)).max()
    if not off < 1e-4 * size or counted > 2:
        raise RuntimeError(f"the compiled kernel is off by {off} of {size:.0f}, and {counted} counts")
