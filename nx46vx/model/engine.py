"""The engine: owns the device and the loop, and advances every unfinished lane of the grid in each pass.

A tile costs the same with one lane as with fifteen, so lanes are advanced ahead of their trials, as far as their
``until``. What was computed ahead is kept until it is asked for, found by the digest of the exact state it started
from: a wrong guess is never used. The engine holds nothing that the trials' checkpoints could not rebuild.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from nx46vx.model.blocks import KPI_EVERY, BlockResult, LaneRequest
from nx46vx.model.candidates import TILE, Candidate, Grid
from nx46vx.model.metrics import validation_figures
from nx46vx.model.neuron import NeuronSpec
from nx46vx.model.passes import Passes
from nx46vx.model.solver import Method, TileSolver, optimality_gap, penalty, step_together
from nx46vx.model.state import LaneState


@dataclass
class _Lane:
    """One candidate in the engine: the state furthest ahead, and the blocks that led there."""

    candidate: Candidate
    slot: int
    frontier: LaneState
    until: int
    ready: dict[str, BlockResult] = field(default_factory=dict)


class FitEngine:
    """Advances lanes block by block; safe to call from many threads.

    ``background=True`` runs the loop in a thread of its own, so that it goes on while trials are busy; otherwise the
    caller that waits runs it.
    """

    def __init__(
        self, passes: Passes, grid: Grid, *, method: Method = "fista", block: int = 10, background: bool = False
    ) -> None:
        self._passes, self._grid, self._method, self._block = passes, grid, method, block
        self._lanes: dict[Candidate, _Lane] = {}
        self._solvers: dict[int, TileSolver] = {}
        self._specs: dict[int, NeuronSpec] = {}
        self._changed = threading.Condition()
        self._passing = threading.Lock()
        self._error: BaseException | None = None
        self._closed = False
        self.busy_seconds = 0.0
        self.figures_seconds = 0.0
        self.lane_iterations = 0
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True) if background else None
        if self._thread:
            self._thread.start()

    def add_neuron(self, spec: NeuronSpec) -> None:
        """Make a meta-neuron known. Knowing it already is fine."""
        with self._changed:
            if spec.meta_neuron in self._specs:
                return
            self._passes.add(spec)
            l1, l2 = np.ones(TILE), np.ones(TILE)  # padding lanes stay at zero
            for candidate in self._grid.candidates([spec.meta_neuron]):
                slot = self._grid.lane(candidate)
                l1[slot], l2[slot] = candidate.l1, candidate.l2
            self._solvers[spec.meta_neuron] = TileSolver(spec.columns, l1, l2, spec.curvature, self._method)
            self._specs[spec.meta_neuron] = spec

    def expect(self, requests: Iterable[LaneRequest]) -> None:
        """Lanes that trials will ask for: advanced ahead of time."""
        with self._changed:
            for request in requests:
                lane = self._lanes.get(request.candidate)
                if lane is None:
                    self._put(request)
                else:
                    lane.until = max(lane.until, request.until)
            self._changed.notify_all()

    def advance(self, request: LaneRequest) -> list[BlockResult]:
        """Wait for the block that starts at the request's state; return it and those behind it that are ready."""
        wanted = request.state.digest
        if request.state.iteration >= request.until:
            raise ValueError(f"{request.candidate.candidate_id} has nothing left to do")
        with self._changed:
            lane = self._lanes.get(request.candidate)
            if lane is None or not self._leads(lane, request):
                lane = self._put(request)
            if request.until > lane.until:
                lane.until = request.until
            self._changed.notify_all()
        while True:
            with self._changed:
                if self._error is not None:
                    raise RuntimeError("the engine stopped") from self._error
                if self._closed:
                    raise RuntimeError("the engine was closed")
                if self._leads(lane, request) and wanted in lane.ready:
                    return self._take(lane, wanted, request.until)
                if self._lanes.get(request.candidate) is not lane or not self._leads(lane, request):
                    lane = self._put(request)  # another caller put this lane elsewhere, or took the block away
                if self._thread is not None:
                    self._changed.wait(timeout=1.0)
                    continue
            self._pass()

    def stats(self) -> dict[str, Any]:
        """Seconds spent in passes that are over (of them for the figures at every tenth iteration: ``figures_seconds``)
        and lane iterations done since the start; what computes, and why that."""
        return {
            "busy_seconds": self.busy_seconds,
            "figures_seconds": self.figures_seconds,
            "lane_iterations": self.lane_iterations,
            "kernel": self._passes.kernel,
            "kernel_reason": self._passes.kernel_reason,
            "gpu_seconds": self._passes.gpu_seconds,
            "gpu_peak_bytes": self._passes.gpu_peak_bytes,
        }

    def notes(self) -> list[tuple[str, dict[str, Any]]]:
        """Events that are to be told, since it was last asked: name and fields."""
        return self._passes.notes.take()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread:
            self._thread.join()
        self._passes.close()

    @staticmethod
    def _leads(lane: _Lane, request: LaneRequest) -> bool:
        """Whether the lane holds the request's next block, or is about to compute it."""
        block = lane.ready.get(request.state.digest)
        if block is None:
            return lane.frontier.digest == request.state.digest
        return block.state.iteration <= request.until

    def _put(self, request: LaneRequest) -> _Lane:
        lane = _Lane(request.candidate, self._grid.lane(request.candidate), request.state, request.until)
        self._lanes[request.candidate] = lane
        return lane

    def _take(self, lane: _Lane, digest: str, until: int) -> list[BlockResult]:
        """The chain of ready blocks from a digest on. The last chain handed out stays, for a caller that asks again."""
        chain: dict[str, BlockResult] = {}
        following = digest
        while following in lane.ready and lane.ready[following].state.iteration <= until:
            chain[following] = lane.ready[following]
            following = chain[following].state.digest
        if not chain:
            raise RuntimeError(f"{lane.candidate.candidate_id}: the block ahead goes beyond iteration {until}")
        keep = set(chain)
        while following in lane.ready:
            keep.add(following)
            following = lane.ready[following].state.digest
        lane.ready = {key: block for key, block in lane.ready.items() if key in keep}
        return list(chain.values())

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not self._closed and not self._work():
                    self._changed.wait()
                if self._closed:
                    return
            try:
                self._pass()
            except BaseException as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return

    def _work(self) -> list[_Lane]:
        return [lane for lane in self._lanes.values() if lane.frontier.iteration < lane.until]

    def _pass(self) -> None:
        """Advance every unfinished lane by one block, or to its next tenth iteration if that comes first."""
        with self._passing:
            started = time.perf_counter()
            with self._changed:
                lanes = self._work()
                tiles = {lane.candidate.meta_neuron for lane in lanes}
                if missing := tiles - set(self._specs):
                    raise KeyError(f"the engine does not know meta-neurons {sorted(missing)}")
                steps = []
                for lane in lanes:
                    self._solvers[lane.candidate.meta_neuron].put(lane.slot, lane.frontier)
                    done = lane.frontier.iteration
                    # whatever the block, trials get every tenth state: that is where they checkpoint
                    ends = (done + every - done % every for every in (self._block, KPI_EVERY))
                    steps.append(min(*ends, lane.until) - done)
            if not lanes:
                return
            records: dict[int, list[np.ndarray]] = {k: [] for k in tiles}
            kpis: dict[Candidate, dict[str, Any]] = {}
            figures = 0.0
            for begin, end in pairwise([0, *sorted(set(steps))]):
                active = _masks([lane for lane, own in zip(lanes, steps, strict=True) if own > begin])
                for _ in range(end - begin):
                    self._iterate(active, records)
                due = [
                    lane for lane, own in zip(lanes, steps, strict=True)
                    if own == end and (self._at(lane) % KPI_EVERY == 0 or self._at(lane) == lane.until)
                ]  # fmt: skip
                if due:
                    figures -= time.perf_counter()
                    self._evaluate(due, kpis)
                    figures += time.perf_counter()
            seconds = time.perf_counter() - started
            with self._changed:
                for lane, own in zip(lanes, steps, strict=True):
                    state = self._solvers[lane.candidate.meta_neuron].get(lane.slot)
                    before = lane.frontier.digest
                    rows = np.stack([one[lane.slot] for one in records[lane.candidate.meta_neuron][:own]])
                    self.lane_iterations += own
                    told = (kpis[lane.candidate],) if lane.candidate in kpis else ()
                    lane.ready[before] = BlockResult(lane.candidate, before, state, rows, told, seconds / len(lanes))
                    lane.frontier = replace(state)
                self.busy_seconds += seconds
                self.figures_seconds += figures
                self._changed.notify_all()

    def _at(self, lane: _Lane) -> int:
        return int(self._solvers[lane.candidate.meta_neuron].iteration[lane.slot])

    def _iterate(self, active: dict[int, np.ndarray], records: dict[int, list[np.ndarray]]) -> None:
        """One iteration of the lanes that are ``active``, by meta-neuron; its rows are added to ``records``."""
        solvers = {k: self._solvers[k] for k in active}
        gradients = self._passes.gradients({k: solver.point for k, solver in solvers.items()}, active)
        for k, rows in step_together(solvers, gradients, active).items():
            records[k].append(rows)

    def _evaluate(self, due: list[_Lane], kpis: dict[Candidate, dict[str, Any]]) -> None:
        active = _masks(due)
        solvers = {k: self._solvers[k] for k in active}
        thetas = {k: solver.theta for k, solver in solvers.items()}
        training, validation = self._passes.gradients(thetas, active), self._passes.validate(thetas, active)
        penalties = {k: penalty(solver.theta, solver.l1, solver.l2) for k, solver in solvers.items()}
        gaps = {
            k: optimality_gap(solver.theta, training[k][1], solver.l1, solver.l2) for k, solver in solvers.items()
        }  # fmt: skip
        for lane in due:
            k, slot = lane.candidate.meta_neuron, lane.slot
            spec, loss = self._specs[k], training[k][0]
            mean, counts = validation[k]
            theta = thetas[k][:, slot]
            figures = validation_figures(
                float(mean[slot]), counts[slot], theta, len(spec.view), spec.log_variance
            )  # fmt: skip
            kpis[lane.candidate] = {
                "iter": self._at(lane),
                "train_loss": float(loss[slot]),
                "fit_objective": float(loss[slot] + penalties[k][slot]),
                "optimality_gap": float(gaps[k][slot]),
                "val_positives": counts[slot].positives,
                "val_negatives": counts[slot].negatives,
                "val_true_positives": counts[slot].true_positives.tolist(),
                "val_false_positives": counts[slot].false_positives.tolist(),
                **vars(figures),
            }


def _masks(lanes: list[_Lane]) -> dict[int, np.ndarray]:
    """Which columns of each meta-neuron's tile some lanes take: bool (TILE,); meta-neurons in order."""
    masks = {k: np.zeros(TILE, bool) for k in sorted({lane.candidate.meta_neuron for lane in lanes})}
    for lane in lanes:
        masks[lane.candidate.meta_neuron][lane.slot] = True
    return masks
