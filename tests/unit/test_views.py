"""The views: seeded, distinct, made of features that tell something and tell it differently."""

from __future__ import annotations

import numpy as np
import pytest
from model_samples import ArraySamples, make_data, names
from sklearn.linear_model import LinearRegression

from nx46vx.errors import UsageError
from nx46vx.model.neuron import bootstrap
from nx46vx.model.samples import FitData
from nx46vx.model.views import MOST_ALIKE, draw_views, explained, foretold, relevance_gram


def data_of(x: np.ndarray, y: np.ndarray, g: np.ndarray | None = None, cases: int = 1) -> FitData:
    """Features (M, n), labels (n,) and gradients; gradients are noise where none are given."""
    noise = np.abs(np.random.default_rng(99).standard_normal(x.shape))
    features = np.concatenate([x, noise if g is None else g]).astype(np.float32)
    parts = np.array_split(np.arange(y.size), cases)
    train = [
        ArraySamples(str(k), features[:, part], y[part].astype(np.uint8), np.zeros(part.size, np.int32), (1, 1))
        for k, part in enumerate(parts)
    ]
    return FitData(names(len(x)), train, train[:1])


def count(views: dict[int, tuple[str, ...]], pool: int) -> np.ndarray:
    """How many views each feature is in."""
    return np.array([sum(name in view for view in views.values()) for name in names(pool)])


@pytest.fixture(scope="module")
def gram() -> np.ndarray:
    return relevance_gram(make_data((1500, 1200), 12, correlation=0.4))


def test_the_views_of_nine_neurons_are_nine_sets_in_the_order_of_the_pool(gram: np.ndarray) -> None:
    pool = names(12)
    views = draw_views(gram, pool, seed=0, width=6, meta_neurons=range(9))
    assert list(views) == list(range(9))
    assert len({frozenset(view) for view in views.values()}) == 9
    for view in views.values():
        assert len(set(view)) == 6
        assert list(view) == sorted(view, key=pool.index)


def test_the_same_seed_draws_the_same_views_and_another_seed_others(gram: np.ndarray) -> None:
    drawn = [draw_views(gram, names(12), seed=seed, width=6, meta_neurons=range(9)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_one_more_neuron_leaves_the_views_before_it_as_they_are(gram: np.ndarray) -> None:
    nine = draw_views(gram, names(12), seed=0, width=6, meta_neurons=range(9))
    sixteen = draw_views(gram, names(12), seed=0, width=6, meta_neurons=range(16))
    assert {k: sixteen[k] for k in range(9)} == nine
    assert len(set(sixteen.values())) == 16


def test_views_stay_distinct_where_there_are_few_and_one_is_much_likelier_than_the_others() -> None:
    rng = np.random.default_rng(8)
    x = rng.standard_normal((5, 3000))
    gram = relevance_gram(data_of(x, x[0] + x[1] > 0))
    views = draw_views(gram, names(5), seed=0, width=2, meta_neurons=range(7))
    assert len(set(views.values())) == 7  # of the ten that there are


def test_drawing_views_takes_nothing_from_other_random_numbers(gram: np.ndarray) -> None:
    data = make_data((300,), 12)
    before = [bootstrap(data, 0, k).tolist() for k in range(3)]
    np.random.seed(5)
    first = np.random.random(3)
    np.random.seed(5)
    draw_views(gram, names(12), seed=0, width=6, meta_neurons=range(3))
    assert np.array_equal(np.random.random(3), first)
    assert [bootstrap(data, 0, k).tolist() for k in range(3)] == before


def test_informative_features_are_preferred_to_noise() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 6000))
    y = (x[2] + x[7] - x[9] + 0.5 * rng.standard_normal(6000)) > 0
    views = draw_views(relevance_gram(data_of(x, y)), names(12), seed=0, width=4, meta_neurons=range(30))
    chosen = count(views, 12)
    useful = chosen[[2, 7, 9]]
    assert useful.min() > 20
    assert useful.min() > 2 * np.delete(chosen, [2, 7, 9]).max()


def test_features_that_tell_by_their_square_or_their_gradient_are_found_too() -> None:
    rng = np.random.default_rng(1)
    x, g = rng.standard_normal((12, 6000)), np.abs(rng.standard_normal((12, 6000)))
    y = (x[3] ** 2 + 1.5 * g[8] + 0.3 * rng.standard_normal(6000)) > 2.2
    views = draw_views(relevance_gram(data_of(x, y, g)), names(12), seed=0, width=4, meta_neurons=range(30))
    chosen = count(views, 12)
    assert chosen[[3, 8]].min() > 20
    assert chosen[[3, 8]].min() > 1.5 * np.delete(chosen, [3, 8]).max()


def test_a_weaker_unlike_feature_is_preferred_to_a_copy_of_a_chosen_one() -> None:
    """Features 0 to 3 are one strong signal four times, 4 is a weaker one of its own: a view of two holds 4."""
    rng = np.random.default_rng(2)
    signal, other = rng.standard_normal((2, 6000))
    x = np.stack([signal + 0.02 * rng.standard_normal(6000) for _ in range(4)] + [other])
    y = (1.5 * signal + other + 0.3 * rng.standard_normal(6000)) > 0
    gram = relevance_gram(data_of(x, y))
    alone = [explained(gram, 5, [feature]) for feature in range(5)]
    assert min(alone[:4]) > 1.5 * alone[4]
    with_both = 0
    for seed in range(40):
        views = draw_views(gram, names(5), seed=seed, width=2, meta_neurons=[0])
        with_both += "f04" in views[0]
    assert with_both >= 34


def test_no_view_holds_what_its_other_features_foretell() -> None:
    """Two features share a strong disturbance: their difference alone tells the label. No view takes both."""
    rng = np.random.default_rng(4)
    n = 4000
    y = (rng.random(n) < 0.5).astype(np.uint8)
    shared = 3 * rng.standard_normal(n)
    x = np.stack([shared + y, shared - y, *rng.standard_normal((4, n))])
    features = np.concatenate([x, np.abs(rng.standard_normal((6, n)))]).astype(np.float32)
    data = FitData(names(6), [ArraySamples("a", features, y, np.zeros(n, np.int32), (n, n))], [])
    gram = relevance_gram(data)
    assert foretold(gram, [0], 1) > MOST_ALIKE
    views = draw_views(gram, data.pool, seed=0, width=3, meta_neurons=range(9))
    assert all(not {"f00", "f01"} <= set(view) for view in views.values())
    whole = draw_views(gram, data.pool, seed=0, width=6, meta_neurons=range(1))
    assert whole[0] == data.pool, "where only like ones are left, the least alike enters"


def test_what_is_foretold_is_the_r_squared_of_a_linear_fit(gram: np.ndarray) -> None:
    correlations = gram[:12, :12]
    for other, features in ((3, [0]), (5, [1, 2, 8])):
        inner, target = correlations[np.ix_(features, features)], correlations[features, other]
        weights, *_ = np.linalg.lstsq(inner, target, rcond=None)
        assert foretold(gram, features, other) == pytest.approx(weights @ target, abs=1e-5)
    assert foretold(gram, [], 3) == 0


def test_a_feature_that_adds_nothing_still_has_a_small_chance_so_that_views_differ() -> None:
    gram = np.eye(3 * 8 + 1)
    gram[0, -1] = gram[-1, 0] = 0.8  # only feature 0 tells anything of the label
    drawn = [draw_views(gram, names(8), seed=seed, width=1, meta_neurons=[0])[0] for seed in range(400)]
    others = sum(view != ("f00",) for view in drawn)
    assert 20 < others < 100


def test_the_share_explained_is_the_r_squared_of_a_linear_fit() -> None:
    rng = np.random.default_rng(4)
    x, g = rng.standard_normal((6, 3000)) * 7 + 3, np.abs(rng.standard_normal((6, 3000)))
    y = (x[0] + x[1] ** 2 / 10 + 3 * g[1] + rng.standard_normal(3000) > 6).astype(float)
    data = data_of(x, y, g, cases=3)
    gram = relevance_gram(data)
    raw = np.concatenate([case.features for case in data.train], axis=1).astype(np.float64)
    s = (raw[:6] - raw[:6].mean(axis=1, keepdims=True)) / raw[:6].std(axis=1, keepdims=True)
    for chosen in ([0], [1], [4, 1], [5, 0, 2, 1]):
        columns = np.concatenate([s[chosen], s[chosen] ** 2, raw[6:][chosen]]).T
        expected = LinearRegression().fit(columns, y).score(columns, y)
        assert explained(gram, 6, chosen) == pytest.approx(expected, rel=1e-4)
    assert explained(gram, 6, []) == 0.0


def test_the_relevance_is_a_correlation_matrix() -> None:
    data = make_data((700, 500), 4, correlation=0.6)
    raw = np.concatenate([case.features for case in data.train], axis=1).astype(np.float64)
    y = np.concatenate([case.y for case in data.train])
    s = (raw[:4] - raw[:4].mean(axis=1, keepdims=True)) / raw[:4].std(axis=1, keepdims=True)
    expected = np.corrcoef(np.concatenate([raw[:4], s**2, raw[4:], y[None]]))
    assert relevance_gram(data) == pytest.approx(expected, abs=1e-9)


def test_a_constant_feature_is_worth_nothing_and_breaks_nothing() -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((5, 2000))
    x[3], y = 2.0, x[0] + x[1] > 0
    gram = relevance_gram(data_of(x, y, np.abs(x)))
    assert np.isfinite(gram).all()
    assert explained(gram, 5, [3]) == pytest.approx(0.0, abs=1e-9)
    drawn = {seed: draw_views(gram, names(5), seed=seed, width=2, meta_neurons=[0])[0] for seed in range(40)}
    assert count(drawn, 5)[:2].min() > 30
    assert count(drawn, 5)[3] < 8


def test_a_view_as_wide_as_the_pool_is_the_pool() -> None:
    gram = relevance_gram(make_data((300,), 3))
    assert draw_views(gram, names(3), seed=0, width=3, meta_neurons=range(1)) == {0: names(3)}
    with pytest.raises(UsageError, match="too few different views"):
        draw_views(gram, names(3), seed=0, width=3, meta_neurons=range(2))


def test_a_view_wider_than_the_pool_is_refused() -> None:
    gram = relevance_gram(make_data((300,), 3))
    with pytest.raises(UsageError, match="features_per_neuron"):
        draw_views(gram, names(3), seed=0, width=4, meta_neurons=range(3))
