"""Files are measured once; a book that is wrong, old or shared never gives wrong facts."""

from __future__ import annotations

import hashlib
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import orjson
import pytest

from nx46vx.data import integrity
from nx46vx.data.integrity import DigestBook, FileFacts, measure_file, try_measure
from nx46vx.data.volume_io import write_volume
from nx46vx.errors import DataError

LABEL = np.random.default_rng(1).integers(0, 3, (4, 9, 7), dtype=np.uint8)


@pytest.fixture
def label(tmp_path: Path) -> Path:
    write_volume(tmp_path / "label.tif", LABEL, compression="lzw")
    return tmp_path / "label.tif"


def test_facts_are_digest_shape_and_counts(label: Path) -> None:
    facts = measure_file(label, True)
    assert facts.digest == hashlib.sha512(label.read_bytes()).hexdigest()
    assert facts.shape == LABEL.shape
    assert facts.size == label.stat().st_size
    assert facts.counts == tuple(np.bincount(LABEL.ravel(), minlength=3))
    assert measure_file(label, False).counts is None


def test_a_warm_start_measures_nothing(label: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cold = DigestBook(tmp_path / "book.json").facts(label, label=True)
    monkeypatch.setattr(integrity, "measure_file", lambda *_: pytest.fail("measured again"))
    monkeypatch.chdir(tmp_path)
    warm = DigestBook(tmp_path / "book.json")
    assert warm.missing([label, Path("label.tif")], label=True) == []
    assert warm.facts(Path("label.tif"), label=True) == cold


def test_a_changed_or_vanished_file_is_missing_again(label: Path, tmp_path: Path) -> None:
    book = DigestBook(tmp_path / "book.json")
    before = book.facts(label, label=True)
    write_volume(label, LABEL[::-1], compression="lzw")
    os.utime(label, ns=(1, before.mtime_ns + 1))
    assert book.missing([label]) == [label]
    assert book.facts(label, label=True).digest != before.digest
    label.unlink()
    assert book.missing([label]) == [label]
    with pytest.raises(DataError, match=r"label\.tif"):
        book.facts(label, label=True)


def test_what_was_measured_as_an_image_is_missing_as_a_label(label: Path, tmp_path: Path) -> None:
    book = DigestBook(tmp_path / "book.json")
    book.facts(label, label=False)
    assert book.missing([label], label=False) == []
    assert book.missing([label], label=True) == [label]
    assert book.facts(label, label=True).counts is not None


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b"null", b'{"schema": 1}', b'{"schema": 99, "files": {}}', b'{"schema": 1, "files": {"a": 3}}',
     b'{"schema": 1, "files": {"a": {"digest": "zz", "size": -1, "shape": [1], "counts": null, "mtime_ns": 0}}}'],
)  # fmt: skip
def test_a_damaged_book_is_ignored_and_written_anew(label: Path, tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "book.json"
    path.write_bytes(damage)
    book = DigestBook(path)
    assert book.missing([label]) == [label]
    facts = book.facts(label, label=True)
    assert DigestBook(path).get(label, label=True) == facts


def test_two_writers_keep_each_others_entries(tmp_path: Path) -> None:
    paths = [tmp_path / f"{index}.tif" for index in range(6)]
    for path in paths:
        write_volume(path, LABEL)
    books = [DigestBook(tmp_path / "book.json") for _ in paths]  # all opened before any was written

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda book, path: book.facts(path, label=True), books, paths))
    assert DigestBook(tmp_path / "book.json").missing(paths, label=True) == []
    assert len(orjson.loads((tmp_path / "book.json").read_bytes())["files"]) == 6


def test_wrong_label_values_are_named_with_the_fix(tmp_path: Path) -> None:
    bad = LABEL.copy()
    bad[bad == 2] = 3
    write_volume(tmp_path / "bad.tif", bad)
    with pytest.raises(DataError, match=r"label volume holds values \{0, 1, 3\}\. Allowed: 0 background") as caught:
        measure_file(tmp_path / "bad.tif", True)
    assert "data.skip_cases" in str(caught.value)
    assert "bad.tif" in str(caught.value)


def test_errors_travel_between_processes_as_values(tmp_path: Path) -> None:
    (tmp_path / "bad.tif").write_bytes(b"no picture at all")
    error = pickle.loads(pickle.dumps(try_measure(tmp_path / "bad.tif", False)))  # noqa: S301
    assert isinstance(error, DataError)
    assert "not a TIFF" in str(error)
    assert error.exit_code == 4


def test_an_entry_survives_the_trip_through_the_book(tmp_path: Path, label: Path) -> None:
    stat = label.stat()
    facts = FileFacts("ab" * 64, stat.st_size, (3, 4, 5), (1, 2, 3), stat.st_mtime_ns)
    book = DigestBook(tmp_path / "deep" / "er" / "book.json")
    book.record(label, facts)
    book.save()
    assert DigestBook(tmp_path / "deep" / "er" / "book.json").get(label) == facts
