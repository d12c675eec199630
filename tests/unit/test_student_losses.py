"""The student's losses: only labelled voxels count, and thin sheets are held together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, log_loss
from student_specs import small

from nx46vx.student.losses import cross_entropy_loss, dice_loss, sample_losses
from nx46vx.student.topology import cldice_loss, skeleton_recall_loss, soft_skeleton


def drawn(shape: tuple[int, ...] = (2, 1, 8, 8, 8), seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randint(0, 3, shape, generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("topology", ["none", "cldice", "skeleton_recall"])
def test_ignored_voxels_change_no_loss_and_get_no_gradient(topology: str) -> None:
    logits, label = drawn()
    settings = small(topology_loss=topology)
    coarse = torch.zeros(2, 1, 4, 4, 4)
    given = logits.clone().requires_grad_()
    losses = sample_losses([given, coarse], label, settings)
    losses.sum().backward()
    assert given.grad is not None
    assert (given.grad[label == 2] == 0).all() and (given.grad[label != 2] != 0).any()
    elsewhere = torch.where(label == 2, torch.full_like(logits, 7.0), logits)
    assert torch.equal(sample_losses([elsewhere, coarse], label, settings), losses)


def test_each_sample_has_its_own_loss_whatever_else_is_in_its_batch() -> None:
    logits, label = drawn((3, 1, 8, 8, 8))
    together = sample_losses([logits], label, small(topology_loss="cldice"))
    alone = [sample_losses([logits[k : k + 1]], label[k : k + 1], small(topology_loss="cldice"))[0] for k in range(3)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-6, atol=1e-6)


def test_dice_and_cross_entropy_agree_with_scikit_learn() -> None:
    logits, label = drawn((1, 1, 12, 12, 12))
    surface, valid = (label == 1).float(), (label != 2).float()
    known = (label != 2).numpy().ravel()
    y, p = surface.numpy().ravel()[known], torch.sigmoid(logits).numpy().ravel()[known]
    assert float(cross_entropy_loss(logits, surface, valid)) == pytest.approx(log_loss(y, p.astype(float)), rel=1e-5)
    hard = (torch.sigmoid(logits) > 0.5).float()
    dice = 1 - float(dice_loss(hard, surface, valid))
    assert dice == pytest.approx(f1_score(y, hard.numpy().ravel()[known]), abs=1e-3)  # up to the smoothing


def test_a_patch_without_labelled_voxels_has_a_loss_of_nothing() -> None:
    logits = torch.randn(1, 1, 8, 8, 8, requires_grad=True)
    loss = sample_losses([logits], torch.full((1, 1, 8, 8, 8), 2, dtype=torch.uint8), small())
    loss.sum().backward()
    assert float(loss.detach()) == 0.0 and logits.grad is not None and not logits.grad.any()


def test_coarser_outputs_are_judged_on_the_labelled_share_of_their_cells() -> None:
    label = torch.full((1, 1, 4, 4, 4), 2, dtype=torch.uint8)
    label[..., :2, :2, :2] = torch.tensor([[[1, 1], [0, 2]], [[2, 2], [2, 2]]], dtype=torch.uint8)
    coarse = torch.zeros(1, 1, 2, 2, 2, requires_grad=True)
    sample_losses([torch.zeros(1, 1, 4, 4, 4), coarse], label, small()).sum().backward()
    assert coarse.grad is not None
    assert coarse.grad[0, 0, 0, 0, 0] != 0 and int((coarse.grad != 0).sum()) == 1


def plane(thickness: int, edge: int = 15) -> torch.Tensor:
    mask = torch.zeros(1, 1, edge, edge, edge)
    middle = edge // 2
    mask[:, :, middle - thickness // 2 : middle + thickness // 2 + 1] = 1
    return mask


def test_the_skeleton_of_a_sheet_is_its_middle() -> None:
    for thickness in (1, 3, 5):
        inner = soft_skeleton(plane(thickness))[0, 0, :, 4:-4, 4:-4]
        assert torch.equal(inner, plane(1)[0, 0, :, 4:-4, 4:-4])


@pytest.mark.parametrize("loss", [cldice_loss, skeleton_recall_loss])
def test_a_sheet_torn_apart_costs_more_than_one_made_thinner(loss: object) -> None:
    """The same number of voxels is missing in both."""
    sheet, valid = plane(3), torch.ones(1, 1, 15, 15, 15)
    torn, thin = sheet.clone(), sheet.clone()
    torn[..., 5:10, :] = 0  # a third of the sheet, through all its thickness
    thin[:, :, 6] = 0  # one face of three
    assert torn.sum() == thin.sum()
    costs = [float(loss(one, sheet, valid)) for one in (sheet, thin, torn)]  # type: ignore[operator]
    assert costs[0] == pytest.approx(0, abs=1e-6) and costs[1] < 0.05 and costs[2] > 0.1


def test_the_topology_losses_have_gradients_that_mend_the_tear() -> None:
    sheet = plane(3)
    logits = torch.where(sheet > 0, 3.0, -3.0)
    logits[..., 6:9, :] = -3.0
    logits.requires_grad_()
    skeleton_recall_loss(torch.sigmoid(logits), sheet, torch.ones_like(sheet)).sum().backward()
    gradient = logits.grad
    assert gradient is not None and gradient[0, 0, 7, 7, 7] < 0
    assert np.all(gradient.numpy() <= 0)
