"""Where the scan is 0 there is no surface: neither in probabilities, nor in masks by any step or threshold."""

from __future__ import annotations

import numpy as np
import pytest

from nx46vx.bench.inference import random_ensemble
from nx46vx.data.synthetic import make_case
from nx46vx.inference.masks.doubt import Prediction
from nx46vx.inference.masks.parameters import MaskParameters
from nx46vx.inference.postprocess import make_mask
from nx46vx.inference.predict import predict
from nx46vx.model.ensemble import Ensemble


@pytest.mark.parametrize("ensemble", [random_ensemble(), Ensemble((), 1.0)])
def test_the_probability_is_zero_exactly_where_the_scan_is(ensemble: Ensemble) -> None:
    volume, _ = make_case((32, 30, 28), scroll=1, seed=1)
    volume[8:20, 5:9, 7:25] = 0
    volume[3, 3, 3] = 0
    found = predict(volume, ensemble, block=24, vote_at=0.5).probability
    assert np.array_equal(found == 0, volume == 0)


@pytest.mark.parametrize("threshold", [0.5, 0.0, -1.0])
def test_no_step_and_no_threshold_makes_a_surface_there(threshold: float) -> None:
    """A sheet with a slit, a void and a tunnel, each of which some step would fill."""
    probability = np.zeros((24, 24, 24), np.float32)
    probability[8:16] = 0.9
    probability[11:13, 4:8, 4:8] = 0
    probability[:, 15, 15] = 0
    probability[:, :, 19] = 0
    steps = {"z_radius": 2, "xy_radius": 3, "slice_gap": 3, "hole_size": 500, "tunnel_radius": 4, "dust_min_size": 5}
    made = make_mask(Prediction.certain(probability), MaskParameters(strong_th=threshold, weak_th=threshold, **steps))
    assert made[10, 10, 10] == 1
    assert not made[probability == 0].any()
    elsewhere = np.where(probability == 0, np.float32(1e-6), probability)
    filled = make_mask(Prediction.certain(elsewhere), MaskParameters(strong_th=0.5, weak_th=0.5, **steps))
    assert filled[probability == 0].any()  # the steps would have
