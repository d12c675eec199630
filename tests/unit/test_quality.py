"""The quality benchmark: yardsticks against oracles and volumes made by hand, its statistics, and all of it once."""

from __future__ import annotations

import builtins
import csv
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from model_samples import ArraySamples
from scipy import stats
from tiny import TINY, Ended

from nx46vx.bench import fitted, quality
from nx46vx.bench.boosted_trees import BoostedTrees, need_trees
from nx46vx.bench.fitted import HELD_OUT, choosing, generated
from nx46vx.bench.frame import Outcome
from nx46vx.bench.intensity import Intensity
from nx46vx.bench.intervals import Interval
from nx46vx.bench.product import SingleCandidate
from nx46vx.bench.quality_child import METHODS, forget_peak, peak_bytes
from nx46vx.bench.quality_methods import Choice, Method, Probabilities, Training, choose, finished, rule_of
from nx46vx.bench.reference_2d import Reference2D, fit_logistic, flat_label, projections
from nx46vx.bench.ridge_nms import RidgeNms, ridge_voxels, widened
from nx46vx.data.synthetic import make_case
from nx46vx.errors import UsageError
from nx46vx.features.blocks import sample_features
from nx46vx.features.pool import feature_names
from nx46vx.features.reference import measure_reference
from nx46vx.features.sampling import sample_balanced, sample_natural
from nx46vx.inference.masks.doubt import Prediction
from nx46vx.model.metrics import sigmoid
from nx46vx.model.samples import FitData
from nx46vx.pipeline.run import run
from nx46vx.settings import Settings

# ridges


def across(normal: Sequence[float], edge: int = 16, at: float = 8.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A soft bright sheet through a cube's middle: its field, its normals, and each voxel's distance from it."""
    unit = np.array(normal) / np.linalg.norm(normal)
    places = np.stack(np.meshgrid(*[np.arange(edge, dtype=float)] * 3, indexing="ij"))
    distance = np.einsum("i,izyx->zyx", unit, places - at)
    normals = np.broadcast_to(unit[:, None, None, None], places.shape).astype(np.float32)
    return np.exp(-0.5 * (distance / 2.5) ** 2).astype(np.float32), normals, distance


def test_the_ridge_of_a_flat_sheet_is_its_centre_plane() -> None:
    field, normals, distance = across((1.0, 0.0, 0.0))
    assert np.array_equal(ridge_voxels(field, normals), distance == 0)
    assert np.array_equal(ridge_voxels(field, -normals), distance == 0), "the normal's sign does not matter"


def test_the_ridge_of_a_tilted_sheet_lies_on_it_without_gaps() -> None:
    field, normals, distance = across((1.0, 0.5, 0.25))
    found = ridge_voxels(field, normals)[3:-3, 3:-3, 3:-3]
    near = np.abs(distance[3:-3, 3:-3, 3:-3])
    assert found[near < 0.3].all() and not found[near > 0.8].any()


def test_of_a_plateau_two_voxels_wide_the_first_is_the_ridge() -> None:
    field, normals, distance = across((1.0, 0.0, 0.0), at=7.5)
    assert np.array_equal(ridge_voxels(field, normals), distance == -0.5)


def test_a_ridge_below_zero_is_none() -> None:
    field, normals, _ = across((0.0, 1.0, 0.0))
    assert not ridge_voxels(field - 2, normals).any()


def test_widening_goes_across_faces() -> None:
    mask = np.zeros((7, 7, 7), bool)
    mask[3, 3, 3] = True
    away = np.abs(np.indices(mask.shape) - 3).sum(axis=0)
    for width in range(3):
        assert np.array_equal(widened(mask, width), away <= width)


def test_ridges_of_a_volume_are_the_middles_of_its_sheets() -> None:
    """The whole method, its own normals included: two bright sheets in noise."""
    volume = np.full((40, 40, 40), 60.0)
    for middle in (12, 28):
        volume += 120 * np.exp(-0.5 * ((np.arange(40) - middle) / 1.5) ** 2)
    volume += np.random.default_rng(0).normal(0, 2, volume.shape)
    method, choice = RidgeNms(), {"scale": "gauss_s2", "share": 1.0, "width": 0, "clean": False}
    mask = method.mask(np.clip(volume, 0, 255).astype(np.uint8), choice)
    assert set(np.flatnonzero(mask.any(axis=(0, 1)))) == {12, 28} and mask[:, :, [12, 28]].all()
    fewer = method.mask(np.clip(volume, 0, 255).astype(np.uint8), {**choice, "share": 0.25})
    assert fewer.sum() == pytest.approx(0.25 * mask.sum(), rel=0.02) and not (fewer > mask).any()
    wider = method.mask(np.clip(volume, 0, 255).astype(np.uint8), {**choice, "width": 1})
    assert set(np.flatnonzero(wider.any(axis=(0, 1)))) == {11, 12, 13, 27, 28, 29}


# the 2D way


def test_projections_are_those_of_hand() -> None:
    volume = np.random.default_rng(1).integers(0, 255, (5, 12, 9)).astype(np.uint8)
    found = projections(volume)
    flat = sum(plane.astype(float) for plane in volume) / 5
    highest = np.array([[volume[:, y, x].max() for x in range(9)] for y in range(12)], float)
    for image, row in ((flat, 0), (highest, len(found) // 2)):
        np.testing.assert_allclose(found[row], (image - image.mean()) / image.std(), atol=1e-12)
    assert np.isfinite(projections(np.full((4, 8, 8), 7, np.uint8))).all()


def test_a_column_is_as_much_surface_as_its_labelled_voxels() -> None:
    label = np.array([[[1, 2]], [[0, 2]], [[1, 2]], [[2, 1]]], np.uint8)
    share, weight = flat_label(label)
    assert share.tolist() == [[2 / 3, 1.0]] and weight.tolist() == [[3.0, 1.0]]


def test_the_2d_regression_is_logistic_regression() -> None:
    """scikit-learn on every pixel twice, once as surface and once not, weighted by its shares."""
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(2)
    x, share, weight = rng.standard_normal((3, 200)), rng.uniform(0, 1, 200), rng.integers(0, 9, 200).astype(float)
    share = 0.5 * share + 0.5 * (x[0] > 0)
    found = fit_logistic(x, share, weight)
    twice, y = np.hstack([x, x]).T, np.repeat([1, 0], 200)
    weights = np.concatenate([weight * share, weight * (1 - share)])
    theirs = linear.LogisticRegression(C=1 / (1e-4 * weight.sum()), tol=1e-10, max_iter=1000).fit(twice, y, weights)
    np.testing.assert_allclose(found, [*theirs.coef_[0], theirs.intercept_[0]], atol=2e-3)


def test_the_2d_mask_is_one_image_in_all_slices() -> None:
    volume = np.random.default_rng(3).integers(0, 100, (6, 20, 20)).astype(np.uint8)
    volume[:, 5:9, 10:15] = 250
    method = Reference2D()
    method.theta = np.zeros(len(projections(volume)) + 1)
    method.theta[0] = 1.0  # the mean over z alone
    mask = method.mask(volume, {"share": 20 / 400, "dust": 1})
    wanted = np.zeros((20, 20))
    wanted[5:9, 10:15] = 1
    assert mask.dtype == np.uint8 and all(np.array_equal(plane, wanted) for plane in mask)
    assert not method.mask(volume, {"share": 20 / 400, "dust": 21}).any(), "a component of 20 pixels is dust"


# intensity, cleaning, choosing


class Given(Training):
    """Training volumes without a run."""

    def volumes(self) -> list[tuple[np.ndarray, np.ndarray]]:
        image = np.random.default_rng(4).integers(0, 100, (8, 8, 8)).astype(np.uint8)
        label = np.zeros(image.shape, np.uint8)
        label[2:4], label[7] = 1, 2
        return [(np.where(label == 1, image + 100, image).astype(np.uint8), label)]


def test_the_intensity_threshold_parts_what_a_grey_value_can_part() -> None:
    method = Intensity()
    method.fit(Given(Path("none")))
    ((image, label),) = Given(Path("none")).volumes()
    assert method.above
    best = min(method.levels)
    assert np.array_equal(method.mask(image, {"value": best, "clean": False})[:7], label[:7])
    levels = {choice["value"] for choice in method.choices()}
    assert levels == set(method.levels) and all(100 <= level < 200 for level in levels)
    assert {choice["clean"] for choice in method.choices()} == {False, True}


def test_cleaning_clears_the_border_drops_dust_keeps_a_sheet_and_fills_what_was_scanned() -> None:
    mask, volume = np.zeros((32, 32, 32), bool), np.ones((32, 32, 32), np.uint8)
    mask[:, :, 14:17] = True
    mask[20, 20, 24] = True
    for tunnel in (8, 22):
        mask[tunnel : tunnel + 2, tunnel : tunnel + 2] = False
    volume[22:24, 22:24] = 0
    wanted = np.zeros_like(mask)
    wanted[3:-3, 3:-3, 14:17] = True
    wanted[8:10, 8:10, [14, 16]] = False  # a plug is thin
    wanted &= volume > 0
    assert np.array_equal(finished(mask, volume, clean=True), wanted)
    assert np.array_equal(finished(mask, volume, clean=False), mask & (volume > 0))


class Everywhere(Probabilities):
    """Sure of surface wherever it looks."""

    def fit(self, training: Training) -> None: ...

    def predict(self, volume: np.ndarray) -> Prediction:
        return Prediction.certain(np.ones(volume.shape, np.float32))


def test_where_nothing_was_scanned_no_method_that_has_probabilities_has_one() -> None:
    volume = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    prediction, _ = Everywhere().prepare(volume, {})
    assert np.array_equal(prediction.probability, volume > 0)


class Shifted(Method):
    """The label moved by some voxels: the best choice is known."""

    def __init__(self, label: np.ndarray) -> None:
        self.label, self.prepared = label, list[Any]()

    def fit(self, training: Training) -> None: ...

    def choices(self) -> Sequence[Choice]:
        return [{"scale": scale, "by": by} for scale in ("a", "b") for by in (4, 0, 8)]

    def prepare(self, volume: np.ndarray, choice: Choice) -> Any:
        self.prepared.append(choice["scale"])
        return volume

    def finish(self, prepared: Any, choice: Choice) -> np.ndarray:
        return np.roll(self.label == 1, choice["by"], axis=0).astype(np.uint8)


def test_the_first_choice_with_the_best_score_is_taken_and_a_scale_is_prepared_once() -> None:
    volume, label = make_case((32, 32, 32), scroll=1, seed=1)
    method = Shifted(label)
    chosen, score, tried = choose(method, [(volume, label)])
    assert (chosen, score, tried) == ({"scale": "a", "by": 0}, pytest.approx(1.0), 6)
    assert method.prepared == ["a", "b"]


# boosted trees


def drawn(number: int, draw: Any) -> tuple[ArraySamples, np.ndarray]:
    volume, label = make_case((32, 32, 32), scroll=number, seed=number)
    index = np.sort(draw(label, 600, np.random.SeedSequence(number)))
    features = sample_features(volume, measure_reference(volume), feature_names(), index, block=64)
    counts = (int((label == 0).sum()), int((label == 1).sum()))
    y = (label.reshape(-1)[index] == 1).astype(np.uint8)
    return ArraySamples(f"s{number}", features, y, np.zeros(len(index), np.int64), counts, index), volume


def test_trees_see_the_pool_and_hold_at_the_natural_prevalence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions of a whole volume are the model's own at its voxels' features, moved by the prior's logits."""
    pytest.importorskip("sklearn")
    monkeypatch.setattr("nx46vx.bench.boosted_trees.TREES", 20)
    monkeypatch.setattr("nx46vx.bench.boosted_trees.EVERY", 10)
    (train, _), (validation, volume) = drawn(0, sample_balanced), drawn(1, sample_natural)
    data, trees = FitData(feature_names(), [train], [validation]), BoostedTrees()
    trees.fit_samples(data)
    balanced, natural = train.y.mean(), train.counts[1] / sum(train.counts)
    shift = np.log(natural / (1 - natural)) - np.log(balanced / (1 - balanced))
    logits = np.log(
        trees.model.predict_proba(validation.features.T) / (1 - trees.model.predict_proba(validation.features.T))
    )
    found = trees.predict(volume)
    np.testing.assert_allclose(
        found.probability.reshape(-1)[validation.index], sigmoid(logits[:, 1] + shift), atol=1e-5
    )
    assert trees.model.n_iter_ in (10, 20) and not found.deviation.any()


def test_without_scikit_learn_the_fix_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError("No module named 'sklearn'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UsageError, match=r"pip install 'nx46vx\[dev\]'"):
        need_trees()


# statistics and memory


def test_intervals_are_those_of_students_t() -> None:
    rng = np.random.default_rng(5)
    one, other = rng.normal(0.6, 0.1, 8).tolist(), rng.normal(0.5, 0.1, 8).tolist()
    found, theirs = Interval.of(one), stats.ttest_1samp(one, 0).confidence_interval(0.95)
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(one), theirs.low, theirs.high))
    paired, theirs = Interval.of_difference(one, other), stats.ttest_rel(one, other).confidence_interval(0.95)
    assert (paired.low, paired.high) == pytest.approx((theirs.low, theirs.high))
    assert Interval(0.5, 0.25, 0.75).text("+") == "+0.500 [+0.250, +0.750]"


def test_the_most_resident_memory_can_be_forgotten() -> None:
    large = np.ones(1 << 27, np.uint8)
    del large
    before = peak_bytes()
    if not forget_peak():
        pytest.skip("the system keeps its record")
    least = peak_bytes()
    assert least < before - (1 << 26)
    large = np.ones(1 << 26, np.uint8)
    assert peak_bytes() > least + large.nbytes * 0.9


# the benchmark


def test_the_volumes_are_of_scrolls_that_no_other_kind_is_of() -> None:
    assert HELD_OUT > 6 + 3  # a run's scrolls are numbered from 0
    chosen_on, held_out = choosing(32, 1)[0], generated(32, 1, HELD_OUT)[0]
    assert np.array_equal(chosen_on[0], make_case((32,) * 3, scroll=HELD_OUT - 1, seed=HELD_OUT - 1)[0])
    assert np.array_equal(held_out[1], make_case((32,) * 3, scroll=HELD_OUT, seed=HELD_OUT)[1])


def test_the_single_candidate_is_the_leaderboards_first(finished: Path) -> None:
    one = SingleCandidate()
    one.fit(Training(finished.parent))
    rows = list(csv.DictReader((finished / "leaderboard.csv").open()))
    best = min(rows, key=lambda row: (float(row["objective"]), row["candidate_id"]))
    (member,) = one.ensemble.active
    assert (member.candidate_id, member.weight, one.ensemble.intercept) == (best["candidate_id"], 1.0, 0.0)
    assert rule_of({"strong": 0.8, "weak": 1.2}).per_volume


def test_the_full_size_keeps_what_is_promised_and_quick_is_smaller() -> None:
    full = quality.Sizes()
    assert full.held_out >= 8 and full.edge >= 96 and full.student is not None
    numbers = [one.name for one in fields(full) if one.name not in ("student", "methods")]
    assert all(getattr(quality.QUICK, name) < getattr(full, name) for name in numbers)
    assert set(quality.NAMES) == set(METHODS)


def test_what_is_fitted_is_a_whole_run_without_a_search_of_masks(tmp_path: Path) -> None:
    made = fitted.fitted_settings(tmp_path, edge=64, cases=7, samples=500, student={"epochs": 3})
    assert not made.reduced and made.mask.search.trials == 0
    assert (made.student.enabled, made.student.epochs, made.data.synthetic.size) == (True, 3, 64)
    assert not fitted.fitted_settings(tmp_path, edge=64, cases=7, samples=500).student.enabled


def test_all_of_it_once(monkeypatch: pytest.MonkeyPatch, command: Callable[..., Ended]) -> None:
    """Through the command line, on a grid of four candidates."""

    def small(settings: Settings, root: Path) -> dict[str, Any]:
        cut = {"allow_reduced": True, "grid": TINY["grid"]}
        return run(Settings.model_validate(settings.model_dump() | cut), root)

    monkeypatch.setattr(fitted, "run", small)
    student = quality._student(4, 1) | {"base_channels": 2, "levels": 2, "patch": [32, 32, 32], "validation_cases": 1}
    methods = ("intensity_threshold", "ensemble", "fusion")
    tiny = quality.Sizes(48, fitted=5, chosen_on=1, held_out=2, samples=600, student=student, methods=methods)
    monkeypatch.setattr(quality, "QUICK", tiny)
    done = command("bench", "quality", "--quick", "--json")
    assert done.code == 0, done.stderr
    found = orjson.loads(done.stdout)
    assert (found["data"], found["held_out"], found["edge"]) == ("synthetic", 2, 48)
    assert found["bench"] == "quality" and found["machine"]["cores"] >= 1
    assert tuple(found["methods"]) == methods
    assert found["left_out"] == ["reference_2d", "ridge_nms", "single_candidate", "boosted_trees", "u_net"]
    for name, row in found["methods"].items():
        assert np.mean(row["volumes"]["score"]) == pytest.approx(row["score"]["mean"])
        for part in ("score", "topo", "surface_dice", "voi"):
            spread = found["spread"][f"{name}_{part}"]
            assert 0 <= spread["min"] <= row[part]["mean"] <= spread["max"] <= 1
            assert row[part]["low"] <= row[part]["mean"] <= row[part]["high"]
        parts = 0.3 * row["topo"]["mean"] + 0.35 * (row["surface_dice"]["mean"] + row["voi"]["mean"])
        assert row["score"]["mean"] == pytest.approx(parts)
        assert row["seconds"]["mean"] > 0 and 0.02 < row["peak_memory_gib"] < 8 and row["fit_s"] > 0
        difference = row["score"]["mean"] - found["methods"]["ensemble"]["score"]["mean"]
        assert row["difference_to_ensemble"]["mean"] == pytest.approx(difference)
    assert found["methods"]["fusion"]["fit_s"] > found["methods"]["ensemble"]["fit_s"]
    assert found["fusion_kept"].keys() == {"kept", "reason"}
    text = quality.table(Outcome("quality", [], found))
    assert text.startswith("Synthetic data: 2 generated volumes of 48^3 voxels")
    assert "| boosted trees | left out |" in text and len(text.splitlines()) == 5 + len(METHODS)
    assert len({line.count("|") for line in text.splitlines()[3:]}) == 1
