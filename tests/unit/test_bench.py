"""Benchmarks measure what they say, side by side, and tell it in one form. Nothing here judges a speed but by ratio."""

from __future__ import annotations

import math
from dataclasses import fields
from importlib import import_module
from importlib.metadata import version

import numpy as np
import orjson
import pytest
from scipy.special import expit

from nx46vx.bench import checkpoint_speed, durability, engine, features, grid, log_speed, peers, scaling
from nx46vx.bench.frame import Figure, Outcome, in_turn, number, ratios, table
from nx46vx.bench.lanes import different_views, learnable_data, neurons_of
from nx46vx.bench.machine import LIBRARIES, machine_facts
from nx46vx.bench.naive import NaiveLog, naive_checkpoint
from nx46vx.bench.serial import serial_fit
from nx46vx.cli.bench import bench
from nx46vx.runtime.numeric import PINNED

TINY_DURABILITY = durability.Sizes(
    repetitions=1, events=200, naive_events=50, verified_events=200, verified_writers=2, commits=3, candidates=2,
    calibration_samples=4096, features_edge=64,
)  # fmt: skip
TINY_ENGINE = engine.Sizes(
    samples=6000, validation=1000, iterations=1, one_lane_iterations=1, serial_iterations=1, repetitions=1
)

DURABILITY_KEYS = {
    "log_events_per_s", "log_us_per_event", "log_ratio_vs_naive", "verify_events_per_s", "commit_ms",
    "commit_two_roots_ms", "commit_ratio_vs_naive", "fit_us_per_event", "full_run_log_s", "full_run_checkpoints_s",
    "log_share_pct", "checkpoints_share_pct",
}  # fmt: skip
ENGINE_KEYS = {"ns_per_sample_lane_iter", "ratio_vs_serial_twin", "ratio_vs_single_lane"}


# the frame


def test_sides_take_turns_and_the_first_round_does_not_count():
    calls: list[str] = []

    def side(name: str, value: float) -> float:
        calls.append(name)
        return value + len(calls)

    found = in_turn({"a": lambda: side("a", 0.0), "b": lambda: side("b", 100.0)}, 3)
    assert "".join(calls) == "abababab"
    assert found == {"a": (3.0, 5.0, 7.0), "b": (104.0, 106.0, 108.0)}


def test_rounds_are_compared_with_themselves():
    assert ratios((10.0, 40.0), (5.0, 10.0)) == (2.0, 4.0)


def test_a_figure_knows_whether_it_keeps_its_bound():
    values = (1.0, 9.0, 2.0)
    assert Figure("x", "x", values).met is None
    assert Figure("x", "x", values, at_least=2.0).met
    assert not Figure("x", "x", values, at_least=2.1).met
    assert Figure("x", "x", values, at_most=2.0).met
    assert not Figure("x", "x", values, at_most=1.9).met


def test_an_outcome_gives_medians_by_name_and_the_spread_beside_them():
    outcome = Outcome("b", [Figure("speed", "speed", (3.0, 1.0, 2.0), "1/s", at_least=1.5)], {"samples": 7})
    found = outcome.to_json()
    assert (found["bench"], found["samples"], found["speed"]) == ("b", 7, 2.0)
    spread = found["spread"]["speed"]
    assert (spread["min"], spread["max"], spread["repetitions"], spread["met"]) == (1.0, 3.0, 3, True)


def test_the_table_is_markdown_with_a_row_for_each_figure():
    outcome = Outcome("b", [Figure("a", "first", (1234.5,), "us"), Figure("b", "second", (0.5,), at_most=0.1)])
    head, rule, first, second = table(outcome).splitlines()
    assert len({line.count("|") for line in (head, rule, first, second)}) == 1
    assert "| 1,234" in first
    assert "<= 0.1" in second and "missed" in second


@pytest.mark.parametrize(
    ("value", "text"), [(0.01234, "0.0123"), (9.876, "9.88"), (12.34, "12.3"), (123.4, "123"), (1234567.0, "1,234,567")]
)
def test_numbers_are_for_people(value, text):
    assert number(value) == text


def test_the_machine_is_described(tmp_path):
    facts = machine_facts(tmp_path)
    assert facts["cores"] >= 1 and facts["memory_gib"] > 0 and len(facts["load_average"]) == 3
    assert facts["numpy"] == np.__version__
    assert facts["cpu"] and facts["file_system"]
    assert orjson.loads(orjson.dumps(facts)) == facts


# the yardsticks


def test_the_serial_twin_reaches_the_optimum_of_the_neurons_objective():
    """The conditions of an optimum, written out: the slope is -l1 sign(w) where w is not zero, else within l1."""
    rng = np.random.default_rng(3)
    x, g = rng.standard_normal((2, 800, 3))
    y = (x[:, 0] + 0.5 * x[:, 1] ** 2 - 0.5 + rng.standard_normal(800) > 0).astype(float)
    l1, l2 = 0.02, 0.01
    weights, intercept = serial_fit(x, g, y, l1=l1, l2=l2, iterations=4000)
    columns = np.concatenate([x, x * x, g], axis=1)
    error = expit(columns @ weights.ravel() + intercept) - y
    slope = (columns.T @ error / y.size).reshape(3, 3) + l2 * weights
    assert abs(error.mean()) < 1e-6
    np.testing.assert_allclose(slope[weights != 0], -l1 * np.sign(weights[weights != 0]), atol=1e-6)
    assert np.abs(slope[weights == 0]).max() <= l1
    assert 0 < np.count_nonzero(weights) < 9


def test_the_naive_log_and_checkpoint_keep_what_they_are_given(tmp_path):
    log = NaiveLog(tmp_path / "log.jsonl")
    for fields_ in log_speed.iteration_events(0, 3):
        log.emit("PROGRESS_UPDATE", fields_)
    lines = [orjson.loads(line) for line in (tmp_path / "log.jsonl").read_bytes().splitlines()]
    assert [line["seq"] for line in lines] == [0, 1, 2]
    assert len({line["chain"] for line in lines}) == 3
    naive_checkpoint(tmp_path, {"theta": np.arange(4.0)}, {"iter": 10})
    assert orjson.loads((tmp_path / "state.json").read_bytes()) == {"iter": 10}
    assert np.load(tmp_path / "state.npz")["arr_0"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_the_measured_grid_is_the_products_with_nine_different_views():
    views = different_views(9)
    assert len(set(views)) == 9
    assert {len(view) for view in views} == {6}
    data = learnable_data(4000, 1000)
    assert len(data.pool) == 24
    specs = neurons_of(data, 2)
    assert [spec.columns for spec in specs] == [19, 19]
    assert 0.2 < data.natural_prior < 0.8


# the benchmarks


def positive(found: dict, names: set[str]) -> None:
    for name in names:
        value = found[name]
        assert isinstance(value, float) and math.isfinite(value) and value > 0, name
        assert found["spread"][name]["min"] <= value <= found["spread"][name]["max"]


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(durability, "QUICK", TINY_DURABILITY)
    monkeypatch.setattr(engine, "QUICK", TINY_ENGINE)


def test_durability_tells_speeds_costs_and_shares_in_one_json_object(tiny, command, tmp_path):
    done = command("bench", "durability", "--quick", "--json", "--dir", tmp_path)
    assert done.code == 0, done.stderr
    found = orjson.loads(done.stdout)
    positive(found, DURABILITY_KEYS)
    assert (found["bench"], found["quick"], found["events"]) == ("durability", True, 200)
    assert found["machine"]["cores"] >= 1
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
    engine_alone = 100 * found["full_run_log_s"] / found["full_run_engine_s"]
    assert found["log_engine_share_pct"] == pytest.approx(engine_alone)
    both = found["full_run_engine_s"] + found["full_run_features_s"]
    assert found["log_share_pct"] == pytest.approx(100 * found["full_run_log_s"] / both)


def test_engine_tells_cost_and_ratios_in_one_json_object(tiny, command):
    done = command("bench", "engine", "--quick", "--json")
    assert done.code == 0, done.stderr
    found = orjson.loads(done.stdout)
    positive(found, ENGINE_KEYS)
    assert (found["samples"], found["lanes"]) == (6000, 135)
    assert isinstance(found["threads"], int) and found["threads"] >= 1
    ratio = found["serial_twin_ns_per_sample_iter"] / found["ns_per_sample_lane_iter"]
    assert found["ratio_vs_serial_twin"] == pytest.approx(ratio)


def test_without_json_a_table_is_printed(tiny, command):
    done = command("bench", "engine", "--quick")
    assert done.code == 0, done.stderr
    assert "| serial twin against the grid" in done.stdout


@pytest.mark.parametrize("name", [command.name or command.callback.__name__ for command in bench.registered_commands])
def test_every_benchmark_tells_machine_versions_and_thread_settings(name, command, monkeypatch):
    """In JSON and above the table, whatever table it is."""
    module = import_module(f"nx46vx.bench.{ {'masks': 'ablation'}.get(name, name) }")
    plain = name in ("features", "inference")
    measured = {"seconds": [1.0, 2.0]} if plain else Outcome(name, [Figure("seconds", "seconds", (1.0, 2.0), "s")])
    monkeypatch.setattr(module, "measure", lambda *_, **__: measured)
    if hasattr(module, "table") and not plain:
        monkeypatch.setattr(module, "table", lambda outcome: f"| own table of {outcome.bench} |")
    found = orjson.loads(command("bench", name, "--quick", "--json").stdout)
    assert (found["bench"], found["quick"], found["seconds"]) == (name, True, 1.5)
    machine = found["machine"]
    assert machine["thread_settings"] == PINNED
    assert machine["cores"] >= 1 and machine["cpu"] and len(machine["load_average"]) == 3
    assert {library: version(library) for library in LIBRARIES}.items() <= machine.items()
    shown = command("bench", name, "--quick").stdout
    assert f"thread_settings: {PINNED}" in shown and f"numpy: {np.__version__}" in shown and "load_average:" in shown
    assert shown.splitlines()[-1].startswith("|")


def test_quick_is_smaller_in_every_size():
    for module in (durability, engine, peers, grid, scaling, features):
        full = module.Sizes()
        smaller = [getattr(module.QUICK, one.name) <= getattr(full, one.name) for one in fields(full)]
        assert all(smaller) and full != module.QUICK


def test_quick_keeps_the_samples_that_ratios_are_told_for():
    assert {module.QUICK.samples for module in (engine, peers, grid)} == {400_000}


def test_a_log_that_does_not_verify_is_no_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(log_speed, "verify_log", lambda *_, **__: ["a problem"])
    with pytest.raises(Exception, match="does not verify"):
        log_speed.verified_speed(tmp_path, 40, 2, 1)


def test_commits_of_a_benchmark_are_real_ones(tmp_path, monkeypatch):
    """Each takes a checkpoint's folder; the benchmark's time is that of the product's own store."""
    made: list[int] = []
    real = checkpoint_speed.CheckpointStore.commit

    def commit(self, *arguments, **options):
        found = real(self, *arguments, **options)
        assert found.path.is_dir()
        made.append(found.number)
        return found

    monkeypatch.setattr(checkpoint_speed.CheckpointStore, "commit", commit)
    checkpoint_speed.checkpoint_speed(tmp_path, 4, 1)
    assert made == [1, 2, 3, 4] * 4  # a warm-up and one repetition, in one root and in two


@pytest.mark.slow
def test_the_grid_stays_far_ahead_of_the_serial_pattern():
    """Not a speed but a ratio, in one process, taken in turn: the engine against one candidate at a time."""
    sizes = engine.Sizes(
        samples=60_000, validation=4_000, iterations=2, one_lane_iterations=2, serial_iterations=2, repetitions=5
    )
    found = engine.measure(sizes).to_json()
    assert found["kernel"] == "llvm"
    assert found["ratio_vs_serial_twin"] >= 16
