"""The competition's score, against the competition's own programs and the definitions of its parts."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scoring_pairs import Pair, expected, pairs, perforated, sheets

from nx46vx.errors import DataError
from nx46vx.inference.scoring import LabelScorer, score_cases, score_volume

PAIRS: dict[str, Pair] = {name: (prediction, label) for name, prediction, label in pairs()}
EXPECTED = expected()


def test_every_pair_has_expected_values() -> None:
    assert list(PAIRS) == list(EXPECTED) and len(PAIRS) == 27


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_scores_as_by_the_competitions_own_programs(name: str) -> None:
    found, wanted = score_volume(*PAIRS[name]), EXPECTED[name]
    assert [list(counts) for counts in found.counts] == wanted.pop("counts")
    assert {part: getattr(found, part) for part in wanted} == pytest.approx(wanted, abs=1e-9)


def test_one_label_scores_many_predictions_as_one_by_one() -> None:
    label = PAIRS["ignore_x40+"][1]
    scorer = LabelScorer(label)
    for name in ("bridge_column", "pepper_2pct_seed1", "perforated", "empty_pred", "bridge_column"):
        assert scorer.score(PAIRS[name][0]) == score_volume(PAIRS[name][0], label)


def test_what_is_ignored_does_not_matter() -> None:
    prediction, label = PAIRS["ignore_x40+"]
    other = prediction.copy()
    other[label == 2] = np.random.default_rng(0).integers(0, 3, int((label == 2).sum()))
    assert not np.array_equal(other, prediction)
    assert score_volume(other, label) == score_volume(prediction, label)


def test_any_value_but_zero_is_foreground_in_any_type_and_layout() -> None:
    prediction, label = PAIRS["holes_moved"]
    wanted = score_volume(prediction, label)
    spread = np.zeros(tuple(2 * n for n in prediction.shape), np.int16)
    spread[::2, ::2, ::2] = -7 * prediction.astype(np.int16)
    for other in (prediction.astype(bool), 255 * prediction, np.asfortranarray(prediction), spread[::2, ::2, ::2]):
        assert score_volume(other, label) == wanted
    assert score_volume(prediction, label.astype(bool)) == wanted
    assert score_volume(2 * prediction, label) == wanted, "2 is ignored in labels, not in predictions"


def test_scoring_leaves_its_inputs_alone() -> None:
    prediction, label = (volume.copy() for volume in PAIRS["ignore_x40+"])
    prediction.flags.writeable = label.flags.writeable = False
    score_volume(prediction, label)
    np.testing.assert_array_equal(prediction, PAIRS["ignore_x40+"][0])


def test_a_set_scores_the_mean_and_counts_the_sum() -> None:
    names = ("shift1_z", "perforated", "two_shells")
    found = score_cases((name, *PAIRS[name]) for name in names)
    assert list(found.cases) == list(names)
    for part in ("score", "topo", "surface_dice", "voi"):
        assert getattr(found, part) == pytest.approx(np.mean([EXPECTED[name][part] for name in names]), abs=1e-9)
    assert np.array_equal(found.counts, np.sum([score_volume(*PAIRS[name]).counts for name in names], axis=0))


def test_scores_stay_between_0_and_1() -> None:
    rng = np.random.default_rng(1)
    for density in (0.0, 0.02, 0.5, 1.0):
        found = score_volume(rng.random((9, 10, 11)) < density, rng.random((9, 10, 11)) < 0.4)
        assert 0.0 <= found.score <= 1.0
        assert found.score == pytest.approx(0.3 * found.topo + 0.35 * found.surface_dice + 0.35 * found.voi)
    assert score_volume(*PAIRS["both_empty"]).score == score_volume(*PAIRS["identical"]).score == 1.0


@pytest.mark.parametrize(
    ("prediction", "label", "said"),
    [
        (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), "the prediction"),
        (np.zeros((4, 4, 5), np.uint8), np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 5\).*\(4, 4, 4\)"),
        (np.zeros((4, 4, 4)), np.zeros((4, 4, 4), np.uint8), "float64"),
        (np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.float32), "float32"),
        (np.zeros((4, 0, 4), np.uint8), np.zeros((4, 0, 4), np.uint8), r"\(4, 0, 4\)"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(prediction: np.ndarray, label: np.ndarray, said: str) -> None:
    with pytest.raises(DataError, match=said):
        score_volume(prediction, label)


def test_a_set_refuses_nothing_at_all_and_the_same_case_twice() -> None:
    with pytest.raises(DataError, match="no cases"):
        score_cases([])
    with pytest.raises(DataError, match="twin"):
        score_cases([("twin", *PAIRS["both_empty"]), ("twin", *PAIRS["both_empty"])])


_COST = """
import re, sys, time
from pathlib import Path
import numpy as np
from nx46vx.inference.scoring import score_volume
prediction, label = np.load(sys.argv[1]), np.load(sys.argv[2])
begun = time.process_time()
found = score_volume(prediction, label)
took = time.process_time() - begun
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(found.counts[1].matched, took, int(peak[1]) >> 10)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("holes", "matched", "seconds", "mebibytes"), [(0, range(1), 3.0, 1536), (300, range(200, 301), 60.0, 4096)]
)
def test_a_whole_volume_is_scored_within_its_bounds(
    tmp_path: object, holes: int, matched: range, seconds: float, mebibytes: int
) -> None:
    """320^3, in a process of its own: processor seconds, compilation among them, and the highest memory."""
    label = perforated(sheets(320), holes, 1)
    np.save(f"{tmp_path}/prediction.npy", np.roll(label, 1, 0))
    np.save(f"{tmp_path}/label.npy", label)
    command = [sys.executable, "-c", _COST, f"{tmp_path}/prediction.npy", f"{tmp_path}/label.npy"]
    loops, took, used = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert int(loops) in matched
    assert float(took) <= seconds and int(used) <= mebibytes
