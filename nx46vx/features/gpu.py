"""Features of blocks on a GPU: the source of the arrays, on CuPy's arrays.

Only sums, products, quotients and square roots occur, which a GPU rounds as a processor does. Each is a kernel of its
own, or is rounded by itself (``gpu_smoothing``): the bits are the same. ``gpu_check`` holds each GPU to that before it
is used.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from nx46vx.features.arrays import ArrayBlock
from nx46vx.features.backend import backend
from nx46vx.features.gpu_smoothing import FusedSmoothing
from nx46vx.features.smoothing import Smooth, Window, smooth

if TYPE_CHECKING:
    from nx46vx.features.reference import VolumeReference

#: Voxels whose pointwise arithmetic is done at a time, and bytes that one of them takes meanwhile.
CHUNK, CHUNK_VOXEL_BYTES = 1 << 19, 1024
#: CUDA's number of the attribute that says how many processes may use a GPU; 0: any.
_COMPUTE_MODE = 20
#: Characters of an error that are told: compilers say much.
WORDS = 300


class Gpu:
    """See ``backend.Backend``. What comes out lies in the host's memory, and what is made of it there is made by the
    processor. One thread at a time may use it.

    ``index`` counts as CUDA does in this process. ``fused``: smoothing has kernels of its own, instead of array by
    array. ``seconds``: how long the GPU worked, as its own clock says.

    Raises:
        Exception: CuPy is not installed or cannot use this GPU; of many kinds.
    """

    name = "gpu"

    def __init__(self, index: int, *, fused: bool = True) -> None:
        self._cupy = importlib.import_module("cupy")
        if self._cupy.cuda.runtime.deviceGetAttribute(_COMPUTE_MODE, index) != 0:
            raise RuntimeError("it takes one process at a time, and that is the search's")
        self._index, self.seconds = index, 0.0
        self.smooth: Smooth = FusedSmoothing(self._cupy) if fused else smooth
        self.lock = threading.RLock()
        with self._here():
            self._pool = self._cupy.get_default_memory_pool()

    @property
    def version(self) -> str:
        """CuPy's."""
        return str(self._cupy.__version__)

    def block(
        self, volume: np.ndarray, window: Window, reference: VolumeReference, names: Sequence[str], *, threads: int = 1
    ) -> GpuBlock:
        with self.working():
            return GpuBlock(self, volume, window, reference, names)

    def slopes(self, before: Any, here: Any, after: Any) -> Any:
        return backend().slopes(before, here, after)

    def quadratic(self, before: Any, here: Any, after: Any, terms: np.ndarray, constant: float) -> Any:
        return backend().quadratic(before, here, after, terms, constant)

    def put(self, array: np.ndarray) -> Any:
        """A copy on the GPU."""
        return self._cupy.asarray(np.ascontiguousarray(array))

    def fetch(self, array: Any) -> np.ndarray:
        """A copy in the host's memory."""
        return np.asarray(self._cupy.asnumpy(array))

    def free_bytes(self) -> int:
        """Memory that can be had: what nobody uses, and what CuPy holds and does not use."""
        with self._here():
            return int(self._cupy.cuda.runtime.memGetInfo()[0]) + int(self._pool.free_bytes())

    def held_bytes(self) -> int:
        """What CuPy holds in this process: the most that was used since the last ``release``."""
        return int(self._pool.total_bytes())

    def release(self) -> None:
        """Give back what is held and not used; a GPU that has failed may refuse, and is left alone."""
        with suppress(Exception), self._here():
            self._pool.free_all_blocks()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Around work on the GPU: it is this one, alone, and its time is taken between two of its events."""
        with self.lock, self._here():
            began, ended = self._cupy.cuda.Event(), self._cupy.cuda.Event()
            began.record()
            yield
            ended.record()
            ended.synchronize()
            self.seconds += float(self._cupy.cuda.get_elapsed_time(began, ended)) / 1000

    def _here(self) -> Any:
        return self._cupy.cuda.Device(self._index)


class GpuBlock(ArrayBlock):
    """See ``backend.BlockFeatures``; taken and given in the host's memory."""

    def __init__(
        self, gpu: Gpu, volume: np.ndarray, window: Window, reference: VolumeReference, names: Sequence[str]
    ) -> None:  # fmt: skip
        super().__init__(volume, window, reference, names, to=gpu.put, chunk=CHUNK, how=gpu.smooth)
        self._gpu = gpu

    def planes(self, start: int, stop: int) -> Iterator[np.ndarray]:
        found = super().planes(start, stop)
        while True:
            with self._gpu.working():
                plane = next(found, None)
                if plane is None:
                    return
                here = self._gpu.fetch(plane)
            yield here

    def points(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        with self._gpu.working():
            return self._gpu.fetch(super().points(*map(self._gpu.put, (z, y, x))))
