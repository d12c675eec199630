"""Passes over the samples for many tiles at once: the sums that the solver asks for.

On the CPU a kernel does the work, compiled when first wanted; on a GPU torch does, and on a CPU where the kernel cannot
be had. Either way a lane's bits depend neither on the other lanes, nor on its place, nor on the number of threads.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Literal, Protocol

import numpy as np

from nx46vx.model.metrics import Counts
from nx46vx.model.neuron import NeuronSpec, bootstrap
from nx46vx.model.notes import Notes
from nx46vx.model.options import EngineOptions
from nx46vx.model.samples import FitData
from nx46vx.runtime.digest import digest_array

#: What computes: machine code made by LLVM, or torch.
KernelName = Literal["llvm", "torch"]


class _Backend(Protocol):
    """What does the work behind ``Passes``; ``add`` may raise anything when the kernel cannot be compiled."""

    def add(self, spec: NeuronSpec, multiplicity: np.ndarray) -> None: ...
    def gradients(
        self, thetas: Mapping[int, np.ndarray], lanes: Mapping[int, np.ndarray] | None = None
    ) -> dict[int, tuple[np.ndarray, np.ndarray]]: ...
    def validate(
        self, thetas: Mapping[int, np.ndarray], lanes: Mapping[int, np.ndarray] | None = None
    ) -> dict[int, tuple[np.ndarray, list[Counts]]]: ...
    def close(self) -> None: ...


class Passes:
    """The samples of a fit on one device, and the sums over them.

    ``kernel`` says what computes, ``kernel_reason`` why. ``prefer="torch"`` leaves the kernel alone.
    """

    def __init__(
        self, data: FitData, *, seed: int, device: str = "cpu", threads: int = 1, prefer: KernelName = "llvm",
        options: EngineOptions | None = None,
    ) -> None:  # fmt: skip
        self.data, self.seed, self.device, self.threads = data, seed, device, threads
        self.options, self.notes = options or EngineOptions(), Notes()
        self.kernel: KernelName = "torch"
        self.kernel_reason = "asked for"
        self._known: list[tuple[NeuronSpec, np.ndarray]] = []
        self._backend: _Backend
        if device.partition(":")[0] != "cpu":
            self.kernel_reason = f"the device is {device}"
        elif prefer == "llvm":
            try:
                self._backend = importlib.import_module("nx46vx.model.kernel_passes").KernelPasses(
                    data, threads=threads
                )
                self.kernel, self.kernel_reason = "llvm", "the device is cpu"
                return
            except Exception as error:
                self.kernel_reason = _why(error)
        self._backend = self._torch()

    def add(self, spec: NeuronSpec) -> None:
        """Make a meta-neuron known; its bootstrap is drawn again and compared with the spec's digest.

        Raises:
            ValueError: the bootstrap is another one.
        """
        drawn = bootstrap(self.data, self.seed, spec.meta_neuron)
        if digest_array(drawn) != spec.weights_digest:
            raise ValueError(f"the bootstrap of meta-neuron {spec.meta_neuron} differs from the plan's")
        try:
            self._backend.add(spec, drawn)
        except Exception as error:
            if self.kernel == "torch":
                raise
            self._backend.close()
            self.kernel, self.kernel_reason = "torch", _why(error)
            self._backend = self._torch()
            for known in (*self._known, (spec, drawn)):
                self._backend.add(*known)
        self._known.append((spec, drawn))

    def gradients(
        self, thetas: Mapping[int, np.ndarray], lanes: Mapping[int, np.ndarray] | None = None
    ) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Weighted mean cross-entropy (TILE,) and its gradient (3F + 1, TILE) of each meta-neuron's lanes.

        ``thetas`` maps meta-neurons to float64 (3F + 1, TILE). ``lanes`` maps them to the lanes that are wanted, bool
        (TILE,), all unless given; the figures of the others mean nothing. One pass over the samples serves them all.
        """
        return self._backend.gradients(thetas, lanes)

    def validate(
        self, thetas: Mapping[int, np.ndarray], lanes: Mapping[int, np.ndarray] | None = None
    ) -> dict[int, tuple[np.ndarray, list[Counts]]]:
        """Mean cross-entropy (TILE,) and threshold counts of each lane on the validation samples, prior corrected."""
        return self._backend.validate(thetas, lanes)

    @property
    def gpu_seconds(self) -> float:
        """Seconds that a GPU spent in passes, synchronised."""
        return getattr(self._backend, "gpu_seconds", 0.0)

    @property
    def gpu_peak_bytes(self) -> int:
        """Most memory of the GPU that was taken at once."""
        return getattr(self._backend, "gpu_peak_bytes", 0)

    def close(self) -> None:
        self._backend.close()

    def _torch(self) -> _Backend:
        if self.device.partition(":")[0] != "cpu":
            from nx46vx.model.passes_gpu import GpuPasses

            return GpuPasses(self.data, device=self.device, options=self.options, notes=self.notes)
        from nx46vx.model.passes_torch import TorchPasses  # takes seconds to import, and only here is it wanted

        return TorchPasses(self.data, threads=self.threads)


def _why(error: Exception) -> str:
    return f"the kernel cannot be had: {type(error).__name__}: {error}"
