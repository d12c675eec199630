"""The sums over the samples on a GPU: one copy of the features there, one transfer back in each pass.

A tile takes the blocks that its bootstrap drew (about 63 % of them), a few million samples at a time: it gathers its
view, makes the columns (x, x^2, g, 1), and multiplies twice. Within a block of 1024 samples sums are float32, across
blocks float64; shapes and order depend on the data alone, so a lane's bits depend neither on other lanes nor on other
tiles. Products are plain float32 unless TF32 was measured to leave the objective as it is.

What depends on the labels alone is linear in the weights and computed once: with c = sum_i w_i y_i d_i over columns d,

    loss = sum_i w_i softplus(z_i) - c . theta,      gradient = sum_i w_i sigmoid(z_i) d_i - c
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from nx46vx.errors import EnvironmentFault
from nx46vx.model.candidates import TILE
from nx46vx.model.gpu_clock import GpuClock
from nx46vx.model.gpu_options import CurvesInUse, Graphs, Products, plain_curves
from nx46vx.model.gpu_resident import BLOCK, Resident
from nx46vx.model.metrics import THRESHOLDS, Counts
from nx46vx.model.neuron import NeuronSpec, fold, logit, unfold_gradient
from nx46vx.model.notes import Notes
from nx46vx.model.options import EngineOptions
from nx46vx.model.samples import FitData

#: Blocks that are worked on at once: 2 M samples, 0.6 GB of working memory.
CHUNK_BLOCKS = 2048
_BINS = len(THRESHOLDS) + 1


@dataclass
class Part:
    """A chunk of a tile's blocks: where their pieces lie (x and g rows), and the weight of each sample (n,)."""

    x: torch.Tensor
    g: torch.Tensor
    weight: torch.Tensor
    blocks: torch.Tensor


@dataclass
class Tile:
    """A meta-neuron on the device. ``constant`` and ``checked_constant``: c over the columns, float64 (3F + 1,), of
    training and validation samples. ``weight``: weighted number of training samples."""

    spec: NeuronSpec
    shift: torch.Tensor
    scale: torch.Tensor
    parts: list[Part]
    checked: list[Part]
    constant: np.ndarray
    checked_constant: np.ndarray
    weight: float

    def figures(self, weights: np.ndarray, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean loss (TILE,) and gradient over the standardised columns, of folded weights and their sums."""
        loss = (sums[0] - self.constant @ _rounded(weights)) / self.weight
        gradient = np.ascontiguousarray((sums[1:] - self.constant[:, None]) / self.weight)
        return loss, unfold_gradient(self.spec, gradient)


class GpuPasses:
    """``Passes`` on one GPU (or, for tests, on torch's CPU). Every lane of a tile is computed, asked for or not.

    Raises:
        EnvironmentFault: the GPU has no room even without the features, or fails.
    """

    def __init__(
        self, data: FitData, *, device: str, options: EngineOptions | None = None, notes: Notes | None = None,
        chunk_blocks: int = CHUNK_BLOCKS,
    ) -> None:  # fmt: skip
        self.data, self.device = data, torch.device(device)
        self.notes, self._options, self._chunk = notes or Notes(), options or EngineOptions(), chunk_blocks
        self._clock, self._products = GpuClock(self.device), Products(self.device)
        self._curves = CurvesInUse(self.notes)
        self._graphs = Graphs(self.device, self.notes) if self._options.cuda_graphs else None
        self._tiles: dict[int, Tile] = {}
        self._settled = False
        try:
            rows = 2 * len(data.pool)
            self._train, self._validation = (Resident(c, rows, self.device) for c in (data.train, data.validation))
            groups, count = data.train_groups
            self._groups = self._train.by_sample(groups, torch.int64, fill=count)
        except RuntimeError as error:
            raise _fault(self.device, error) from error
        for name, resident in (("training", self._train), ("validation", self._validation)):
            if resident.on_host:
                self.notes.add("GPU_OPTION_FALLBACK", option="resident", samples=name, reason=resident.on_host)

    @property
    def gpu_seconds(self) -> float:
        return self._clock.seconds

    @property
    def gpu_peak_bytes(self) -> int:
        return self._clock.peak_bytes

    @property
    def gathered_bytes(self) -> int:
        """Bytes of features that one pass over the training samples gathers for all its tiles."""
        pieces = sum(part.x.numel() + part.g.numel() for tile in self._tiles.values() for part in tile.parts)
        return pieces * BLOCK * self._train.pieces.element_size()

    def add(self, spec: NeuronSpec, multiplicity: np.ndarray) -> None:
        """Make a meta-neuron known, with the times that each group is drawn."""
        f, rows = len(spec.view), self.data.rows(spec.view)
        try:
            table = torch.from_numpy(np.append(multiplicity, 0).astype(np.float32)).to(self.device)
            weight = table[self._groups]
            drawn = (weight > 0).any(dim=1).nonzero()[:, 0]
            shift, scale = (
                torch.tensor(part[:f], dtype=torch.float32, device=self.device)[:, None]
                for part in (spec.shift, spec.scale)
            )
            tile = Tile(
                spec, shift, scale, list(self._parts(self._train, drawn, rows, weight)),
                list(self._parts(self._validation, torch.arange(self._validation.blocks), rows,
                                 self._validation.valid.float())),
                np.zeros(0), np.zeros(0), float(weight.sum(dtype=torch.float64)),
            )  # fmt: skip
            tile.constant = self._label_sums(tile, tile.parts, self._train)
            tile.checked_constant = self._label_sums(tile, tile.checked, self._validation)
        except RuntimeError as error:
            raise _fault(self.device, error) from error
        self._tiles[spec.meta_neuron] = tile

    def close(self) -> None:
        self._graphs = None
        self._tiles.clear()

    def gradients(
        self, thetas: Mapping[int, np.ndarray], lanes: Mapping[int, np.ndarray] | None = None
    ) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """See ``Passes.gradients``."""
        if not self._settled:
            self._settle()
        tiles = [self._tiles[k] for k in thetas]
        folded = [fold(tile.spec, theta) for tile, theta in zip(tiles, thetas.values(), strict=True)]
        with self._clock.running(), self._products.chosen():
            sums = self._sums(tiles, folded)
        return {
            tile.spec.meta_neuron: tile.figures(weights, found)
            for tile, weights, found in zip(tiles, folded, sums, strict=True)
        }

    def validate(
        self, thetas: Mapping[int, np.ndarray], lanes: Mapping[int, np.ndarray] | None = None
    ) -> dict[int, tuple[np.ndarray, list[Counts]]]:
        """See ``Passes.validate``."""
        result, total = {}, self.data.validation_samples
        cuts = torch.tensor([logit(t) for t in THRESHOLDS], dtype=torch.float32, device=self.device)
        with self._clock.running(), self._products.plain():
            for k, theta in thetas.items():
                tile = self._tiles[k]
                weights = fold(tile.spec, theta)
                weights[-1] += tile.spec.prior_shift
                losses, histogram = self._checked(tile, self._on_device(weights), cuts)
                mean = (losses - tile.checked_constant @ _rounded(weights)) / total
                above = histogram[:, :2, ::-1].cumsum(axis=2)[:, :, ::-1]
                counts = [
                    Counts(above[lane, 1, 1:], above[lane, 0, 1:], int(above[lane, 1, 0]), int(above[lane, 0, 0]))
                    for lane in range(TILE)
                ]
                result[k] = mean, counts
        return result

    def _sums(self, tiles: list[Tile], folded: list[np.ndarray]) -> list[np.ndarray]:
        """Of each tile, float64 (1 + columns, TILE): softplus, then sigmoid times the columns; weighted."""
        weights = torch.stack([self._on_device(one) for one in folded])
        key = tuple(tile.spec.meta_neuron for tile in tiles)
        if self._graphs is not None:
            return list(self._graphs.run(key, weights, lambda given: self._all_sums(tiles, given)).cpu().numpy())
        return list(self._all_sums(tiles, weights).cpu().numpy())

    def _all_sums(self, tiles: list[Tile], weights: torch.Tensor) -> torch.Tensor:
        return torch.stack([self._tile_sums(tile, weights[place]) for place, tile in enumerate(tiles)])

    def _tile_sums(self, tile: Tile, weights: torch.Tensor) -> torch.Tensor:
        partial = []
        for part in tile.parts:
            design = self._design(tile, part, self._train)
            columns, n = design.shape
            curve, slope = self._curves.of(functools.partial(torch.matmul, weights.T, design), part.weight)
            blocks = part.weight.view(-1, BLOCK, 1)
            loss = torch.bmm(curve.view(TILE, -1, BLOCK).transpose(0, 1), blocks)
            moved = slope.view(TILE, -1, BLOCK).permute(1, 2, 0)
            gradient = torch.bmm(design.view(columns, n // BLOCK, BLOCK).transpose(0, 1), moved)
            partial.append(torch.cat([loss.transpose(1, 2), gradient], dim=1))
        return torch.cat(partial).double().sum(dim=0)

    def _checked(self, tile: Tile, weights: torch.Tensor, cuts: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """On the validation samples: softplus (TILE,), and a histogram (TILE, label or filling, bin)."""
        losses = []
        histogram = torch.zeros(TILE * 3 * _BINS, dtype=torch.int64, device=self.device)
        lane = torch.arange(TILE, device=self.device)[:, None] * (3 * _BINS)
        for part in tile.checked:
            z = weights.T @ self._design(tile, part, self._validation)
            bins = torch.bucketize(z, cuts, right=True)
            label = torch.where(part.weight > 0, self._validation.y[part.blocks].view(-1).long(), 2)
            bins += label * _BINS + lane
            histogram += torch.bincount(bins.view(-1), minlength=histogram.numel())
            curve = torch.nn.functional.softplus(z).view(TILE, -1, BLOCK).transpose(0, 1)
            losses.append(torch.bmm(curve, part.weight.view(-1, BLOCK, 1))[:, :, 0])
        total = torch.cat(losses).double().sum(dim=0)
        return total.cpu().numpy(), histogram.cpu().numpy().reshape(TILE, 3, _BINS)

    def _label_sums(self, tile: Tile, parts: list[Part], resident: Resident) -> np.ndarray:
        """c: the columns summed over the positive samples, with their weights; float64 (columns,)."""
        partial = []
        for part in parts:
            design = self._design(tile, part, resident)
            labelled = (resident.y[part.blocks].view(-1) * part.weight).view(-1, BLOCK, 1)
            by_block = design.view(design.shape[0], -1, BLOCK).transpose(0, 1).double()
            partial.append(torch.bmm(by_block, labelled.double())[:, :, 0])
        return torch.cat(partial).sum(dim=0).cpu().numpy()

    def _design(self, tile: Tile, part: Part, resident: Resident) -> torch.Tensor:
        """The columns (x, x^2, g, 1) of a chunk, (3F + 1, n); x standardised."""
        f, n = len(tile.spec.view), part.weight.numel()
        design = torch.empty((3 * f + 1, n), device=self.device)
        x = design[:f]
        resident.gather(part.x, x.view(-1, BLOCK))
        x.sub_(tile.shift).div_(tile.scale)
        torch.mul(x, x, out=design[f : 2 * f])
        resident.gather(part.g, design[2 * f : 3 * f].view(-1, BLOCK))
        design[3 * f] = 1.0
        return design

    def _parts(
        self, resident: Resident, blocks: torch.Tensor, rows: np.ndarray, weight: torch.Tensor
    ) -> Iterator[Part]:
        f = rows.size // 2
        for some in blocks.to(self.device).split(self._chunk):
            x, g = (resident.piece_numbers(some, half) for half in (rows[:f], rows[f:]))
            yield Part(x, g, weight[some].reshape(-1), some)

    def _on_device(self, weights: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(weights.astype(np.float32)).to(self.device)

    def _settle(self) -> None:
        """Try the options on one tile before the first pass, and keep those that change nothing. The tile is the first
        of all, whoever asks first: a resumed search and a second engine decide as the first one did."""
        from nx46vx.model.gpu_trials import try_compiling, try_reduced_precision

        self._settled = True
        tile = self._tiles[min(self._tiles)]
        if self._options.compile:
            self._curves.curves = try_compiling(plain_curves, tile.parts[0].weight, self.notes)
        if self._options.mixed_precision:
            try_reduced_precision(
                self._products, lambda w: self._tile_sums(tile, self._on_device(w)).cpu().numpy(), tile, self.notes
            )


def _rounded(weights: np.ndarray) -> np.ndarray:
    """The weights as the GPU sees them, float64."""
    return weights.astype(np.float32).astype(np.float64)


def _fault(device: torch.device, error: RuntimeError) -> EnvironmentFault:
    return EnvironmentFault(
        "the engine cannot be set up on the GPU", where=str(device), found=(str(error).splitlines() or [""])[0],
        fix="end what else uses the GPU, or set resources.device to cpu",
    )  # fmt: skip
