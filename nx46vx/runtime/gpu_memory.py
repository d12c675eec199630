"""Memory of the GPUs, as the driver's management library says it; it is optional."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GpuMemory:
    """One GPU, whoever uses it. ``index`` counts as the driver does."""

    index: int
    name: str
    total_bytes: int
    used_bytes: int

    @property
    def used_share(self) -> float:
        return self.used_bytes / self.total_bytes if self.total_bytes else 0.0


def read_gpus(load: Callable[[], Any] | None = None) -> tuple[tuple[GpuMemory, ...], str]:
    """The memory of every GPU, and in words why there is none; ``load`` gives the library (``pynvml``)."""
    try:
        library = (load or _load)()
    except ImportError:
        return (), "nvidia-ml-py is not installed"
    try:
        library.nvmlInit()
        return _read(library)
    except Exception as error:  # the library has one class for each of its errors, and a driver may lack functions
        return (), f"{type(error).__name__}: {error}"


def _read(library: Any) -> tuple[tuple[GpuMemory, ...], str]:
    gpus, failures = [], []
    for index in range(int(library.nvmlDeviceGetCount())):
        try:
            handle = library.nvmlDeviceGetHandleByIndex(index)
            name, memory = library.nvmlDeviceGetName(handle), library.nvmlDeviceGetMemoryInfo(handle)
            text = name.decode() if isinstance(name, bytes) else str(name)
            gpus.append(GpuMemory(index, text, int(memory.total), int(memory.used)))
        except Exception as error:
            failures.append(f"GPU {index}: {error}")
    return tuple(gpus), "; ".join(failures) or ("" if gpus else "the driver names no GPU")


def _load() -> Any:
    import pynvml

    return pynvml
