"""How an engine may compute on a GPU. Each option is tried at the start and left out, with a word, if it fails."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineOptions:
    """``mixed_precision``: TF32 products where the objective agrees; ``compile``: torch.compile; ``cuda_graphs``:
    passes recorded once and replayed. None of them means anything to an engine on the CPU."""

    mixed_precision: bool = False
    compile: bool = False
    cuda_graphs: bool = False
