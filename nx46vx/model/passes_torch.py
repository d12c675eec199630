"""The sums over the samples in torch on a CPU, where the kernel cannot be compiled.

A chunk of samples and a tile of 16 lanes meet in two matrix products of fixed shape, in float32 on one thread; the
chunk's sums go to float64 and are added in chunk order. Threads take different chunks. So a lane's bits depend
neither on the other lanes nor on the number of threads.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from nx46vx.model.candidates import TILE
from nx46vx.model.metrics import THRESHOLDS, Counts
from nx46vx.model.neuron import NeuronSpec, fold, logit, unfold_gradient
from nx46vx.model.samples import Chunk, FitData, Samples


@dataclass
class _Tile:
    """What a meta-neuron needs."""

    spec: NeuronSpec
    rows: torch.Tensor
    shift: torch.Tensor
    scale: torch.Tensor
    multiplicity: torch.Tensor
    cuts: torch.Tensor


class TorchPasses:
    """``Passes`` in torch. Every lane of a tile is computed, asked for or not: it costs the same."""

    def __init__(self, data: FitData, *, threads: int = 1) -> None:
        self.data, self.threads = data, threads
        self._pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        groups, _ = data.train_groups
        self._train = [self._place(case) for case in data.train]
        self._groups = [torch.from_numpy(ids).to(torch.int64) for ids in groups]
        self._validation = [self._place(case) for case in data.validation]
        self._tiles: dict[int, _Tile] = {}

    def add(self, spec: NeuronSpec, multiplicity: np.ndarray) -> None:
        """Make a meta-neuron known, with the times that each group is drawn."""
        f = len(spec.view)
        cuts = [logit(threshold) - spec.prior_shift for threshold in THRESHOLDS]
        self._tiles[spec.meta_neuron] = _Tile(
            spec,
            torch.from_numpy(self.data.rows(spec.view)),
            self._vector(spec.shift[:f])[:, None],
            self._vector(spec.scale[:f])[:, None],
            torch.from_numpy(multiplicity.astype(np.float32)),
            self._vector(cuts),
        )

    def close(self) -> None:
        self._pool.shutdown()

    def gradients(
        self, thetas: Mapping[int, np.ndarray], lanes: Mapping[int, np.ndarray] | None = None
    ) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """See ``Passes.gradients``."""
        tiles = [self._tiles[k] for k in thetas]
        weights = [self._fold(tile, theta) for tile, theta in zip(tiles, thetas.values(), strict=True)]
        chunks = self.data.train_chunks
        sums = [np.zeros((len(chunks), 2 + tile.spec.columns, TILE)) for tile in tiles]

        def work(first: int) -> None:
            for number in range(first, len(chunks), self.threads):
                chunk = chunks[number]
                features, y = self._slice(self._train, chunk)
                ids = self._groups[chunk.case][chunk.start : chunk.stop]
                for tile, weight, out in zip(tiles, weights, sums, strict=True):
                    self._train_chunk(tile, weight, features, y, ids, out[number])

        self._run(work)
        result = {}
        for tile, total in zip(tiles, sums, strict=True):
            added = np.add.reduce(total, axis=0)
            weight = added[0, 0]
            result[tile.spec.meta_neuron] = (
                added[1] / weight,
                unfold_gradient(tile.spec, np.ascontiguousarray(added[2:] / weight)),
            )
        return result

    def validate(
        self, thetas: Mapping[int, np.ndarray], lanes: Mapping[int, np.ndarray] | None = None
    ) -> dict[int, tuple[np.ndarray, list[Counts]]]:
        """See ``Passes.validate``."""
        tiles = [self._tiles[k] for k in thetas]
        weights = [self._fold(tile, theta) for tile, theta in zip(tiles, thetas.values(), strict=True)]
        chunks = self.data.validation_chunks
        bins = len(THRESHOLDS) + 1
        losses = [np.zeros((len(chunks), TILE)) for _ in tiles]
        histograms = [np.zeros((len(chunks), TILE, 2 * bins), np.int64) for _ in tiles]

        def work(first: int) -> None:
            for number in range(first, len(chunks), self.threads):
                features, y = self._slice(self._validation, chunks[number])
                for tile, weight, loss, histogram in zip(tiles, weights, losses, histograms, strict=True):
                    z = weight.T @ self._design(tile, features)
                    bin_of = torch.bucketize(z, tile.cuts, right=True)
                    bin_of += (y * bins).long() + torch.arange(TILE)[:, None] * (2 * bins)
                    counted = torch.bincount(bin_of.flatten(), minlength=TILE * 2 * bins)
                    histogram[number] = counted.reshape(TILE, 2 * bins).numpy()
                    z += tile.spec.prior_shift
                    value = (torch.nn.functional.softplus(z) - y * z).sum(dim=1, dtype=torch.float64)
                    loss[number] = value.numpy()

        self._run(work)
        result = {}
        for tile, loss, histogram in zip(tiles, losses, histograms, strict=True):
            mean = np.add.reduce(loss, axis=0) / self.data.validation_samples
            by_lane = histogram.sum(axis=0).reshape(TILE, 2, bins)
            above = by_lane[:, :, ::-1].cumsum(axis=2)[:, :, ::-1]
            counts = [
                Counts(above[lane, 1, 1:], above[lane, 0, 1:], int(above[lane, 1, 0]), int(above[lane, 0, 0]))
                for lane in range(TILE)
            ]
            result[tile.spec.meta_neuron] = (mean, counts)
        return result

    def _train_chunk(
        self, tile: _Tile, weight: torch.Tensor, features: torch.Tensor, y: torch.Tensor, ids: torch.Tensor,
        out: np.ndarray,
    ) -> None:  # fmt: skip
        omega = tile.multiplicity[ids]
        design = self._design(tile, features)
        z = weight.T @ design
        loss = ((torch.nn.functional.softplus(z) - y * z) * omega).sum(dim=1, dtype=torch.float64)
        error = torch.sigmoid_(z).sub_(y).mul_(omega)
        out[0] = float(omega.sum(dtype=torch.float64))
        out[1] = loss.numpy()
        out[2:] = (design @ error.T).numpy()

    def _design(self, tile: _Tile, features: torch.Tensor) -> torch.Tensor:
        """The columns (x, x^2, g, 1) of a chunk, (3F + 1, n); x standardised."""
        f = len(tile.spec.view)
        design = torch.empty((3 * f + 1, features.shape[1]))
        x = design[:f]
        torch.sub(features[tile.rows[:f]], tile.shift, out=x)
        x /= tile.scale
        torch.mul(x, x, out=design[f : 2 * f])
        design[2 * f : 3 * f] = features[tile.rows[f:]]
        design[3 * f] = 1.0
        return design

    def _slice(self, placed: Sequence[tuple[torch.Tensor, torch.Tensor]], chunk: Chunk) -> tuple[torch.Tensor, ...]:
        features, y = placed[chunk.case]
        return features[:, chunk.start : chunk.stop], y[chunk.start : chunk.stop]

    def _place(self, case: Samples) -> tuple[torch.Tensor, torch.Tensor]:
        with warnings.catch_warnings():  # torch warns that the mapped file is read-only; nothing here writes to it
            warnings.simplefilter("ignore", UserWarning)
            features = torch.from_numpy(np.asarray(case.features))
        return features, torch.from_numpy(case.y.astype(np.float32))

    def _fold(self, tile: _Tile, theta: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(fold(tile.spec, theta).astype(np.float32))

    def _vector(self, values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32)

    def _run(self, work: Callable[[int], None]) -> None:
        list(self._pool.map(work, range(self.threads)))
