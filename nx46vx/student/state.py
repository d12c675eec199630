"""A training's whole state as arrays and plain data, for the checkpoint store, and back, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from nx46vx.errors import IncompatibleError
from nx46vx.runtime.checkpoint.store import Checkpoint
from nx46vx.student.trainer import Trainer

_NETWORKS = ("model", "ema", "best")


def arrays_of(trainer: Trainer) -> dict[str, np.ndarray]:
    """The model, its running average, the best average so far, and both moments of the optimiser."""
    arrays = {}
    for part, net in _networks(trainer).items():
        for name, parameter in net.named_parameters():
            arrays[f"{part}/{name}"] = _array(parameter)
    for name, parameter in trainer.net.named_parameters():
        moments = trainer.optimizer.state.get(parameter)
        if moments:
            arrays[f"adam_first/{name}"] = _array(moments["exp_avg"])
            arrays[f"adam_second/{name}"] = _array(moments["exp_avg_sq"])
    return arrays


def model_state_of(trainer: Trainer) -> dict[str, Any]:
    """Counters, early stopping and what was fitted to the machine."""
    return {
        "signature": trainer.spec.signature, "variant": trainer.spec.variant, "iterations": trainer.steps_done,
        "epoch": trainer.epoch, "step": trainer.step, "updates": trainer.updates, "skipped": trainer.skipped,
        "loss_sum": trainer.loss_sum, "stopping": trainer.stopping.to_json(), "micro_batch": trainer.micro_batch,
        "parameters": sum(parameter.numel() for parameter in trainer.net.parameters()),
    }  # fmt: skip


def optimizer_state_of(trainer: Trainer) -> dict[str, Any]:
    settings, spec = trainer.spec.settings, trainer.spec
    return {
        "optimizer": {"name": "adamw", "updates": trainer.updates},
        "scheduler": {"name": "cosine", "step": trainer.steps_done, "total": spec.total_steps,
                      "highest": settings.learning_rate, "warmup_share": settings.warmup_share},
        "scaler": trainer.scaler.state_dict(),
    }  # fmt: skip


def rng_of(trainer: Trainer) -> dict[str, Any]:
    """Generators: torch's draws the dropout, NumPy's the epochs' seeds, Python's the order of the cases."""
    return {
        "torch": trainer.dropout_rng.get_state().numpy(),
        "numpy": trainer.order.seeds.bit_generator.state,
        "python": trainer.order.rng.getstate(),
    }


def load_state(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Go on from a checkpoint.

    Raises:
        IncompatibleError: it is that of another student.
        IntegrityError: its payload is damaged.
    """
    manifest = checkpoint.manifest
    state: Mapping[str, Any] = manifest["model_state"]
    if state.get("signature") != trainer.spec.signature:
        raise IncompatibleError(
            "this student was begun with other settings or cases", where=checkpoint.path, found=state.get("signature"),
            fix="restore them, choose another --out, or pass --retrain-mismatched",
        )  # fmt: skip
    arrays = checkpoint.arrays()
    with torch.no_grad():
        for part, net in _networks(trainer).items():
            for name, parameter in net.named_parameters():
                parameter.copy_(torch.from_numpy(arrays[f"{part}/{name}"]))
    updates = int(state["updates"])
    for name, parameter in trainer.net.named_parameters():
        if f"adam_first/{name}" in arrays:
            trainer.optimizer.state[parameter] = {
                "step": torch.tensor(float(updates)),
                "exp_avg": _like(parameter, arrays[f"adam_first/{name}"]),
                "exp_avg_sq": _like(parameter, arrays[f"adam_second/{name}"]),
            }
    if trainer.scaler.is_enabled():
        trainer.scaler.load_state_dict(dict(manifest["optimizer_state"]["scaler"]))
    trainer.dropout_rng.set_state(torch.from_numpy(checkpoint.rng_state("torch")))
    trainer.order.seeds.bit_generator.state = checkpoint.rng_state("numpy")
    trainer.order.rng.setstate(checkpoint.rng_state("python"))
    trainer.order.load(manifest["data_cursor"]["order"])
    trainer.stopping.load(state["stopping"])
    trainer.epoch, trainer.step, trainer.updates = int(state["epoch"]), int(state["step"]), updates
    trainer.skipped, trainer.loss_sum = int(state["skipped"]), float(state["loss_sum"])
    trainer.micro_batch = state["micro_batch"]
    trainer.last = dict(manifest["best_metrics"])
    trainer.seconds = float(trainer.last.pop("seconds", 0.0))


def _networks(trainer: Trainer) -> dict[str, torch.nn.Module]:
    return dict(zip(_NETWORKS, (trainer.net, trainer.average, trainer.best), strict=True))


def _array(tensor: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().cpu().numpy()).reshape(tensor.shape)


def _like(parameter: torch.Tensor, array: np.ndarray) -> torch.Tensor:
    moments = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return moments.copy_(torch.from_numpy(array))
