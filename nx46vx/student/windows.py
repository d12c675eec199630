"""A whole volume through the network, window by window, blended with Gaussian weights, in bounded memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
import torch

from nx46vx.features.reference import VolumeReference, measure_reference
from nx46vx.student.channels import channels_of, standardised
from nx46vx.student.patches import Place, cut
from nx46vx.student.symmetry import Symmetry

#: Width of the weight around a window's centre, as a share of its edge, and the least weight, at its corners.
SIGMA = 1 / 5
LEAST = 1e-3

#: Logits (n, 1, D, H, W) of windows (n, C, D, H, W); any device inside.
Logits = Callable[[torch.Tensor], torch.Tensor]


def window_starts(length: int, edge: int, overlap: float) -> list[int]:
    """Where windows start along an axis: evenly enough to overlap by ``overlap``, the last one at the axis' end."""
    if length <= edge:
        return [0]
    count = 1 + int(np.ceil((length - edge) / max(edge * (1.0 - overlap), 1.0)))
    return [round(k * (length - edge) / (count - 1)) for k in range(count)]


def gaussian(edge: int) -> np.ndarray:
    """Weights of a window along one axis, float32, largest in its middle."""
    at = (np.arange(edge) - (edge - 1) / 2) / (SIGMA * edge)
    return np.maximum(np.exp(-0.5 * at * at), LEAST).astype(np.float32)


@dataclass(frozen=True)
class Segmenter:
    """The network over volumes.

    ``batch`` windows are in work at once: on an executor's threads, or in one go. Besides them, memory holds the volume
    and its logits: weights are separable, so their sum needs no volume. ``sides``: channels of a window, as in
    ``channels_of``.
    """

    logits_of: Logits
    window: tuple[int, int, int]
    overlap: float
    batch: int
    executor: Executor | None = None
    sides: bool = False

    def logits(self, volume: np.ndarray, symmetries: Sequence[Symmetry] = (Symmetry(),)) -> np.ndarray:
        """Logits of surface, (z, y, x) float32, averaged over ``symmetries``, of a volume (z, y, x) uint8."""
        work = self.pieces(volume, symmetries)
        while True:
            try:
                next(work)
            except StopIteration as over:
                return np.asarray(over.value)

    def pieces(
        self, volume: np.ndarray, symmetries: Sequence[Symmetry] = (Symmetry(),)
    ) -> Generator[None, None, np.ndarray]:
        """The same in pieces of ``batch`` windows; what it returns are the logits."""
        reference = measure_reference(volume)
        padded = tuple(max(size, edge) for size, edge in zip(volume.shape, self.window, strict=True))
        starts = [window_starts(size, edge, self.overlap) for size, edge in zip(padded, self.window, strict=True)]
        profiles = [gaussian(edge) for edge in self.window]
        weight = profiles[0][:, None, None] * profiles[1][:, None] * profiles[2]
        total = np.zeros(padded, np.float32)
        for places in _chunks(_places(starts, self.window), self.batch):
            for place, logits in zip(places, self._computed(volume, reference, places, symmetries), strict=True):
                total[place] += weight * logits
            yield
        for axis, (size, edge) in enumerate(zip(padded, self.window, strict=True)):
            summed = np.zeros(size, np.float32)
            for start in starts[axis]:
                summed[start : start + edge] += profiles[axis]
            total /= summed.reshape([-1 if k == axis else 1 for k in range(3)])
        return total[tuple(slice(0, size) for size in volume.shape)]

    def _computed(
        self, volume: np.ndarray, reference: VolumeReference, places: Sequence[Place], symmetries: Sequence[Symmetry]
    ) -> Iterator[np.ndarray]:
        """Logits of each window, in their order: window by window on threads, or all in one batch."""

        def seen(place: Place) -> np.ndarray:
            grey = standardised(cut(volume, place, "reflect"), reference)
            return channels_of(grey, reference, self.sides)[None]

        if self.executor is not None:
            yield from self.executor.map(lambda place: self._averaged(seen(place), symmetries)[0, 0], places)
        else:
            yield from self._averaged(np.concatenate([seen(place) for place in places]), symmetries)[:, 0]

    @torch.no_grad()
    def _averaged(self, patches: np.ndarray, symmetries: Sequence[Symmetry]) -> np.ndarray:
        x = torch.from_numpy(patches)
        total = torch.zeros_like(x[:, :1])
        for symmetry in symmetries:
            total += symmetry.inverse.of_tensor(self.logits_of(symmetry.of_tensor(x)).float().cpu())
        return (total / len(symmetries)).numpy()


def _places(starts: Sequence[Sequence[int]], window: Sequence[int]) -> Iterator[Place]:
    for z, y, x in itertools.product(*starts):
        yield slice(z, z + window[0]), slice(y, y + window[1]), slice(x, x + window[2])


def _chunks(places: Iterator[Place], size: int) -> Iterator[list[Place]]:
    while chunk := list(itertools.islice(places, size)):
        yield chunk
