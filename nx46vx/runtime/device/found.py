"""GPUs as they were found, and the choice that follows: plain data that goes through JSON and between processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """A GPU that ran a kernel. ``index`` counts as torch does in this process, ``id`` is how
    ``CUDA_VISIBLE_DEVICES`` names it."""

    index: int
    id: str
    name: str
    total_bytes: int
    free_bytes: int
    capability: str

    @property
    def kind(self) -> str:
        """What decides bits."""
        return f"{self.name} (sm_{self.capability})"


@dataclass(frozen=True)
class Probe:
    """What trying every GPU showed. ``failures``: in words, one for each GPU that is visible and cannot be used."""

    gpus: tuple[Gpu, ...]
    failures: tuple[str, ...]
    reason: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Probe:
        return cls(tuple(Gpu(**gpu) for gpu in value["gpus"]), tuple(value["failures"]), str(value["reason"]))


@dataclass(frozen=True)
class DeviceChoice:
    """``name`` is ``cpu`` or ``cuda``; ``gpus`` are those to use, the first one first; ``reason`` in words.

    ``failures``: GPUs that are there and were left out because they do not work.
    """

    name: str
    gpus: tuple[Gpu, ...] = ()
    reason: str = ""
    failures: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return len(self.gpus)

    @property
    def label(self) -> str:
        """What decides bits: ``cpu``, or the kinds of GPU."""
        if not self.gpus:
            return self.name
        return "cuda: " + ", ".join(sorted({gpu.kind for gpu in self.gpus}))


CPU = DeviceChoice("cpu", reason="asked for")
