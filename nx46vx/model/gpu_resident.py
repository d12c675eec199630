"""All samples of some cases in the memory of a GPU, once: as blocks of 1024 samples, whatever case they come from.

A block holds each row of the pool as a contiguous piece, so a tile gathers its view of the blocks that its bootstrap
drew at the speed of the memory. The last block is filled up with zeros, which weigh nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch

from nx46vx.model.samples import Samples

#: Samples of a block: float32 sums never grow longer than this.
BLOCK = 1024


class Resident:
    """``pieces`` (blocks * rows, BLOCK) float32, block by block; ``y`` (blocks, BLOCK) uint8; ``valid`` likewise, bool.

    ``allocate`` makes the memory of ``pieces``; if it does not fit, ``pieces`` stays on the host, and what is gathered
    from it is copied each time: ``on_host`` says so.
    """

    def __init__(
        self, cases: Sequence[Samples], rows: int, device: torch.device,
        allocate: Callable[..., torch.Tensor] = torch.zeros,
    ) -> None:  # fmt: skip
        self.rows, self.device = rows, device
        self.samples = sum(case.y.size for case in cases)
        self.blocks = -(-self.samples // BLOCK)
        shape = (self.blocks * rows, BLOCK)
        self.on_host = ""
        try:
            self.pieces = allocate(shape, dtype=torch.float32, device=device)
        except torch.OutOfMemoryError as error:
            self.on_host = (str(error).splitlines() or ["out of memory"])[0]
            self.pieces = torch.zeros(shape, dtype=torch.float32)
        self.y = torch.zeros((self.blocks, BLOCK), dtype=torch.uint8, device=device)
        self.valid = torch.zeros(self.blocks * BLOCK, dtype=torch.bool, device=device)
        self.valid[: self.samples] = True
        self.valid = self.valid.view(self.blocks, BLOCK)
        self._fill(cases)

    def piece_numbers(self, blocks: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        """Where rows (f,) of some blocks (n,) lie among the pieces: (f * n,), row by row."""
        wanted = torch.from_numpy(rows.astype(np.int64))[:, None]
        return (blocks.cpu()[None, :] * self.rows + wanted).reshape(-1).to(self.pieces.device)

    def gather(self, pieces: torch.Tensor, out: torch.Tensor) -> None:
        """Copy pieces (n,) to ``out`` (n, BLOCK) on the device."""
        if self.on_host:
            out.copy_(self.pieces.index_select(0, pieces))
        else:
            torch.index_select(self.pieces, 0, pieces, out=out)

    def by_sample(self, values: Sequence[np.ndarray], dtype: torch.dtype, fill: float = 0) -> torch.Tensor:
        """One value for each sample of each case, as (blocks, BLOCK) on the device."""
        whole = torch.full((self.blocks * BLOCK,), fill, dtype=dtype, device=self.device)
        at = 0
        for value in values:
            whole[at : at + value.size] = torch.from_numpy(np.ascontiguousarray(value)).to(self.device, dtype)
            at += value.size
        return whole.view(self.blocks, BLOCK)

    def _fill(self, cases: Sequence[Samples]) -> None:
        blocks = self.pieces.view(self.blocks, self.rows, BLOCK)
        at = 0
        for case in cases:
            with warnings.catch_warnings():  # torch warns that the mapped file is read-only; nothing here writes to it
                warnings.simplefilter("ignore", UserWarning)
                source = torch.from_numpy(np.asarray(case.features)).to(self.pieces.device)
            done, total = 0, case.y.size
            while done < total:
                block, within = divmod(at + done, BLOCK)
                whole = (total - done) // BLOCK if within == 0 else 0
                if whole:
                    taken = whole * BLOCK
                    part = source[:, done : done + taken].reshape(self.rows, whole, BLOCK)
                    blocks[block : block + whole].copy_(part.transpose(0, 1))
                else:
                    taken = min(BLOCK - within, total - done)
                    blocks[block, :, within : within + taken].copy_(source[:, done : done + taken])
                done += taken
            at += total
        self.y.copy_(self.by_sample([case.y for case in cases], torch.uint8))
