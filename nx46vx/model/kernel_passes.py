"""The sums over the samples, on the CPU through the compiled kernel. No torch.

A chunk of samples and all tiles of one width meet in one call: float32 within the chunk, each lane by itself; the
chunk's sums are float64 and are added in chunk order. Threads take different chunks, of the last ones different tiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np

from nx46vx.features.chunked import ChunkedArray
from nx46vx.model.candidates import TILE
from nx46vx.model.kernel_cpu import Kernel, compiled
from nx46vx.model.kernel_layout import CHUNK_MAX, JOB, PADDING_ERROR
from nx46vx.model.kernel_plan import BlockPlan, Runs, find_runs, plain_plan, plan_blocks
from nx46vx.model.metrics import THRESHOLDS, Counts
from nx46vx.model.neuron import NeuronSpec, logit
from nx46vx.model.resident import RESIDENT_BYTES, Residency
from nx46vx.model.samples import Chunk, FitData, Samples

_CUTS = np.array([logit(threshold) / math.log(2.0) for threshold in THRESHOLDS], np.float32)


@dataclass
class _Tile:
    """A meta-neuron as the kernel sees it."""

    spec: NeuronSpec
    kernel: Kernel
    plan: BlockPlan
    rows: np.ndarray
    constants: np.ndarray


class _Case:
    """A case's arrays and where they lie."""

    def __init__(self, case: Samples) -> None:
        features = case.features
        if features.dtype != np.float32 or features.strides[1] != 4 or features.strides[0] % 4:
            features = np.ascontiguousarray(features, np.float32)
        self.features, self.y = features, np.ascontiguousarray(case.y, np.uint8)
        self.stride = features.strides[0] // 4
        self.at, self.y_at = features.ctypes.data, self.y.ctypes.data

    def holding(self, chunk: Chunk) -> _Case:
        """The case with that chunk in memory."""
        return self


class _ChunkedCase:
    """A case whose features are decoded chunk by chunk."""

    def __init__(self, case: Samples) -> None:
        self._case = case
        self.y = np.ascontiguousarray(case.y, np.uint8)

    def holding(self, chunk: Chunk) -> _Part:
        """That chunk's samples, at the places they have in the whole case."""
        return _Part(np.ascontiguousarray(self._case.features[:, chunk.start : chunk.stop]), self.y, chunk.start)


class _Part:
    """Some samples of a case: the addresses are those that the whole case would have."""

    def __init__(self, features: np.ndarray, y: np.ndarray, start: int) -> None:
        self.features, self.y = features, y
        self.stride = features.strides[0] // 4
        self.at, self.y_at = features.ctypes.data - 4 * start, y.ctypes.data


def _case(case: Samples) -> _Case | _ChunkedCase:
    return _ChunkedCase(case) if isinstance(case.features, ChunkedArray) else _Case(case)


class KernelPasses:
    """``Passes`` on the CPU; one pass at a time."""

    def __init__(self, data: FitData, *, threads: int = 1, resident_bytes: int = RESIDENT_BYTES) -> None:
        sizes = [chunk.stop - chunk.start for chunk in (*data.train_chunks, *data.validation_chunks)]
        if max(sizes, default=0) > CHUNK_MAX:
            raise ValueError(f"chunks of {max(sizes)} samples are too long for the kernel")
        self.data, self.threads = data, threads
        self._pool = ThreadPoolExecutor(max(1, threads - 1))  # who asks for a pass takes part in it
        self._jobs: dict[tuple[bool, int], _Job] = {}
        self._calls: dict[str, tuple[list[_Job], list[_Call]]] = {}
        self._train = [_case(case) for case in data.train]
        self._validation = [_case(case) for case in data.validation]
        self._residency = Residency(data.train, data.train_chunks, resident_bytes)
        self._validation_plan = plain_plan(data.validation_chunks)
        self._positives = int(sum(case.y.sum(dtype=np.int64) for case in self._validation))
        self._tiles: dict[int, _Tile] = {}

    @cached_property
    def _runs(self) -> Runs:
        return find_runs(self.data.train_groups[0], self.data.train_chunks)

    def add(self, spec: NeuronSpec, multiplicity: np.ndarray) -> None:
        """Make a meta-neuron known, with the times that each group is drawn. Raises what ``compiled`` raises."""
        f = len(spec.view)
        shift, scale = np.reshape(spec.shift, (3, f)), np.reshape(spec.scale, (3, f))
        constants = np.stack(
            [shift[0], 1 / scale[0], 1 / scale[1], -shift[1] / scale[1], shift[2], 1 / scale[2]], axis=1
        )
        self._tiles[spec.meta_neuron] = _Tile(
            spec,
            compiled(f),
            plan_blocks(self._runs, multiplicity, len(self.data.train_chunks)),
            np.ascontiguousarray(self.data.rows(spec.view), np.int64),
            np.ascontiguousarray(constants, np.float32),
        )

    def close(self) -> None:
        self._pool.shutdown()

    def gradients(
        self, thetas: Mapping[int, np.ndarray], lanes: Mapping[int, np.ndarray] | None = None
    ) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """See ``Passes.gradients``."""
        result = {}
        jobs = [self._job(k, theta, lanes, self._tiles[k].plan, 0.0) for k, theta in thetas.items()]
        self._run(self.data.train_chunks, self._train, jobs, "train")
        for job in jobs:
            tile = job.tile
            added = np.add.reduce(job.out, axis=0)[:, : job.lanes.size]
            loss, gradient = np.zeros(TILE), np.zeros((tile.spec.columns, TILE))
            loss[job.lanes] = (added[0] - tile.plan.padding.sum()) * math.log(2.0) / tile.plan.weight
            added[-1] -= PADDING_ERROR * tile.plan.padding.sum()
            gradient[:, job.lanes] = added[1:] / tile.plan.weight
            gradient[:, np.isnan(loss)] = np.nan  # not every processor's exponentials pass NaN on, but all losses do
            result[tile.spec.meta_neuron] = loss, gradient
        return result

    def validate(
        self, thetas: Mapping[int, np.ndarray], lanes: Mapping[int, np.ndarray] | None = None
    ) -> dict[int, tuple[np.ndarray, list[Counts]]]:
        """See ``Passes.validate``."""
        result, plan = {}, self._validation_plan
        total = self.data.validation_samples
        jobs = [
            self._job(k, theta, lanes, plan, self._tiles[k].spec.prior_shift) for k, theta in thetas.items()
        ]  # fmt: skip
        self._run(self.data.validation_chunks, self._validation, jobs, "validate")
        for job in jobs:
            mean, above = np.zeros(TILE), np.zeros((len(THRESHOLDS), 2, TILE), np.int64)
            added = np.add.reduce(job.out[:, 0, : job.lanes.size], axis=0)
            mean[job.lanes] = (added - plan.padding.sum()) * math.log(2.0) / total
            above[:, :, job.lanes] = job.counts.sum(axis=0, dtype=np.int64)[:, :, : job.lanes.size]
            counts = [
                Counts(above[:, 0, lane], above[:, 1, lane], self._positives, total - self._positives)
                for lane in range(TILE)
            ]
            result[job.tile.spec.meta_neuron] = mean, counts
        return result

    def _job(
        self, meta_neuron: int, theta: np.ndarray, lanes: Mapping[int, np.ndarray] | None, plan: BlockPlan, shift: float
    ) -> _Job:
        """The pass's part for one tile; that of the last pass, if it took the same lanes."""
        tile = self._tiles[meta_neuron]
        chosen = np.arange(TILE) if lanes is None else np.flatnonzero(lanes[meta_neuron])
        training = plan is tile.plan
        job = self._jobs.get((training, meta_neuron))
        if job is None or not np.array_equal(job.lanes, chosen):
            chunks = plan.bounds.size - 1
            self._jobs[training, meta_neuron] = job = _Job(
                tile, plan, chosen, np.zeros((tile.spec.columns, TILE), np.float32),
                np.zeros((chunks, 1 + tile.spec.columns if training else 1, TILE)),
                np.zeros((0 if training else chunks, len(THRESHOLDS), 2, TILE), np.int32),
            )  # fmt: skip
        moved = theta[:, chosen].copy()
        moved[-1] += shift
        job.weights[:, : chosen.size] = moved / math.log(2.0)
        return job

    def _run(self, chunks: list[Chunk], cases: list[_Case | _ChunkedCase], jobs: list[_Job], name: str) -> None:
        """Call the kernel for every chunk and job: each thread takes the next pair of a chunk and calls that nobody
        has."""
        residency = self._residency if name == "train" and self._residency.bounded else None
        if residency is not None:
            residency.start()
        calls = self._called([job for job in jobs if job.lanes.size], name)
        parts = [(number, calls) for number in range(len(chunks))]
        if self.threads > 1 and residency is None and not any(isinstance(case, _ChunkedCase) for case in cases):
            # the last chunks go tile by tile, so that no thread waits long for another one
            parts[-self.threads :] = [
                (number, [call.only(place)])
                for number, _ in parts[-self.threads :] for call in calls for place in range(len(call.table))
            ]  # fmt: skip
        ticket = count()

        def work() -> None:
            scratch = {call.kernel.features: call.kernel.scratch() for call in calls}
            for place in iter(ticket.__next__, None):
                if place >= len(parts):
                    return
                number, mine = parts[place]
                if residency is not None:
                    residency.begin(number)
                case = cases[chunks[number].case].holding(chunks[number])
                for call in mine:
                    call(number, case, scratch[call.kernel.features])
                if residency is not None:
                    residency.over(number)

        others = [self._pool.submit(work) for _ in range(self.threads - 1)]
        try:
            work()
        finally:
            wait(others)
        for other in others:
            other.result()

    def _called(self, jobs: list[_Job], name: str) -> list[_Call]:
        """The jobs as calls: those of the last pass, if it had the same jobs."""
        before, calls = self._calls.get(name, ([], []))
        if before != jobs:
            calls = _calls(jobs, name)
            self._calls[name] = jobs, calls
        return calls


@dataclass(eq=False)
class _Job:
    """One tile in one pass: ``out`` (chunks, rows, TILE) and ``counts`` (chunks, thresholds, 2, TILE) by chunk. Of
    chunks without blocks they stay zero, of lanes that are not taken they mean nothing."""

    tile: _Tile
    plan: BlockPlan
    lanes: np.ndarray
    weights: np.ndarray
    out: np.ndarray
    counts: np.ndarray

    def words(self) -> list[int]:
        """The job as the kernel wants it."""
        arrays = {
            "rows": self.tile.rows, "constants": self.tile.constants, "bounds": self.plan.bounds,
            "blocks": self.plan.blocks, "pieces": self.plan.pieces, "weights": self.weights, "out": self.out,
            "counts": self.counts,
        }  # fmt: skip
        of = {name: array.ctypes.data for name, array in arrays.items()}
        of["lanes"] = int(self.lanes.size)
        for name in ("out", "counts"):
            of[f"{name}_step"] = arrays[name].strides[0] // arrays[name].itemsize
        return [of[name] for name in JOB]


@dataclass(frozen=True)
class _Call:
    """Jobs that one kernel does in one call: ``table`` int64 (jobs, len(JOB))."""

    kernel: Kernel
    function: Any
    table: np.ndarray

    def only(self, place: int) -> _Call:
        """One of its jobs."""
        return _Call(self.kernel, self.function, self.table[place : place + 1])

    def __call__(self, number: int, case: _Case | _Part, scratch: np.ndarray) -> None:
        self.function(
            case.at, case.stride, case.y_at, number, self.table.ctypes.data, len(self.table), _CUTS.ctypes.data,
            scratch.ctypes.data,
        )  # fmt: skip


def _calls(jobs: list[_Job], name: str) -> list[_Call]:
    """The jobs, those of one width together."""
    widths = sorted({job.tile.spec.columns for job in jobs})
    together = [[job for job in jobs if job.tile.spec.columns == columns] for columns in widths]
    return [
        _Call(some[0].tile.kernel, getattr(some[0].tile.kernel, name),
              np.array([job.words() for job in some], np.int64))
        for some in together
    ]  # fmt: skip
