"""Training patches are functions of seeds: the same whoever reads them, in whatever process, from any step on."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from student_specs import cases_of, cut_cases_of, spec_of

from nx46vx.data.cases import Case
from nx46vx.features.reference import measure_reference
from nx46vx.runtime.sink import MemorySink
from nx46vx.student import loader as loader_room
from nx46vx.student import patches as patches_room
from nx46vx.student.channels import channels_of, standardised
from nx46vx.student.loader import LoaderPlan, PatchLoader, choose_loader
from nx46vx.student.order import EpochOrder
from nx46vx.student.patches import PatchSource, Visit, cut, read_pair
from nx46vx.student.spec import StudentSpec
from nx46vx.student.symmetry import allowed


@pytest.fixture(scope="module")
def cases(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return cases_of(tiny_data, tmp_path_factory.mktemp("book") / "digests.json")


@pytest.fixture(scope="module")
def cut_cases(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return cut_cases_of(tiny_data, tmp_path_factory.mktemp("cut"))


def order_of(cases: int, seed: int = 0, visits: int = 6) -> EpochOrder:
    order = EpochOrder(cases, random.Random(seed), np.random.default_rng(seed))
    order.begin(visits)
    return order


def batches(spec: StudentSpec, plan: LoaderPlan, first_step: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader = PatchLoader(spec, plan)
    try:
        return list(loader.batches(order_of(len(spec.train)), first_step))
    finally:
        loader.close()


def same(one: list[tuple[torch.Tensor, torch.Tensor]], other: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True)
    )


def test_the_batches_are_the_same_whatever_reads_them(cut_cases: list[Case]) -> None:
    spec = spec_of(cut_cases)
    here = batches(spec, LoaderPlan())
    assert [tuple(image.shape) for image, _ in here] == [(3, 2, 16, 16, 16)] * 4
    assert {image.dtype for image, _ in here} == {torch.float32} and {label.dtype for _, label in here} == {torch.uint8}
    assert same(batches(spec, LoaderPlan(1, 2)), here)
    assert same(batches(spec, LoaderPlan(2, 4)), here)


def test_an_epoch_goes_on_from_any_of_its_steps(cut_cases: list[Case]) -> None:
    spec = spec_of(cut_cases)
    whole = batches(spec, LoaderPlan())
    for step in range(1, 4):
        assert same(batches(spec, LoaderPlan(), step), whole[step:])


def test_every_case_comes_once_before_any_comes_again() -> None:
    order = EpochOrder(5, random.Random(1), np.random.default_rng(1))
    seen: list[int] = []
    seeds = set()
    for _ in range(5):
        order.begin(3)
        seen += order.visits
        seeds.add(order.seed)
    assert [sorted(seen[k : k + 5]) for k in range(0, 15, 5)] == [list(range(5))] * 3
    assert len(seeds) == 5


def test_an_order_goes_on_from_its_state() -> None:
    one = EpochOrder(7, random.Random(1), np.random.default_rng(1))
    one.begin(3)
    other = EpochOrder(7, random.Random(9), np.random.default_rng(9))
    other.rng.setstate(one.rng.getstate())
    other.seeds.bit_generator.state = one.seeds.bit_generator.state
    other.load(one.to_json())
    assert list(other.groups(2)) == list(one.groups(2))
    for order in (one, other):
        order.begin(9)
    assert (one.visits, one.seed) == (other.visits, other.seed)


def test_image_and_label_of_a_patch_lie_on_each_other(cases: list[Case]) -> None:
    """Every patch is found in the case, at one and the same place and in one and the same position."""
    spec = spec_of(cases, intensity_noise=0.0, symmetries="all", patches_per_visit=4)
    images, labels = PatchSource(spec)[Visit(0, 5, 0)]
    volume, label = read_pair(spec.train[0])
    grey = standardised(np.asarray(volume), measure_reference(volume))
    windows = np.lib.stride_tricks.sliding_window_view(grey, (16, 16, 16))
    moved = 0
    for image, mark in zip(images[:, 0], labels[:, 0], strict=True):
        found = []
        for number, symmetry in enumerate(spec.symmetries):
            back = symmetry.inverse.of_array(image)
            for place in np.argwhere(windows[..., 0, 0, 0] == back[0, 0, 0]):
                if np.array_equal(windows[tuple(place)], back):
                    z, y, x = place
                    assert np.array_equal(label[z : z + 16, y : y + 16, x : x + 16], symmetry.inverse.of_array(mark))
                    found.append(number)
        assert len(found) == 1
        moved += found[0] > 0
    assert moved >= 2


def test_most_patches_hold_surface_and_hardly_any_is_all_ignored(cases: list[Case]) -> None:
    spec = spec_of(cases, surface_share=1.0, patches_per_visit=4)
    for case in range(len(spec.train)):
        _, labels = PatchSource(spec)[Visit(case, 1, case)]
        assert all((label == 1).any() for label in labels)
    anywhere = spec_of(cases, surface_share=0.0, patches_per_visit=4)
    shares = [float((label != 2).mean()) for label in PatchSource(anywhere)[Visit(0, 1, 0)][1]]
    assert min(shares) > 0


def test_a_volume_smaller_than_a_patch_is_mirrored_and_its_label_ignored_there() -> None:
    volume = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    place = (slice(0, 3), slice(0, 2), slice(0, 4))
    assert cut(volume, place, "reflect")[2, 0].tolist() == [4, 5, 5, 4]
    padded = cut(volume, place, 2)
    assert (padded[2] == 2).all() and (padded[:, :, 2:] == 2).all() and padded[1, 1, 1] == 7


def test_the_slope_tells_the_labelled_face_from_the_other_one(cases: list[Case]) -> None:
    """It is steeper up into the sheet at labelled voxels than anywhere else on average."""
    right = 0
    for case in cases:
        image, label = read_pair(case)
        reference = measure_reference(image)
        seen = channels_of(standardised(image, reference), reference, True)
        assert seen.shape == (2, *image.shape) and seen.dtype == np.float32
        right += seen[1][label == 1].mean() > 0.3 * seen[1].std()
    assert right == len(cases)
    assert channels_of(standardised(image, reference), reference, False).shape == (1, *image.shape)


def test_the_slope_stays_true_when_the_volume_is_moved(cases: list[Case]) -> None:
    """What is measured on a moved volume is what was measured on the volume, moved: reflections included."""
    image, _ = read_pair(cases[0])
    reference = measure_reference(image)
    seen = channels_of(standardised(image, reference), reference, True)
    for symmetry in allowed("all", image.shape)[5::11]:
        moved = np.ascontiguousarray(symmetry.of_array(np.asarray(image)))
        again = measure_reference(moved)
        other = channels_of(standardised(moved, again), again, True)
        np.testing.assert_allclose(other, symmetry.of_array(seen), atol=0.02)


def test_reading_that_costs_next_to_nothing_gets_no_process(cut_cases: list[Case]) -> None:
    sink, spec = MemorySink(), spec_of(cut_cases, loader_workers="auto")
    groups = list(order_of(len(spec.train)).groups(3))
    assert choose_loader(spec, groups, 1e6, sink) == LoaderPlan(0)
    (told,) = sink.named("STUDENT_LOADER")
    assert told["num_workers"] == 0 and not told["persistent_workers"] and len(told["timed"]) == 1
    assert not told["pin_memory"]  # there is no GPU to copy to


def test_slow_reading_gets_the_fewest_processes_that_keep_up(
    cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = {0: 4.0, 1: 3.0, 2: 1.0, 3: 1.0, 7: 1.0}
    monkeypatch.setattr(loader_room, "_timed", lambda spec, plan, groups, source: taken[plan.num_workers])
    sink = MemorySink()
    spec = spec_of(cases, threads=8, loader_workers="auto")
    plan = choose_loader(spec, [], 1.0, sink)
    assert (plan.num_workers, plan.prefetch_factor) == (2, 2)
    assert plan.arguments["persistent_workers"] is True
    (told,) = sink.named("STUDENT_LOADER")
    assert [one["num_workers"] for one in told["timed"]] == [0, 1, 2]


@pytest.mark.parametrize(("unpinned", "expected"), [(2.0, False), (3.9, True)])
def test_pinned_memory_is_used_on_a_gpu_unless_it_is_slower(
    cases: list[Case], monkeypatch: pytest.MonkeyPatch, unpinned: float, expected: bool
) -> None:
    taken = {(1, True): 4.0, (2, True): 4.0, (1, False): unpinned}
    monkeypatch.setattr(
        loader_room, "_timed", lambda spec, plan, groups, source: taken.get((plan.num_workers, plan.pin_memory), 9.0)
    )
    spec = replace(spec_of(cases, threads=2, loader_workers="auto"), device="cuda")
    plan = choose_loader(spec, [], 1.0, MemorySink())
    assert (plan.num_workers, plan.pin_memory) == (1, expected)


def test_what_is_known_of_a_case_is_measured_once_and_travels_to_the_processes(
    cut_cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(cut_cases, loader_workers="auto")
    source, groups = PatchSource(spec), list(order_of(len(spec.train)).groups(3))
    choose_loader(spec, groups, 1e6, MemorySink(), source)
    monkeypatch.setattr(patches_room, "measure_reference", lambda volume: pytest.fail("measured again"))
    loader = PatchLoader(spec, LoaderPlan(1, 2), source)
    assert len(list(loader.groups(groups))) == len(groups)
    loader.close()


def test_where_no_process_can_be_had_reading_goes_on_here(cases: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(spec: StudentSpec, plan: LoaderPlan, groups: object, source: object) -> float:
        if plan.num_workers:
            raise RuntimeError("DataLoader worker is killed by signal: Bus error.")
        return 4.0

    monkeypatch.setattr(loader_room, "_timed", timed)
    sink = MemorySink()
    assert choose_loader(spec_of(cases, loader_workers="auto"), [], 1.0, sink).num_workers == 0
    assert "Bus error" in sink.named("STUDENT_LOADER")[0]["reason"]


def test_a_number_of_processes_that_is_asked_for_is_used_untimed(cases: list[Case]) -> None:
    sink = MemorySink()
    assert choose_loader(spec_of(cases, loader_workers=3), [], 1.0, sink).num_workers == 3
    assert sink.named("STUDENT_LOADER")[0]["reason"] == "asked for"
