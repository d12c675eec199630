"""The student's network in its forms."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from student_specs import small

from nx46vx.errors import UsageError
from nx46vx.settings import StudentSettings, load_settings
from nx46vx.student.channels import channel_count
from nx46vx.student.spec import StudentSpec, Variant
from nx46vx.student.unet import build_network, to_cells, to_voxels

CHANNELS = channel_count(True)
FORMS = list(itertools.product(["3d", "2.5d"], [False, True], [False, True], [1, 2]))


def spec(variant: Variant = "3d", **changes: Any) -> StudentSpec:
    return StudentSpec("run", 0, variant, small(**changes), (), (), 1)


@pytest.mark.parametrize(("variant", "multi_scale", "attention", "cell"), FORMS)
def test_every_form_gives_a_logit_per_voxel_and_coarser_ones(
    variant: Variant, multi_scale: bool, attention: bool, cell: int
) -> None:
    given = spec(variant, multi_scale=multi_scale, attention=attention, cell=cell, levels=3, slab=[4, 16, 24])
    shape = (16, 16, 16) if variant == "3d" else (4, 16, 24)
    net = build_network(given, 0)
    outputs = net(torch.randn(2, CHANNELS, *shape))
    assert [tuple(one.shape[:2]) for one in outputs] == [(2, 1)] * 2
    assert tuple(outputs[0].shape[2:]) == shape
    coarser = [edge // (2 * cell) for edge in shape]
    assert list(outputs[1].shape[2:]) == (coarser if variant == "3d" else [shape[0], *coarser[1:]])
    assert len(build_network(spec(variant, deep_supervision=False), 0)(torch.randn(1, CHANNELS, *shape))) == 1


@pytest.mark.parametrize("variant", ["3d", "2.5d"])
def test_all_weights_of_a_form_get_a_gradient(variant: Variant) -> None:
    given = spec(variant, multi_scale=True, attention=True)
    net = build_network(given, 0)
    outputs = net(torch.randn(2, CHANNELS, *given.patch), torch.ones(2, net.net.bottleneck))
    sum(one.square().mean() for one in outputs).backward()  # type: ignore[union-attr]
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("variant", "attention"), itertools.product(["3d", "2.5d"], [False, True]))
def test_a_samples_logits_do_not_depend_on_its_company(variant: Variant, attention: bool) -> None:
    given = spec(variant, attention=attention)
    net = build_network(given, 0)
    x = torch.randn(3, CHANNELS, *given.patch)
    torch.testing.assert_close(net(x)[0][1:2], net(x[1:2])[0], rtol=1e-4, atol=1e-5)


def test_a_slice_of_the_flat_form_sees_its_neighbours_and_no_further() -> None:
    given = spec("2.5d", context_slices=3, slab=[8, 16, 16])
    net = build_network(given, 0)
    x = torch.randn(1, CHANNELS, 8, 16, 16)
    changed = x.clone()
    changed[:, :, 6] += 1
    differs = (net(x)[0] != net(changed)[0]).flatten(3).any(3)[0, 0]
    assert differs.tolist() == [False] * 5 + [True] * 3


def test_cells_are_taken_apart_and_put_together_without_loss() -> None:
    x = torch.randn(2, 1, 8, 12, 4)
    assert torch.equal(to_voxels(to_cells(x, 2), 2), x)
    flat = torch.randn(2, 3, 8, 4)
    assert torch.equal(to_cells(flat, 2), torch.nn.functional.pixel_unshuffle(flat, 2))


def test_the_untrained_network_expects_little_surface() -> None:
    logits = build_network(spec(), 0)(torch.randn(1, CHANNELS, 16, 16, 16))[0]
    assert 0.02 < float(torch.sigmoid(logits).mean().detach()) < 0.3


def test_weights_come_from_the_seed_and_leave_torchs_own_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, same, other = (build_network(spec(), seed) for seed in (5, 5, 6))
    assert torch.equal(before, torch.get_rng_state())
    weights = [torch.cat([p.flatten() for p in net.parameters()]) for net in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("student.patch", [20, 16, 16], "student: patch (20, 16, 16)"),
        ("student.slab", [4, 16, 20], "student: slab (16, 20)"),
        ("student.context_slices", 4, "context_slices has to be odd"),
        ("student.steps_per_epoch", 7, "multiple of patches_per_visit"),
        ("student.enabled", "maybe", "student.enabled"),
    ],
)
def test_impossible_shapes_are_refused_by_name(key: str, value: Any, told: str) -> None:
    with pytest.raises(UsageError) as refused:
        load_settings(None, overrides={"student.levels": 4, "student.patch": [64, 64, 64], key: value}, environ={})
    assert told in str(refused.value)


def test_what_only_says_how_it_is_run_does_not_change_what_is_learned() -> None:
    base = spec().signature
    assert spec(checkpoint_steps=7, loader_workers=2, tta=False, overlap=0.2).signature == base
    assert spec(learning_rate=0.01).signature != base and spec("2.5d").signature != base
    assert StudentSettings().enabled is False
