"""Stands in for CuPy and a GPU: NumPy's arithmetic, and arrays that never become NumPy's by themselves."""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


class Device(np.lib.mixins.NDArrayOperatorsMixin):
    """Stands in for CuPy's array: NumPy's functions reach it through its protocols, and it never becomes NumPy's."""

    __module__ = "cupy"

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("implicit conversion to a NumPy array")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **keywords: Any) -> Any:
        if out is not None:
            keywords["out"] = tuple(map(host, out))
        assert not any(isinstance(part, np.ndarray) for part in inputs), "a host array on the device"
        kinds = {part.dtype for part in inputs if isinstance(part, Device | np.generic)}
        assert len(kinds) == 1, "CuPy's versions differ in what they make of mixed kinds"
        return device(getattr(ufunc, method)(*map(host, inputs), **keywords))

    def __array_function__(self, function: Any, types: Any, arguments: Any, keywords: Any) -> Any:
        return device(function(*map(host, arguments), **keywords))

    def __getitem__(self, place: Any) -> Any:
        return device(self.array[tuple(map(host, place)) if isinstance(place, tuple) else host(place)])

    def __setitem__(self, place: Any, value: Any) -> None:
        self.array[tuple(map(host, place)) if isinstance(place, tuple) else host(place)] = host(value)

    def __len__(self) -> int:
        return len(self.array)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.array, name)
        return (lambda *given, **named: device(found(*map(host, given), **named))) if callable(found) else found


def host(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(host, value))
    return value.array if isinstance(value, Device) else value


def device(value: Any) -> Any:
    return Device(value) if isinstance(value, np.ndarray) else value


class OutOfMemoryError(MemoryError):
    """As CuPy's: a ``MemoryError``."""


#: What a kernel's source needs to be C: the functions that CUDA brings, and a loop over the threads.
_SHIM = """
struct three { unsigned int x; };
static struct three blockIdx, blockDim, threadIdx;
static float __fadd_rn(float a, float b) { return a + b; }
static float __fmul_rn(float a, float b) { return a * b; }
static double __dadd_rn(double a, double b) { return a + b; }
static double __dmul_rn(double a, double b) { return a * b; }
#define __device__
#define __global__
"""
_LOOP = """
void launch(unsigned int grid, unsigned int block, {parameters})
{{
    blockDim.x = block;
    for (blockIdx.x = 0; blockIdx.x < grid; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < block; threadIdx.x++)
            {name}({arguments});
}}
"""
#: The C compiler, where there is one.
COMPILER = shutil.which("cc") or shutil.which("gcc")


@functools.cache
def compiled(source: str, name: str) -> Any:
    """A CUDA kernel as a function of the processor: its very source, translated by the C compiler."""
    assert COMPILER is not None
    found = re.search(rf"void {name}\((.*?)\)", source, re.DOTALL)
    assert found is not None
    parameters = found[1]
    arguments = ", ".join(part.split()[-1].lstrip("*") for part in parameters.split(","))
    loop = _LOOP.format(parameters=parameters, arguments=arguments, name=name)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.c").write_text(_SHIM + source.replace('extern "C" ', "") + loop)
        exact = ("-std=gnu99", "-O2", "-ffp-contract=off")
        subprocess.run([COMPILER, *exact, "-fPIC", "-shared", "kernel.c", "-o", "kernel.so"], cwd=folder, check=True)
        return ctypes.CDLL(f"{folder}/kernel.so").launch


class RawKernel:
    """As CuPy's, of contiguous arrays and int32 numbers."""

    def __init__(self, source: str, name: str, options: tuple[str, ...] = ()) -> None:
        assert "--fmad=false" in options
        self._launch = compiled(source, name)

    def __call__(self, grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
        given = []
        for one in arguments:
            assert isinstance(one, Device | np.int32)
            assert not isinstance(one, Device) or one.array.flags.c_contiguous
            given.append(ctypes.c_void_p(one.array.ctypes.data) if isinstance(one, Device) else ctypes.c_int(int(one)))
        self._launch(ctypes.c_uint(grid[0]), ctypes.c_uint(block[0]), *given)


class FakeCupy(types.ModuleType):
    """What the product uses of CuPy. ``free``: bytes that the driver says are free; ``room``: largest array of grey
    values that fits all the same; ``spoil`` changes what is fetched. ``puts``: sizes of the grey values that were put
    there. ``kernels``: whether it can make kernels from source; it needs a C compiler. The clock of its events goes on
    by one second at each record."""

    __version__ = "fake"

    def __init__(
        self, free: int = 80 << 30, room: int | None = None, spoil: Callable[[np.ndarray], np.ndarray] | None = None,
        kernels: bool = COMPILER is not None,
    ) -> None:  # fmt: skip
        super().__init__("cupy")
        if kernels:
            self.RawKernel = RawKernel
        self.free, self.room, self.spoil = free, room, spoil
        self.puts: list[int] = []
        self.compute_mode = 0
        self.released = 0
        fake = self

        class Here:
            def __init__(self, index: int) -> None:
                self.index = index

            def __enter__(self) -> None:
                fake.entered(self.index)

            def __exit__(self, *_: Any) -> None:
                return None

        class Event:
            clock = 0

            def record(self) -> None:
                Event.clock += 1
                self.at: int | None = Event.clock

            def synchronize(self) -> None:
                assert self.at is not None

        self.cuda = types.SimpleNamespace(
            Device=Here,
            Event=Event,
            get_elapsed_time=lambda began, ended: 1000.0 * (ended.at - began.at),
            runtime=types.SimpleNamespace(
                memGetInfo=lambda: (fake.free, 80 << 30), deviceGetAttribute=lambda number, index: fake.compute_mode
            ),
        )

    def entered(self, index: int) -> None:
        """A context of that GPU was entered."""

    def get_default_memory_pool(self) -> Any:
        def release() -> None:
            self.released += 1

        return types.SimpleNamespace(free_bytes=lambda: 0, total_bytes=lambda: 5 << 20, free_all_blocks=release)

    def asarray(self, array: Any) -> Any:
        if isinstance(array, np.ndarray) and array.dtype == np.uint8:
            self.puts.append(array.size)
            if self.room is not None and array.size > self.room:
                raise OutOfMemoryError(f"Out of memory allocating {array.size:,} bytes")
        return device(np.array(host(array)))

    def asnumpy(self, array: Device) -> np.ndarray:
        assert isinstance(array, Device)
        found = array.array.copy()
        return self.spoil(found) if self.spoil is not None else found

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *given, **named: device(
            getattr(np, name)(*map(host, given), **{key: host(value) for key, value in named.items()})
        )
