"""The ablation of the mask's steps: what is left out is off, all else is as chosen, and the search loses nothing."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from scipy import ndimage

from nx46vx.bench import ablation
from nx46vx.data.synthetic import make_case
from nx46vx.inference.masks.doubt import Prediction
from nx46vx.inference.postprocess import mask_of
from nx46vx.inference.scoring import score_volume
from nx46vx.settings import MaskSettings

Labelled = tuple[Prediction, np.ndarray]


@pytest.fixture(scope="module")
def volume() -> Labelled:
    """A label, and probabilities that blur it and err in places; who errs is in doubt."""
    _, label = make_case((48, 48, 48), scroll=3, seed=1)
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(0, 1, label.shape), 1.0)
    probability = np.clip(ndimage.gaussian_filter((label == 1).astype(float), 0.8) + noise, 0.001, 0.999)
    deviation = np.rint(np.clip(np.abs(noise), 0, 0.5) * 510).astype(np.uint8)
    return Prediction(probability.astype(np.float32), deviation, np.zeros_like(deviation)), label


def test_what_is_left_out_is_off_and_all_else_as_chosen(volume: Labelled) -> None:
    found = ablation._variants([volume], MaskSettings())
    chosen = asdict(found["all steps"])
    for name, off in ablation.STEPS.items():
        assert asdict(found[f"without {name}"]) == {**chosen, **off}
        assert any(chosen[key] != value for key, value in off.items()), f"{name} is off by default"
    assert found["without hysteresis"].strong == found["without hysteresis"].weak == chosen["weak"]
    assert not found["one threshold for all volumes"].per_volume
    assert found["doubt does not move thresholds"].doubt_weight == 0.0
    bare = asdict(found["hysteresis alone"])
    assert all(bare[key] == value for off in ablation.STEPS.values() for key, value in off.items())


def test_the_search_is_no_worse_than_where_it_starts_on_what_it_sees(volume: Labelled) -> None:
    prediction, label = volume
    start = ablation._variants([volume], MaskSettings())["hysteresis alone"]
    found = ablation._searched([volume], start, trials=12)
    before, after = (score_volume(mask_of(prediction, rule), label).score for rule in (start, found))
    assert after > before


@pytest.mark.slow
def test_every_variant_is_scored_on_the_held_out_volumes() -> None:
    sizes = ablation.Sizes(edge=48, fitted=6, chosen_on=1, held_out=2, samples=2000, trials=4)
    found = ablation.measure(sizes)
    means = found.sizes["means"]
    assert {f"without {name}" for name in ablation.STEPS} | {"all steps", "after the search"} <= set(means)
    scores = {figure.name: figure.values for figure in found.figures}
    for name, parts in means.items():
        assert parts["score"] == pytest.approx(
            0.3 * parts["topo"] + 0.35 * parts["surface_dice"] + 0.35 * parts["voi"], abs=1e-9
        )
        values = scores[f"{ablation._key(name)}_score"]
        assert len(values) == 2 and np.mean(values) == pytest.approx(parts["score"])
    rows = ablation.table(found).splitlines()[2:]
    assert len(rows) == len(means)
    assert f"{means['all steps']['score'] - means['hysteresis alone']['score']:+.4f}" in "".join(rows)
