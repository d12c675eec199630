"""A volume's probabilities: the ensemble's, the same bits however they are computed, and little memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nx46vx.bench.inference import random_ensemble
from nx46vx.data.synthetic import make_case
from nx46vx.features.arrays import Arrays
from nx46vx.features.backend import Backend, backend
from nx46vx.features.blocks import iter_blocks
from nx46vx.features.reference import measure_reference
from nx46vx.inference.predict import probability_volume, quadratic_terms
from nx46vx.model.ensemble import Ensemble, Member


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    return make_case((40, 44, 36), scroll=2, seed=3)[0]


@pytest.fixture(scope="module")
def probability(volume: np.ndarray) -> np.ndarray:
    return probability_volume(volume, random_ensemble(), block=64)


def test_probabilities_are_the_ensembles(volume: np.ndarray, probability: np.ndarray) -> None:
    """Member by member in float64, from features that are all in memory."""
    ensemble = random_ensemble()
    names = ensemble.features
    ((_, x, g),) = iter_blocks(volume, measure_reference(volume), names, block=64)
    z = ensemble.logits(names, x.reshape(len(names), -1), g.reshape(len(names), -1))
    expected = 1 / (1 + np.exp(-z))
    assert probability.dtype == np.float32
    assert expected.std() > 0.05
    assert np.abs(probability.ravel() - expected).max() < 2e-6


@pytest.mark.parametrize(
    ("block", "threads", "how"), [(64, 3, backend()), (32, 2, backend()), (23, 1, backend()), (40, 2, Arrays())]
)
def test_neither_blocks_nor_threads_nor_the_way_change_a_bit(
    block: int, threads: int, how: Backend, volume: np.ndarray, probability: np.ndarray
) -> None:
    told: list[tuple[int, int]] = []
    found = probability_volume(
        volume, random_ensemble(), block=block, threads=threads, how=how, on_block=lambda *at: told.append(at)
    )
    assert np.array_equal(found, probability)
    assert told == [(number, len(told)) for number in range(1, len(told) + 1)]


def test_members_without_a_say_cost_and_change_nothing(volume: np.ndarray, probability: np.ndarray) -> None:
    ensemble = random_ensemble()
    silent = Member("silent", ensemble.members[0].spec, tuple(np.full(19, 9.0)), 0.0)
    more = replace(ensemble, members=(*ensemble.members, silent))
    assert np.array_equal(probability_volume(volume, more, block=64), probability)


def test_an_ensemble_in_which_nobody_helps_gives_one_probability_everywhere(volume: np.ndarray) -> None:
    found = probability_volume(volume, Ensemble((), -1.5), block=64)
    assert found.shape == volume.shape
    assert np.allclose(found, 1 / (1 + np.exp(1.5)))


def test_members_that_share_features_fold_into_one_form() -> None:
    ensemble = random_ensemble(1)
    names = ensemble.features
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((len(names), 500)), np.abs(rng.standard_normal((len(names), 500)))
    terms, constant = quadratic_terms(ensemble.forms, ensemble.constant, names)
    shift, a, b, c = (column[:, None].astype(np.float64) for column in terms.T)
    s = x - shift
    folded = constant + ((a * s + b) * s + c * g).sum(axis=0)
    assert np.abs(folded - ensemble.logits(names, x, g)).max() < 1e-5
