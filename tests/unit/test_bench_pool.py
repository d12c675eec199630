"""The pool's benchmark: nothing is fitted on what is held out, turned samples are the same voxels."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner

from nx46vx.bench import pool, pool_cost, pool_table
from nx46vx.bench.ensembles import Split, compared
from nx46vx.bench.families import CANDIDATES
from nx46vx.bench.pool_samples import ROTATIONS, UPRIGHT, column_names, scroll_samples
from nx46vx.bench.pool_table import WHOLE, feature_sets, folds, leave_one_out, mean_and_error, turned_features
from nx46vx.cli.app import app
from nx46vx.data.synthetic import make_case
from nx46vx.features.pool import FEATURES, feature_names

DOG = CANDIDATES[:1]
TINY = Split(fitted=2, validated=1, held_out=1, samples=600, edge=32)


@pytest.fixture(scope="module")
def scrolls():
    return scroll_samples((1, 2, 3), 32, 300, 400, DOG)


def test_turned_samples_are_the_same_voxels() -> None:
    volume, label = make_case((16, 20, 24), scroll=1, seed=1)
    index = np.random.default_rng(0).choice(volume.size, 500, replace=False)
    assert len(ROTATIONS) == len({rotation.name for rotation in ROTATIONS}) == 6
    for rotation in ROTATIONS:
        moved = rotation.moved(index, volume.shape)
        assert not np.array_equal(moved, index)
        for array in (volume, label, np.arange(volume.size).reshape(volume.shape)):
            assert np.array_equal(rotation.turn(array).ravel()[moved], array.ravel()[index])


def test_no_fold_trains_on_its_held_out_scroll(scrolls, monkeypatch) -> None:
    for data, held_out in folds(scrolls, column_names(DOG)):
        names = {case.case_id for case in (*data.train, *data.validation)}
        assert len(data.train) == 2 and f"scroll-{held_out.scroll}" not in names
    fitted = []
    monkeypatch.setattr(pool_table, "JUDGES", {"one": lambda data, view: fitted.append(data) or (lambda f: f[0])})
    found = leave_one_out(scrolls, DOG)
    assert {len(data.train) for data in fitted} == {2}
    assert len(fitted) == 3 * len(found)


def test_rows_leave_out_whole_families_and_add_candidates() -> None:
    sets = feature_sets(CANDIDATES)
    assert sets[WHOLE] == feature_names()
    for family in {spec.family for spec in FEATURES}:
        gone = set(sets[WHOLE]) - set(sets[f"without {family}"])
        assert gone == {spec.name for spec in FEATURES if spec.family == family}
    for one in CANDIDATES:
        assert sets[f"with {one.family}"] == (*feature_names(), *one.names)


def test_columns_are_the_pools_then_the_candidates(scrolls) -> None:
    plain = scroll_samples((1,), 32, 300, 400, ())[0].judged[UPRIGHT]
    both, m, c = scrolls[0].judged[UPRIGHT], len(feature_names()), len(column_names(DOG))
    assert np.array_equal(both[:m], plain[:m]) and np.array_equal(both[c : c + m], plain[m:])
    assert set(turned_features(scrolls, DOG)) == set(column_names(DOG))


def test_mean_and_error() -> None:
    assert mean_and_error([1.0, 2.0, 3.0]) == (2.0, pytest.approx(1 / np.sqrt(3)))
    assert np.isnan(mean_and_error([1.0])[1])


@pytest.fixture(scope="module")
def one_seed():
    with threadpool_limits(1):
        return compared(0, TINY)


def test_ensembles_and_trees_are_compared_on_the_same_samples(one_seed) -> None:
    found = one_seed
    for value in (found.single, found.nine, found.grown, found.trees):
        assert 0.05 < value <= 1
    assert found.single <= found.hindsight and found.neurons >= 9 and found.reason
    assert found.gain == pytest.approx(found.nine / found.single - 1)


def test_the_benchmark_tells_both_tables_and_the_command_prints_them(monkeypatch, one_seed) -> None:
    first = pool_table.families_of_the_pool()[:1]
    monkeypatch.setattr(pool, "CANDIDATES", DOG)
    monkeypatch.setattr(pool, "compared", lambda seed, split: one_seed)
    for module in (pool_table, pool_cost):  # each further family has its code compiled once more
        monkeypatch.setattr(module, "families_of_the_pool", lambda: first)
    sizes = pool.Sizes(
        scrolls=2, edge=32, fitted=200, judged=600, cost_edge=32, cost_repetitions=1, seeds=1, split=TINY
    )
    outcome = pool.measure(sizes)
    found = outcome.to_json()
    for key in ("whole_pool_neuron_ap", "with_dog_trees_ap", "ensemble_gain", "grown_over_trees", "pool_s"):
        assert np.isfinite(found[key])
    assert found["families"].keys() == feature_sets(DOG).keys()
    row = found["families"]["with dog"]
    assert row["cost_s"] > 0 and {"ap", "ap_se", "gain", "gain_se", "turned"} <= row["trees"].keys()
    monkeypatch.setattr(pool, "measure", lambda sizes: outcome)
    printed = CliRunner().invoke(app, ["bench", "pool", "--quick"])
    assert printed.exit_code == 0 and "| whole pool |" in printed.output and "| mean |" in printed.output
    as_json = CliRunner().invoke(app, ["bench", "pool", "--quick", "--json"])
    assert '"families"' in as_json.output


@pytest.mark.slow
def test_the_ensemble_is_ahead_of_its_best_candidate_and_near_the_trees() -> None:
    """On scrolls that neither the fit nor the choice saw."""
    with threadpool_limits(1):
        found = [compared(seed, Split(fitted=4, validated=2, held_out=2, samples=8000)) for seed in range(2)]
    for one in found:
        print(one)
        assert one.nine > one.summed
        assert one.gain >= 0.03
        assert one.ratio >= 0.9
