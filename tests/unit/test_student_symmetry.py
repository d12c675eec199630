"""Symmetries move image and label together, and the recto stays the face that looks at the scroll's axis."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from nx46vx.data.synthetic_sheets import BORDER, Scroll, SheetGeometry
from nx46vx.data.synthetic_texture import Texture
from nx46vx.student.symmetry import Symmetry, allowed, for_averaging


def test_the_groups_have_their_known_orders() -> None:
    assert len(allowed("none", (8, 8, 8))) == 1
    assert len(allowed("axial", (8, 8, 8))) == 16  # D4h
    assert len(allowed("all", (8, 8, 8))) == 48  # Oh
    assert len(allowed("all", (4, 8, 8))) == 16  # those that keep a flat patch's shape
    assert len(allowed("all", (4, 6, 8))) == 8


@pytest.mark.parametrize("group", ["axial", "all"])
def test_each_group_is_closed_and_every_member_has_its_inverse(group: str) -> None:
    members = allowed(group, (3, 3, 3))  # type: ignore[arg-type]
    block = np.arange(27).reshape(3, 3, 3)
    images = {member.of_array(block).tobytes() for member in members}
    assert len(images) == len(members) and members[0].is_identity
    for one, other in itertools.product(members, members[:7]):
        assert other.of_array(one.of_array(block)).tobytes() in images
    for member in members:
        assert np.array_equal(member.inverse.of_array(member.of_array(block)), block)


def test_axial_symmetries_leave_the_z_axis_where_it_is() -> None:
    assert {member.axes[0] for member in allowed("axial", (4, 4, 4))} == {0}
    assert {member.axes[0] for member in allowed("all", (4, 4, 4))} == {0, 1, 2}


def test_arrays_and_tensors_move_alike() -> None:
    block = np.random.default_rng(0).random((2, 1, 4, 4, 4))
    for member in allowed("all", (4, 4, 4)):
        moved = member.of_tensor(torch.from_numpy(block))
        assert np.array_equal(moved.numpy(), member.of_array(block))


def test_averaging_takes_few_of_many_and_the_identity_first() -> None:
    group = allowed("all", (4, 4, 4))
    chosen = for_averaging(group)
    assert len(chosen) == 8 == len(set(chosen)) and chosen[0].is_identity
    assert for_averaging(allowed("none", (4, 4, 4))) == (Symmetry(),)


def test_the_label_stays_the_face_towards_the_axis_under_every_symmetry() -> None:
    """Walking from a labelled voxel away from the axis leads into papyrus, towards the axis into the gap before it:
    in the volume as it is and in all 47 others, reflections among them."""
    shape = (48, 48, 48)
    geometry = SheetGeometry(shape, Scroll.draw(3), np.random.default_rng(5))
    image, label = Texture(geometry, np.random.default_rng(6)).render().astype(float), geometry.label()
    outward = geometry.radial  # (z, y, x), away from the axis; nearly constant over a small volume
    steps = 5.0 * outward
    seen = []
    for symmetry in allowed("all", shape):
        moved_image, moved_label = symmetry.of_array(image), symmetry.of_array(label)
        step = np.array([steps[axis] for axis in symmetry.axes])
        step = np.where(symmetry.flips, -step, step)
        inner = (slice(BORDER + 6, -BORDER - 6),) * 3
        places = np.argwhere(moved_label[inner] == 1) + BORDER + 6
        behind = moved_image[tuple(np.rint(places + step).astype(int).T)].mean()
        before = moved_image[tuple(np.rint(places - step).astype(int).T)].mean()
        seen.append((behind, before))
        assert behind > before + 10
    assert len(seen) == 48
