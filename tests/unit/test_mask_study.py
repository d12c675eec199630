"""The mask search: the same trials whatever the order they end in and wherever a session ended; what it records."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_postprocess import smooth_noise

from nx46vx.inference.masks.doubt import Prediction
from nx46vx.inference.masks.parameters import MaskRule
from nx46vx.inference.postprocess import mask_of
from nx46vx.inference.scoring import score_volume
from nx46vx.pipeline.masksearch import best_rule, figures_of, leaderboard_text
from nx46vx.report.bars import bars_svg
from trainables.mask_task import PARTS, MaskVolumes

pytest.importorskip("optuna")
from search.mask_search import MaskJob, TrialSource, search_inline
from search.mask_study import MaskStudy, read_results

START = MaskRule(strong=0.6, weak=1.2, per_volume=True, z_radius=1, xy_radius=1, border=3, dust_min_size=64)
TRIALS, BATCH = 10, 4


def study(path: Path, binding: str = "one", trials: int = TRIALS) -> MaskStudy:
    return MaskStudy(path, start=START, thresholds=True, binding=binding, seed=3, batch=BATCH, trials=trials)


def pretended(rule: dict[str, Any]) -> dict[str, Any]:
    """A score without volumes: best at some rule."""
    score = 0.8 - 0.1 * abs(rule["strong"] - 0.9) - 0.02 * abs(rule["z_radius"] - 2) - 0.01 * rule["split_levels"]
    return {part: score for part in PARTS} | {"cases": {}, "seconds": 0.1}


def searched(made: MaskStudy, *, shuffle: int | None = None, most: int = TRIALS) -> MaskStudy:
    """Score trials in an order of chance, and end after some of them."""
    done = 0
    source = TrialSource(made, lambda: True, lambda draw, result: None)
    rng = random.Random(shuffle)
    while done < most:
        live = []
        while (draw := source.next()) is not None:
            live.append(draw)
        if not live:
            break
        if shuffle is not None:
            rng.shuffle(live)
        for draw in live[: most - done]:
            source.finish(draw, pretended(draw.rule))
            done += 1
    return made


def rules(made: MaskStudy) -> dict[int, Any]:
    return {number: (result["rule"], result["score"]) for number, result in made.results().items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    return rules(searched(study(tmp_path_factory.mktemp("whole") / "journal.log")))


def test_the_first_trial_is_the_start_and_the_border_stays(whole: dict[int, Any]) -> None:
    assert len(whole) == TRIALS
    first = whole[0][0]
    for name in ("strong", "z_radius", "xy_radius", "dust_min_size", "slice_gap", "max_doubt"):
        assert first[name] == pytest.approx(getattr(START, name))
    assert first["weak"] == pytest.approx(START.weak)
    assert {rule["border"] for rule, _ in whole.values()} == {3}
    assert len({str(rule) for rule, _ in whole.values()}) == TRIALS


@pytest.mark.parametrize("seed", range(3))
def test_the_order_in_which_trials_end_changes_nothing(tmp_path: Path, seed: int, whole: dict[int, Any]) -> None:
    assert rules(searched(study(tmp_path / "journal.log"), shuffle=seed)) == whole


@pytest.mark.parametrize("most", range(TRIALS + 1))
def test_wherever_a_session_ends_the_next_goes_on_from_the_journal(
    tmp_path: Path, most: int, whole: dict[int, Any]
) -> None:
    path = tmp_path / "mask_search/journal.log"
    searched(study(path), shuffle=most, most=most)
    with open(path, "ab") as file:
        file.write(b'{"op_code": 5, "wor')  # torn by a crash
    again = study(path)
    assert again.replayed == most
    scored: list[int] = []
    source = TrialSource(again, lambda: True, lambda draw, result: scored.append(draw.number))
    while (draw := source.next()) is not None:
        source.finish(draw, pretended(draw.rule))
    assert len(scored) == TRIALS - most
    assert rules(again) == whole
    assert [file.name for file in path.parent.iterdir()] == ["journal.log"]


@pytest.mark.parametrize("damage", [b"", b"no journal\n{}\n", b'{"op_code": 0}\n{"op_code": 4}\n'])
def test_a_journal_that_is_damaged_or_anothers_is_none(tmp_path: Path, damage: bytes, whole: dict[int, Any]) -> None:
    path = tmp_path / "journal.log"
    searched(study(path, binding="another"))
    assert len(read_results(path)) == TRIALS
    assert read_results(path, "one") == {}
    if damage:
        path.write_bytes(damage)
        assert read_results(path) == {}
    made = study(path)
    assert made.replayed == 0
    assert rules(searched(made)) == whole


def test_the_journal_is_text_and_optuna_opens_it(tmp_path: Path) -> None:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    path = tmp_path / "journal.log"
    searched(study(path))
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    loaded = optuna.load_study(storage=storage, study_name=None)
    assert len(loaded.trials) == TRIALS
    assert path.read_text().startswith('{"op_code":')


def test_time_ends_the_search_between_batches(tmp_path: Path) -> None:
    made = study(tmp_path / "journal.log")
    looks = iter([True, True, False])
    source = TrialSource(made, lambda: next(looks), lambda draw, result: None)
    while (draw := source.next()) is not None:
        source.finish(draw, pretended(draw.rule))
    assert source.ended and len(made.results()) == 2 * BATCH


def test_a_trials_score_is_the_competitions_of_its_mask(tmp_path: Path) -> None:
    volumes = MaskVolumes(tmp_path / "volumes", ("a/b", "c"))
    given = []
    for number in range(2):
        p = smooth_noise(number, (20, 20, 20))
        label = (smooth_noise(number + 5, (20, 20, 20)) > 0.9).astype(np.uint8)
        prediction = Prediction(p, (p * 100).astype(np.uint8), np.zeros(p.shape, np.uint8))
        volumes.put(number, prediction, label)
        given.append((prediction, label))
    made = study(tmp_path / "journal.log", trials=2)
    source = TrialSource(made, lambda: True, lambda draw, result: None)
    search_inline(MaskJob(source, volumes, tmp_path, 1, 1, lambda: False))
    results = made.results()
    assert len(results) == 2
    for result in results.values():
        rule = MaskRule(**result["rule"])
        expected = [score_volume(mask_of(prediction, rule), label).score for prediction, label in given]
        assert result["score"] == sum(expected) / 2


def test_figures_leaderboard_and_plot(tmp_path: Path) -> None:
    made = searched(study(tmp_path / "journal.log"))
    results, importance = made.results(), made.importance(TRIALS)
    assert abs(sum(importance.values()) - 1) < 1e-9 and "strong" in importance
    assert made.importance(2) == {}
    figures = figures_of(results, importance, TRIALS, "complete")
    best = max(results.values(), key=lambda result: result["score"])
    assert figures["leaderboard"][0]["score"] == best["score"] >= figures["start"]["score"]
    assert best_rule(results, START).to_json() == best["rule"]
    rows = leaderboard_text(results).splitlines()
    assert len(rows) == TRIALS + 1
    assert float(rows[1].split(",")[1]) == best["score"]
    svg = bars_svg("a < b", importance)
    assert svg.count("<rect") == len(importance) + 1 and "a &lt; b" in svg
