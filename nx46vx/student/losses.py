"""The training loss of each sample: Dice and cross-entropy over the labelled voxels, at several resolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from nx46vx.settings import StudentSettings
from nx46vx.student.spec import IGNORED
from nx46vx.student.topology import cldice_loss, skeleton_recall_loss

#: Voxels added to both sides of Dice's fraction, so that a patch without surface has a defined one.
SMOOTH = 1.0


def sample_losses(outputs: Sequence[torch.Tensor], label: torch.Tensor, settings: StudentSettings) -> torch.Tensor:
    """The loss of each sample, (N,) float32.

    ``outputs``: logits (N, 1, d, h, w), full resolution first; coarser ones count 1/2, 1/4 ... beside it, against the
    share of surface among the labelled voxels below each of theirs. ``label`` (N, 1, D, H, W) of 0, 1 and 2; voxels
    labelled 2 add nothing to the loss and get no gradient from it.
    """
    surface, valid = (label == 1).float(), (label != IGNORED).float()
    total = torch.zeros(label.shape[0], device=label.device)
    weights = [0.5**level for level in range(len(outputs))]
    for logits, weight in zip(outputs, weights, strict=True):
        wanted, counted = _at_resolution(surface, valid, logits.shape[2:])
        logits = logits.float()
        total = total + weight / sum(weights) * (
            dice_loss(torch.sigmoid(logits), wanted, counted) + cross_entropy_loss(logits, wanted, counted)
        )
    if settings.topology_loss != "none" and settings.topology_weight > 0:
        loss = cldice_loss if settings.topology_loss == "cldice" else skeleton_recall_loss
        total = total + settings.topology_weight * loss(torch.sigmoid(outputs[0].float()), surface, valid)
    return total


def dice_loss(probability: torch.Tensor, wanted: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """1 - 2 sum(p y) / (sum p^2 + sum y^2) over each sample's valid voxels, (N,) (Milletari et al. 2016)."""
    both = _sum(probability * wanted * valid)
    each = _sum(probability * probability * valid) + _sum(wanted * wanted * valid)
    return 1.0 - (2.0 * both + SMOOTH) / (each + SMOOTH)


def cross_entropy_loss(logits: torch.Tensor, wanted: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy over each sample's valid voxels, (N,), in nats; 0 where there are none."""
    each = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return _sum(each * valid) / _sum(valid).clamp_min(1.0)


def _at_resolution(
    surface: torch.Tensor, valid: torch.Tensor, shape: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Share of surface among the valid voxels, and share of valid ones, in the cells of a coarser grid."""
    if tuple(shape) == tuple(surface.shape[2:]):
        return surface, valid
    cell = [fine // coarse for fine, coarse in zip(surface.shape[2:], shape, strict=True)]
    counted = functional.avg_pool3d(valid, cell)
    return functional.avg_pool3d(surface * valid, cell) / counted.clamp_min(1e-6), counted


def _sum(values: torch.Tensor) -> torch.Tensor:
    return values.flatten(1).sum(1)
