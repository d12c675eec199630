"""Configuration: YAML < environment < flags; what is unknown, mistyped or impossible is refused by its path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nx46vx.errors import EnvironmentFault, UsageError
from nx46vx.settings import EXECUTION_KEYS, Settings, flatten, load_settings, result_keys

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SHIPPED = ("smoke", "laptop", "default", "kaggle_gpu")


def written(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def load(path: Path | None = None, overrides: dict[str, Any] | None = None, **environ: str) -> Settings:
    return load_settings(path, overrides=overrides, environ=environ)


def test_the_defaults_are_the_full_grid() -> None:
    settings = load()
    assert settings.grid.meta_neurons == 9
    assert settings.grid.l1 == (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    assert settings.grid.l2 == (1e-4, 1e-3, 1e-2)
    assert settings.grid.max_iter == 120
    assert settings.grid.features_per_neuron == 6
    assert settings.features.max_samples_per_volume == 40_000
    assert settings.data.preflight_fraction == 0.05
    assert settings.data.max_pairs is None
    assert settings.epochs.supervised_epochs == 1
    assert settings.solver.block_iterations == 10
    assert settings.resources.trials_in_flight == settings.resources.gpus_per_trial == "auto"
    assert not settings.reduced and not settings.allow_reduced


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_load_and_cut_nothing(name: str) -> None:
    settings = load(CONFIGS / f"{name}.yaml")
    assert not settings.reduced and not settings.allow_reduced
    assert settings.data.max_pairs is None
    if name == "smoke":
        assert not settings.growth.enabled


def test_no_other_configuration_is_shipped_untested() -> None:
    assert {path.stem for path in CONFIGS.glob("*.y*ml")} == set(SHIPPED)


def test_environment_beats_yaml_and_flags_beat_both(tmp_path: Path) -> None:
    path = written(tmp_path, "seed: 1\nsolver: {block_iterations: 5}\ngrid: {max_iter: 150}\n")
    env = {"NX46VX_SEED": "2", "NX46VX_GRID__MAX_ITER": "160"}
    settings = load(path, {"seed": 3}, **env)
    assert (settings.seed, settings.grid.max_iter, settings.solver.block_iterations) == (3, 160, 5)
    assert load(path, **env).seed == 2
    assert load(path).seed == 1


def test_other_variables_are_no_configuration() -> None:
    assert load(None, None, SEED="5", XNX46VX_SEED="6") == load()


def test_numbers_are_numbers_however_they_are_written(tmp_path: Path) -> None:
    """YAML 1.1 takes 1e-4 for a word; nobody else does."""
    path = written(tmp_path, "epochs: {convergence_min_delta: 1e-5}\n")
    assert load(path).epochs.convergence_min_delta == 1e-5
    assert load(None, None, NX46VX_EPOCHS__CONVERGENCE_MIN_DELTA="1e-5").epochs.convergence_min_delta == 1e-5
    grid = "grid: {l1: [1e-4, 3e-4, 1e-3, 3.0e-3, 0.01], l2: [1E-4, 1e-3, 1e-2]}\n"
    assert load(written(tmp_path, grid)).grid == Settings().grid


BAD = [
    ("nonsense", 1, "nonsense", "not permitted"),
    ("grid.nonsense", 1, "grid.nonsense", "not permitted"),
    ("data.synthetic.nonsense", 1, "data.synthetic.nonsense", "not permitted"),
    ("seed", "abc", "seed", "integer"),
    ("seed", -1, "seed", "greater than or equal to 0"),
    ("grid.max_iter", 120.5, "grid.max_iter", "integer"),
    ("grid.max_iter", 0, "grid.max_iter", "greater than or equal to 1"),
    ("grid.meta_neurons", 1001, "grid.meta_neurons", "less than or equal to 1000"),
    ("data.validation_fraction", 0.5, "data.validation_fraction", "less than 0.5"),
    ("data.validation_fraction", 0, "data.validation_fraction", "greater than 0"),
    ("data.preflight_fraction", 1.5, "data.preflight_fraction", "less than or equal to 1"),
    ("data.synthetic.size", 47, "data.synthetic.size", "greater than or equal to 48"),
    ("data.synthetic.size", 321, "data.synthetic.size", "less than or equal to 320"),
    ("solver.method", "adam", "solver.method", "'fista' or 'ista'"),
    ("resources.executor", "slurm", "resources.executor", "'ray' or 'inline'"),
    ("resources.trials_in_flight", 0, "resources.trials_in_flight", "greater than or equal to 1"),
    ("resources.trials_in_flight", "many", "resources.trials_in_flight", "auto"),
    ("resources.gpus_per_trial", 2, "resources.gpus_per_trial", "less than or equal to 1"),
    ("mask.strong_th", 1.0, "mask.strong_th", "less than 1"),
    ("epochs.supervised_epochs", -1, "epochs.supervised_epochs", "greater than or equal to 0"),
    ("growth.min_gain_se", -0.1, "growth.min_gain_se", "greater than or equal to 0"),
    ("growth.enabled", "perhaps", "growth.enabled", "boolean"),
    ("budget.hours", 0, "budget.hours", "greater than 0"),
    ("budget.hours", float("nan"), "budget.hours", "finite"),
    ("grid", 5, "grid", "dictionary"),
    ("grid.l1", [], "grid.l1", "at least 1"),
    ("grid.l1", [0.1, -0.1], "grid.l1.1", "greater than 0"),
]


def nested(dotted: str, value: Any) -> dict[str, Any]:
    for key in reversed(dotted.split(".")):
        value = {key: value}
    return value


@pytest.mark.parametrize(("key", "value", "path", "reason"), BAD)
def test_bad_values_are_refused_by_path_and_reason_wherever_they_stand(
    tmp_path: Path, key: str, value: Any, path: str, reason: str
) -> None:
    config = written(tmp_path, yaml.safe_dump(nested(key, value)))
    variable = "NX46VX_" + key.upper().replace(".", "__")
    scalar = yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("\n...")
    for attempt in (
        lambda: load(config),
        lambda: load(None, {key: value}),
        lambda: load(None, None, **{variable: scalar}),
    ):
        with pytest.raises(UsageError) as raised:
            attempt()
        assert raised.value.exit_code == 2
        assert path in str(raised.value)
        assert reason in str(raised.value)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(UsageError) as raised:
        load(None, {"seed": -1, "grid.max_iter": "x", "mask.z_radius": 99})
    assert all(key in str(raised.value) for key in ("seed", "grid.max_iter", "mask.z_radius"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"data.max_pairs": 5}, "max_pairs_reason"),
        ({"growth.max_meta_neurons": 8}, "growth.max_meta_neurons"),
        ({"mask.strong_th": 0.3, "mask.weak_th": 0.6}, "weak_th"),
        ({"grid.l1": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 1e-2]}, "twice"),
        ({"grid.l1": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 2e-2]}, "16 lanes"),
        ({"seed": 2, "seed.deeper": 1}, "no keys below"),
    ],
)
def test_impossible_combinations_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load(None, values)


CUTS = [{"grid.max_iter": 119}, {"grid.meta_neurons": 8}, {"grid.l1": [1e-3]}, {"grid.l2": [1e-4, 1e-3]}]


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_needs_leave_and_is_marked(cut: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="allow_reduced"):
        load(None, cut)
    assert load(None, {**cut, "allow_reduced": True}).reduced


def test_more_than_the_grid_is_no_cut_and_leave_alone_marks_nothing() -> None:
    more = {"grid.max_iter": 121, "grid.meta_neurons": 10}
    assert not load(None, more).reduced
    assert not load(None, {"allow_reduced": True}).reduced


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: [1\n", "not valid YAML"),
        ("- 1\n- 2\n", "no mapping"),
        ("seed: 1\nseed: 2\n", "stands twice"),
        ("grid: {max_iter: 120, max_iter: 240}\n", "stands twice"),
        ("seed: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_files_that_are_no_configuration_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as raised:
        load(written(tmp_path, text))
    assert "config.yaml" in str(raised.value)


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    assert load(written(tmp_path, "")) == Settings()
    assert load(written(tmp_path, "grid:\n"), {"grid.max_iter": 130}).grid.max_iter == 130


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not there"):
        load(tmp_path / "absent.yaml")
    with pytest.raises(EnvironmentFault):
        load(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00seed")
    with pytest.raises(UsageError, match="no text"):
        load(binary)


def test_a_resolved_configuration_loads_to_itself(tmp_path: Path) -> None:

    settings = load(None, {"seed": 7, "data.skip_cases": ["a"], "mask.strong_th": 0.7, "features.cache_dir": "/x"})
    assert load(written(tmp_path, settings.as_yaml())) == settings


def test_how_the_work_is_run_is_no_part_of_what_comes_out() -> None:
    plain = result_keys(load())
    other = {
        "resources.executor": "inline", "resources.trials_in_flight": 3, "resources.device": "cpu",
        "budget.hours": 1, "features.cache_dir": "/tmp/x", "features.workers": 2, "features.block": 64,
    }  # fmt: skip
    assert result_keys(load(None, other)) == plain
    everything = flatten(Settings().model_dump(mode="json"))
    skipped = {key for key in everything if any(key == k or key.startswith(f"{k}.") for k in EXECUTION_KEYS)}
    student = {key for key in everything if key.startswith("student.")}
    assert set(plain) == set(everything) - skipped - student
    assert set(result_keys(load(None, {"student.enabled": "auto"}))) == set(everything) - skipped
    assert result_keys(load(None, {"student.epochs": 2})) == plain  # of a student that nobody asked for
    for key, value in {"seed": 1, "solver.method": "ista", "grid.max_iter": 130, "mask.z_radius": 2}.items():
        assert result_keys(load(None, {key: value})) != plain


def test_the_widest_view_is_the_pool() -> None:
    from nx46vx.features.pool import feature_names
    from nx46vx.settings import POOL_SIZE

    assert len(feature_names()) == POOL_SIZE
