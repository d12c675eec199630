"""Samples' features on a GPU, in blocks that its memory holds; on the processor once the GPU has failed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nx46vx.errors import in_words
from nx46vx.features.blocks import block_windows, sample_features
from nx46vx.features.gpu import CHUNK, CHUNK_VOXEL_BYTES, WORDS, Gpu
from nx46vx.features.pool import HALO
from nx46vx.features.reference import VolumeReference
from nx46vx.features.smoothing import grown

#: Bytes that a voxel of a block and its halo takes at most: 27 fields of 4 bytes and what one pass holds besides.
VOXEL_BYTES = 160
#: Share of the free memory that is used; the rest is for what CuPy cannot reuse.
SHARE = 0.7
SMALLEST = 32
_SHRINK = 0.8  # half the voxels


def block_edges(shape: Sequence[int]) -> Iterator[int]:
    """Edges of blocks for a volume: first one that takes it whole, then each of half as many voxels."""
    edge = float(np.ceil(round(float(np.prod(shape, dtype=np.float64)) ** (1 / 3), 6)))
    while edge > SMALLEST:
        yield int(edge)
        edge *= _SHRINK
    yield SMALLEST


def needed_bytes(shape: Sequence[int], edge: int) -> int:
    """GPU memory that the largest block takes, with its halo, and the pointwise arithmetic."""
    regions = (grown(window, shape, HALO) for window in block_windows(shape, edge))
    largest = max(int(np.prod([part.stop - part.start for part in region])) for region in regions)
    return largest * VOXEL_BYTES + CHUNK * CHUNK_VOXEL_BYTES


class GpuSampling:
    """``sample_features`` on a GPU, one volume at a time, whatever thread asks.

    Where memory ends, the volume is computed again in smaller blocks. Where that does not help, or anything else goes
    wrong, this volume and all after it are computed by the processor, whole, and ``on_fallback`` is told why, once.
    """

    def __init__(self, gpu: Gpu, on_fallback: Callable[[str], None]) -> None:
        self.gpu, self._on_fallback = gpu, on_fallback
        self.reason = ""  # why the GPU is no longer used
        self.on_gpu = self.on_cpu = self.shrunk = 0  # volumes; times that memory ended
        self._largest: int | None = None  # edge of the largest block that memory held
        self._lock = threading.Lock()

    def __call__(
        self, volume: np.ndarray, reference: VolumeReference, names: Sequence[str], index: np.ndarray, *, block: int,
        threads: int = 1,
    ) -> np.ndarray:  # fmt: skip
        """See ``sample_features``; ``block`` and ``threads`` are the processor's."""
        with self._lock:
            found = None if self.reason else self._tried(volume, reference, names, index)
            if found is not None:
                self.on_gpu += 1
                return found
            self.on_cpu += 1
        return sample_features(volume, reference, names, index, block=block, threads=threads)

    def _tried(
        self, volume: np.ndarray, reference: VolumeReference, names: Sequence[str], index: np.ndarray
    ) -> np.ndarray | None:
        try:
            return self._sampled(volume, reference, names, index)
        except Exception as error:  # CUDA's and CuPy's are of many kinds
            self.reason = f"the GPU failed: {in_words(error, WORDS)}"
        self._on_fallback(f"{self.reason}; {self.on_gpu} volumes were computed there before")
        return None

    def _sampled(
        self, volume: np.ndarray, reference: VolumeReference, names: Sequence[str], index: np.ndarray
    ) -> np.ndarray:
        room, edges = self.gpu.free_bytes() * SHARE, list(block_edges(volume.shape))
        if self._largest is not None:
            edges = [edge for edge in edges if edge <= self._largest] or [SMALLEST]
        fitting = [edge for edge in edges if needed_bytes(volume.shape, edge) <= room] or [SMALLEST]
        ended: str = ""
        for edge in fitting:
            try:
                return sample_features(volume, reference, names, index, block=edge, how=self.gpu)
            except MemoryError as error:  # which CuPy's is; here its arrays are still held by the error's frames
                ended = (str(error).splitlines() or [""])[0]
            self.gpu.release()
            self.shrunk += 1
            self._largest = max(SMALLEST, int(edge * _SHRINK))
        raise MemoryError(f"not even blocks of {fitting[-1]}^3 voxels fit: {ended}")
