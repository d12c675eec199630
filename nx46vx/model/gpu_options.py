"""What an engine on a GPU may do otherwise: products in TF32, compiled curves, passes as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from nx46vx.errors import in_words
from nx46vx.model.notes import Notes

#: Logits (TILE, n) and weights (n,) to softplus, and to sigmoid times the weight; (TILE, n) each.
Curves = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

#: Sets of tiles that are recorded; what comes after is computed step by step.
MOST_GRAPHS = 8


def plain_curves(z: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The curves, operation by operation. ``z`` may be overwritten."""
    return torch.nn.functional.softplus(z), torch.sigmoid_(z).mul_(weight)


class CurvesInUse:
    """Compiled curves until a call of them fails, with a word, and plain ones from then on.

    The trial before the first pass cannot see all that may go wrong later: another length that is compiled for itself,
    torch's giving up after some compilations, a kernel that finds no memory. What was found equal enough then may take
    the place of the other at any call.
    """

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self.curves: Curves = plain_curves

    def of(
        self, logits: Callable[[], torch.Tensor], weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """The curves of ``logits()``, which is asked again after a failure: those given away may be overwritten."""
        if self.curves is not plain_curves:
            z = logits()
            try:
                return self.curves(z, weight)
            except Exception as error:
                self.curves = plain_curves
                self._notes.add("GPU_OPTION_FALLBACK", option="compile", reason=in_words(error))
            del z
        return plain_curves(logits(), weight)


class Products:
    """How matrix products are computed: in float32, or reduced (TF32) once that is allowed."""

    def __init__(self, device: torch.device) -> None:
        self.reduced = False
        self._device = device

    @property
    def available(self) -> bool:
        """Whether this GPU has TF32."""
        return self._device.type == "cuda" and torch.cuda.get_device_capability(self._device)[0] >= 8

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Products in float32."""
        with self._set(False):
            yield

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """Products as they were found good."""
        with self._set(self.reduced):
            yield

    @contextmanager
    def tried(self) -> Iterator[None]:
        """Reduced products, to see what comes out."""
        with self._set(True):
            yield

    @contextmanager
    def _set(self, reduced: bool) -> Iterator[None]:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = reduced
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before


class Graphs:
    """Passes recorded as CUDA graphs, one for each set of tiles. The first failure ends it, with a word."""

    def __init__(self, device: torch.device, notes: Notes) -> None:
        self._device, self._notes = device, notes
        self._recorded: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]] = {}
        self._broken = False

    def run(
        self, key: tuple[int, ...], weights: torch.Tensor, work: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """``work(weights)``, replayed if this set of tiles was recorded."""
        if not self._broken and key not in self._recorded and len(self._recorded) < MOST_GRAPHS:
            try:
                self._recorded[key] = self._record(weights, work)
                self._notes.add("GPU_OPTION_DECISION", option="cuda_graphs", used=True, tiles=list(key))
            except Exception as error:  # torch and CUDA have many kinds of their own
                self._broken = True
                self._notes.add("GPU_OPTION_FALLBACK", option="cuda_graphs", reason=in_words(error))
        if self._broken or key not in self._recorded:
            return work(weights)
        graph, given, found = self._recorded[key]
        given.copy_(weights)
        graph.replay()
        return found

    def _record(
        self, weights: torch.Tensor, work: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, torch.Tensor]:
        given = weights.clone()
        with torch.cuda.device(self._device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                work(given)  # libraries make what they need before recording
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                found = work(given)
            graph.replay()
            expected = work(given)
            if not torch.equal(found, expected):
                raise RuntimeError("the recorded pass gives other bits")
        return graph, given, found
