"""The leaderboard keeps every bit, one order, and accepts only what it wrote."""

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nx46vx.errors import IntegrityError, NX46Error
from nx46vx.report.tables import LEADERBOARD_COLUMNS, leaderboard_csv, read_leaderboard

HEADER = (
    "candidate_id,meta_neuron,l1,l2,epoch,iter,objective,train_loss,val_ce,val_f1,val_fbeta,val_iou,"
    "best_threshold,sparsity,seconds"
)


def row(candidate_id: str = "k0-a", **changes) -> dict:
    values = dict.fromkeys(LEADERBOARD_COLUMNS, 0.1)
    return values | {"candidate_id": candidate_id, "meta_neuron": 3, "epoch": 0, "iter": 120} | changes


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "leaderboard.csv"
    path.write_bytes(text.encode())
    return path


def test_the_columns_are_exactly_these() -> None:
    assert leaderboard_csv([row()]).splitlines()[0] == HEADER
    assert leaderboard_csv([]) == HEADER + "\n"


@settings(max_examples=100, deadline=None)
@given(st.floats(), st.floats(allow_nan=False))
def test_floats_come_back_with_the_same_bits(tmp_path_factory, a: float, b: float) -> None:
    text = leaderboard_csv([row(objective=a, val_ce=b)])
    cells = dict(zip(HEADER.split(","), text.splitlines()[1].split(","), strict=True))
    assert bits(float(cells["val_ce"])) == bits(b)
    (found,) = read_leaderboard(written(tmp_path_factory.mktemp("t"), text))
    assert bits(found["val_ce"]) == bits(b)
    assert bits(found["objective"]) == bits(a) or math.isnan(a)


def test_numpy_scalars_are_written_as_numbers() -> None:
    plain = leaderboard_csv([row(objective=float(np.float32(0.1)), iter=240, l1=1.0)])
    assert leaderboard_csv([row(objective=np.float32(0.1), iter=np.int64(240), l1=1)]) == plain


def test_rows_are_sorted_by_objective_then_id_whatever_came_in() -> None:
    rows = [row("c", objective=0.5), row("b", objective=0.5), row("n", objective=math.nan), row("a", objective=0.7)]
    text = leaderboard_csv(rows)
    assert [line.split(",")[0] for line in text.splitlines()[1:]] == ["b", "c", "a", "n"]
    assert leaderboard_csv(iter(rows[::-1])) == text


def test_extra_keys_are_left_out_and_ids_with_commas_survive(tmp_path: Path) -> None:
    text = leaderboard_csv([row('k0,"l1"', extra=5)])
    (found,) = read_leaderboard(written(tmp_path, text))
    assert found == row('k0,"l1"') and list(found) == list(LEADERBOARD_COLUMNS)


@pytest.mark.parametrize(
    "changes", [{"objective": None}, {"objective": "0.1"}, {"iter": 120.0}, {"iter": True}, {"candidate_id": 7}]
)
def test_a_value_of_another_type_is_refused(changes) -> None:
    with pytest.raises(NX46Error, match=next(iter(changes))):
        leaderboard_csv([row() | changes])


def test_a_missing_column_and_a_repeated_candidate_are_refused() -> None:
    short = row()
    del short["val_iou"]
    with pytest.raises(NX46Error, match="val_iou"):
        leaderboard_csv([short])
    with pytest.raises(NX46Error, match="twice"):
        leaderboard_csv([row("a"), row("a", objective=0.9)])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text.replace("val_f1,", "", 1),
        lambda text: text.replace("val_f1,val_fbeta", "val_fbeta,val_f1", 1),
        lambda text: text[:-1],
        lambda text: text[:-9],
        lambda text: text + "\n",
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace(",120,", ",1_20,", 1),
        lambda text: text.replace(",120,", ",120.0,", 1),
        lambda text: text.replace(",0.1,", ",0.10,", 1),
        lambda text: text.replace(",0.1,", ",x,", 1),
        lambda text: "\n".join([text.splitlines()[i] for i in (0, 2, 1)]) + "\n",
        lambda text: text + text.splitlines()[1] + "\n",
        lambda text: text + 'k9,"',
    ],
)
def test_anything_else_than_what_was_written_is_refused(tmp_path: Path, spoil) -> None:
    text = leaderboard_csv([row("a", objective=0.2), row("b", objective=0.3)])
    assert len(read_leaderboard(written(tmp_path, text))) == 2
    assert spoil(text) != text
    with pytest.raises(IntegrityError):
        read_leaderboard(written(tmp_path, spoil(text)))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "leaderboard.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(IntegrityError):
        read_leaderboard(path)
