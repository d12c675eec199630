"""In which blocks the kernel takes a tile's samples: drawn ones only, those of equal bootstrap weight together.

The order depends on the data and the bootstrap only. Samples are stored by bootstrap group, so blocks consist of few
contiguous pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nx46vx.model.kernel_layout import BLOCK, STEP
from nx46vx.model.samples import Chunk


@dataclass(frozen=True)
class Runs:
    """Contiguous samples of one bootstrap group within one chunk: chunk number, first sample in its case, length,
    group; int64 (n,) each."""

    chunk: np.ndarray
    start: np.ndarray
    length: np.ndarray
    group: np.ndarray


@dataclass(frozen=True)
class BlockPlan:
    """``blocks`` (n, 4) int32: first piece, end of its pieces, samples, weight. ``pieces`` (m, 2) int32: first sample
    in the case, length. ``bounds`` (chunks + 1,): the blocks of each chunk. ``padding`` (chunks,): weighted number of
    the samples that fill blocks up. ``weight``: weighted number of samples."""

    blocks: np.ndarray
    pieces: np.ndarray
    bounds: np.ndarray
    padding: np.ndarray
    weight: int


def find_runs(groups: Sequence[np.ndarray], chunks: Sequence[Chunk]) -> Runs:
    """Cut chunks where the bootstrap group (per case, one id a sample) changes."""
    parts = []
    for number, chunk in enumerate(chunks):
        ids = groups[chunk.case][chunk.start : chunk.stop]
        starts = np.concatenate([[0], np.flatnonzero(ids[1:] != ids[:-1]) + 1])
        lengths = np.diff(starts, append=ids.size)
        parts.append(np.stack([np.full(starts.size, number), chunk.start + starts, lengths, ids[starts]]))
    return Runs(*np.concatenate(parts, axis=1).astype(np.int64)) if parts else Runs(*np.zeros((4, 0), np.int64))


def plain_plan(chunks: Sequence[Chunk]) -> BlockPlan:
    """Blocks of all samples, each of weight one."""
    number = np.arange(len(chunks))
    start = np.array([chunk.start for chunk in chunks], np.int64)
    length = np.array([chunk.stop - chunk.start for chunk in chunks], np.int64)
    return plan_blocks(Runs(number, start, length, np.zeros_like(start)), np.ones(1, np.int64), len(chunks))


def plan_blocks(runs: Runs, multiplicity: np.ndarray, chunks: int) -> BlockPlan:
    """Blocks of the samples that are drawn, by chunk, then weight, then place; ``multiplicity`` per group."""
    omega = multiplicity[runs.group]
    drawn = np.flatnonzero((omega > 0) & (runs.length > 0))
    order = drawn[np.lexsort((runs.start[drawn], omega[drawn], runs.chunk[drawn]))]
    chunk, start, length, omega = runs.chunk[order], runs.start[order], runs.length[order], omega[order]
    if not order.size:
        return BlockPlan(np.zeros((0, 4), np.int32), np.zeros((0, 2), np.int32), np.zeros(chunks + 1, np.int64),
                         np.zeros(chunks), 0)  # fmt: skip
    fresh = np.concatenate([[True], (np.diff(chunk) != 0) | (np.diff(omega) != 0)])
    kind = np.cumsum(fresh) - 1  # runs of one chunk and weight
    before = np.cumsum(length) - length
    place = before - before[fresh][kind]
    first, last = place // BLOCK, (place + length - 1) // BLOCK
    source = np.repeat(np.arange(order.size), last - first + 1)
    block = np.arange(source.size) - np.repeat(np.cumsum(last - first + 1) - (last + 1), last - first + 1)
    begin = np.maximum(place[source], block * BLOCK)
    end = np.minimum(place[source] + length[source], (block + 1) * BLOCK)
    pieces = np.stack([start[source] + begin - place[source], end - begin], axis=1)
    heads = np.flatnonzero(np.concatenate([[True], (np.diff(kind[source]) != 0) | (np.diff(block) != 0)]))
    counts = np.add.reduceat(end - begin, heads)
    weights, at = omega[source][heads], chunk[source][heads]
    blocks = np.stack([heads, np.append(heads[1:], source.size), counts, weights], axis=1)
    return BlockPlan(
        blocks.astype(np.int32),
        pieces.astype(np.int32),
        np.searchsorted(at, np.arange(chunks + 1)).astype(np.int64),
        np.bincount(at, weights * (-counts % STEP), minlength=chunks).astype(np.float64),
        int((length * omega).sum()),
    )
