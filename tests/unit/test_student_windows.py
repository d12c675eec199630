"""Whole volumes through windows: seamless, in bounded memory, the same on any number of threads."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from nx46vx.features.reference import measure_reference
from nx46vx.student import windows as windows_room
from nx46vx.student.channels import standardised
from nx46vx.student.symmetry import allowed
from nx46vx.student.windows import Segmenter, gaussian, window_starts

VOLUME = np.random.default_rng(0).integers(1, 256, (21, 18, 25), np.uint8)


def segmenter(logits_of: object = lambda x: x, *, overlap: float = 0.5, batch: int = 3) -> Segmenter:
    return Segmenter(logits_of, (8, 8, 8), overlap, batch)  # type: ignore[arg-type]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_windows_cover_an_axis_to_its_very_end(overlap: float) -> None:
    for length in range(8, 60):
        starts = window_starts(length, 8, overlap)
        assert starts[0] == 0 and starts[-1] == length - 8 and starts == sorted(set(starts))
        assert max(np.diff(starts), default=0) <= max(round(8 * (1 - overlap)) + 1, 1)
    assert window_starts(5, 8, overlap) == [0]


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.6])
def test_a_network_that_repeats_its_input_gives_the_volume_back(overlap: float) -> None:
    wanted = standardised(VOLUME, measure_reference(VOLUME))
    np.testing.assert_allclose(segmenter(overlap=overlap).logits(VOLUME), wanted, rtol=1e-5, atol=1e-5)


def test_a_volume_smaller_than_a_window_is_segmented_too() -> None:
    small = VOLUME[:5, :18, :6]
    wanted = standardised(small, measure_reference(small))
    np.testing.assert_allclose(segmenter().logits(small), wanted, rtol=1e-5, atol=1e-5)


def test_the_middle_of_a_window_weighs_more_than_its_rim() -> None:
    def rim(x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        out[..., 2:-2] = 1.0  # what is seen near the faces along x is worthless
        return out

    logits = segmenter(rim, overlap=0.75).logits(VOLUME)
    assert logits[:, :, 4:-4].min() > 0.7  # half of all windows see nothing there
    assert (gaussian(9) > 0).all() and gaussian(9).argmax() == 4 and np.array_equal(gaussian(8), gaussian(8)[::-1])


def test_averaging_over_symmetries_undoes_each_of_them() -> None:
    group = allowed("all", (8, 8, 8))
    wanted = standardised(VOLUME, measure_reference(VOLUME))
    np.testing.assert_allclose(segmenter().logits(VOLUME, group), wanted, rtol=1e-4, atol=1e-4)
    kernel = torch.zeros(1, 1, 3, 3, 3)
    kernel[0, 0, 1, 1, 2] = 1.0  # looks one voxel ahead along x: its average over both directions is symmetric

    def ahead(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv3d(x, kernel, padding=1)

    both = [one for one in group if one.axes == (0, 1, 2) and one.flips[:2] == (False, False)]
    volume = np.zeros((8, 8, 8), np.uint8)
    volume[4, 4, 4] = 200
    found = segmenter(ahead).logits(volume, both) - segmenter(ahead).logits(np.zeros_like(volume), both)
    assert found[4, 4, 3] == pytest.approx(found[4, 4, 5]) and found[4, 4, 3] != 0


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_bits_do_not_depend_on_threads_or_batches(threads: int) -> None:
    net = torch.nn.Conv3d(1, 1, 3, padding=1)
    alone = segmenter(net, batch=1).logits(VOLUME)
    with ThreadPoolExecutor(threads) as executor:
        spread = Segmenter(net, (8, 8, 8), 0.5, threads, executor).logits(VOLUME)
    assert np.array_equal(alone, spread)


def test_memory_holds_the_logits_and_the_windows_in_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the volume, which looks at a few windows of it, is another matter."""
    volume = np.full((200, 64, 64), 100, np.uint8)
    reference = measure_reference(VOLUME)
    monkeypatch.setattr(windows_room, "measure_reference", lambda volume: reference)
    tracemalloc.start()
    segmenter().logits(volume)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.3 * 4 * volume.size
