"""Losses that mind the shape of a sheet rather than its volume: centreline Dice, and recall of the label's skeleton."""

from __future__ import annotations

import torch
from torch.nn import functional

#: Rounds of thinning: a sheet labelled three voxels thick is thin after two.
ROUNDS = 3


def soft_skeleton(mask: torch.Tensor, rounds: int = ROUNDS) -> torch.Tensor:
    """The differentiable skeleton of soft masks (N, 1, D, H, W) in 0..1 (Shit et al. 2021).

    What an opening (erosion by the cross, then dilation by the box) takes away is kept, round after round of erosion.
    On a binary mask it is a morphological skeleton (Lantuejoul).
    """
    skeleton = functional.relu(mask - _dilated(_eroded(mask)))
    for _ in range(rounds):
        mask = _eroded(mask)
        gone = functional.relu(mask - _dilated(_eroded(mask)))
        skeleton = skeleton + functional.relu(gone - skeleton * gone)
    return skeleton


def cldice_loss(probability: torch.Tensor, label: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """1 - centreline Dice of each sample, (N,): the harmonic mean of how much of each skeleton lies in the other mask.

    ``probability``, ``label``, ``valid`` (N, 1, D, H, W); what is not valid is background to both.
    """
    found, wanted = probability * valid, label * valid
    found_skeleton, wanted_skeleton = soft_skeleton(found), soft_skeleton(wanted)
    precision = (_sum(found_skeleton * wanted) + 1.0) / (_sum(found_skeleton) + 1.0)
    recall = (_sum(wanted_skeleton * found) + 1.0) / (_sum(wanted_skeleton) + 1.0)
    return 1.0 - 2.0 * precision * recall / (precision + recall)


def skeleton_recall_loss(probability: torch.Tensor, label: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """1 - the share of the label's skeleton that is found, (N,) (after Kirchhoff et al. 2024); cheaper than clDice."""
    skeleton = soft_skeleton(label * valid)
    return 1.0 - (_sum(skeleton * probability) + 1.0) / (_sum(skeleton) + 1.0)


def _eroded(mask: torch.Tensor) -> torch.Tensor:
    """The smallest value within the cross; outside the patch nothing is smaller."""
    lines = [functional.max_pool3d(-mask, edges, 1, tuple(edge // 2 for edge in edges))
             for edges in ((3, 1, 1), (1, 3, 1), (1, 1, 3))]  # fmt: skip
    return -torch.maximum(torch.maximum(lines[0], lines[1]), lines[2])


def _dilated(mask: torch.Tensor) -> torch.Tensor:
    return functional.max_pool3d(mask, 3, 1, 1)


def _sum(values: torch.Tensor) -> torch.Tensor:
    return values.flatten(1).sum(1)
