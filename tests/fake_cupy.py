"""Stands in for CuPy and a GPU: NumPy's arithmetic, and arrays that never become NumPy's by themselves."""

from __future__ import annotations

import types
from collections.abc import Callable
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


class FakeCupy(types.ModuleType):
    """What the product uses of CuPy. ``free``: bytes that the driver says are free; ``room``: largest array of grey
    values that fits all the same; ``spoil`` changes what is fetched. ``puts``: sizes of the grey values that were put
    there. The clock of its events goes on by one second at each record."""

    __version__ = "fake"

    def __init__(
        self, free: int = 80 << 30, room: int | None = None, spoil: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> None:
        super().__init__("cupy")
        self.free, self.room, self.spoil = free, room, spoil
        self.puts: list[int] = []
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
            runtime=types.SimpleNamespace(memGetInfo=lambda: (fake.free, 80 << 30)),
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
