"""Machine code for this processor, made in memory by LLVM. Nothing is written to disk.

Every kernel has one signature: a table of addresses, a table of whole numbers, a table of float64 numbers. A call
holds no lock of the interpreter.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import platform
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import binding  # type: ignore[import-untyped]

_COMPILING = threading.Lock()  # LLVM keeps what it parses in one place
_SIGNATURE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)


@dataclass(frozen=True)
class Machine:
    """A processor: how many float32 numbers a vector register holds, and what LLVM has to know of it."""

    cpu: str
    features: str
    width: int


@functools.cache
def host() -> Machine:
    """This processor, as LLVM finds it.

    Raises:
        RuntimeError: the kernels were never tried on such a system, or LLVM does not know its processor.
    """
    if platform.system() not in ("Linux", "Darwin"):
        raise RuntimeError(f"not tried on {platform.system()}")
    found = binding.get_host_cpu_features()
    width = 16 if found.get("avx512f", False) else 8 if found.get("avx2", False) else 4
    return Machine(binding.get_host_cpu_name(), found.flatten(), width)


class Code:
    """Compiled LLVM assembly; it lives as long as this."""

    def __init__(self, text: str, cpu: str, features: str) -> None:
        """Compile for a processor. Raises whatever LLVM raises."""
        with _COMPILING:
            with contextlib.suppress(RuntimeError):  # llvmlite 0.45 and later initialise by themselves, and say so
                binding.initialize()
            binding.initialize_native_target()
            binding.initialize_native_asmprinter()
            module = binding.parse_assembly(text)
            module.verify()
            self._target = binding.Target.from_default_triple().create_target_machine(
                cpu=cpu, features=features, opt=3, jit=True
            )
            self._engine = binding.create_mcjit_compiler(module, self._target)
            self._engine.finalize_object()

    def address(self, name: str) -> int:
        """Where a function begins."""
        return int(self._engine.get_function_address(name))


class Kernel:
    """A compiled function; the code lives as long as this."""

    def __init__(self, text: str, name: str, machine: Machine) -> None:
        """Compile LLVM assembly. Raises whatever LLVM raises."""
        self._code = Code(text, machine.cpu, machine.features)
        self._run: Any = _SIGNATURE(self._code.address(name))

    def __call__(self, addresses: Sequence[int], numbers: Sequence[int], scalars: Sequence[float] = ()) -> None:
        """Run it on arrays at some addresses; the caller keeps them alive and large enough."""
        self._run(
            (ctypes.c_int64 * len(addresses))(*addresses), (ctypes.c_int64 * len(numbers))(*numbers),
            (ctypes.c_double * len(scalars))(*scalars),
        )  # fmt: skip
