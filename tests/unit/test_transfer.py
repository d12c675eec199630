"""Cache entries brought to another machine: the same bytes, once, whole or not at all."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from nx46vx.errors import IntegrityError
from nx46vx.features import transfer
from nx46vx.features.entry import ARRAYS, MANIFEST, Store, entry_path, entry_problem, open_entry, write_entry
from nx46vx.features.transfer import read_part, receive, sizes_of

KEY = "ab" * 64


class Source:
    """The machine that has the entry; what it is asked for is counted."""

    def __init__(self, root: Path, store: Store = "npy") -> None:
        self.root, self.asked, self.bytes = root, 0, 0
        rng = np.random.default_rng(0)
        arrays = {
            "features": rng.standard_normal((6, 500), dtype=np.float32), "y": np.arange(500, dtype=np.uint8) % 2,
            "index": np.arange(500), "group": np.zeros(500, np.int32),
        }  # fmt: skip
        write_entry(entry_path(root, KEY), arrays, case_id="case", counts=(250, 250), facts={"seed": 1}, store=store)

    def sizes(self) -> dict[str, int]:
        self.asked += 1
        return sizes_of(self.root, KEY)

    def read(self, name: str, offset: int, size: int) -> bytes:
        part = read_part(self.root, KEY, name, offset, size)
        self.bytes += len(part)
        return part


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "there")


def files(root: Path) -> dict[str, bytes]:
    entry = entry_path(root, KEY)
    return {str(path.relative_to(entry)): path.read_bytes() for path in entry.rglob("*") if path.is_file()}


@pytest.mark.parametrize("part", [1000, 1 << 20])
def test_the_same_bytes_arrive(tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setattr(transfer, "PART_BYTES", part)
    here = tmp_path / "here"
    assert receive(here, KEY, source.sizes, source.read)
    assert files(here) == files(source.root)
    assert set(files(here)) == {*(f"{name}.npy" for name in ARRAYS), MANIFEST}
    assert open_entry(entry_path(here, KEY), "train").digest == open_entry(entry_path(source.root, KEY), "train").digest


def test_compressed_features_arrive_too(tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    source, here = Source(tmp_path / "there", "zarr"), tmp_path / "here"
    assert receive(here, KEY, source.sizes, source.read)
    assert files(here) == files(source.root) and any("/" in name for name in files(here))
    mine, theirs = (open_entry(entry_path(root, KEY), "") for root in (here, source.root))
    assert np.array_equal(np.asarray(mine.features), np.asarray(theirs.features))


def test_what_is_there_is_not_brought_again(tmp_path: Path, source: Source) -> None:
    here = tmp_path / "here"
    assert receive(here, KEY, source.sizes, source.read)
    assert not receive(here, KEY, source.sizes, source.read)
    assert source.asked == 1


def test_of_several_who_come_at_once_one_brings_it(tmp_path: Path, source: Source) -> None:
    here = tmp_path / "here"
    with ThreadPoolExecutor(6) as pool:
        brought = list(pool.map(lambda _: receive(here, KEY, source.sizes, source.read), range(6)))
    assert sum(brought) == 1 and source.asked == 1
    assert files(here) == files(source.root)


def test_what_changed_on_its_way_is_refused_and_leaves_nothing(tmp_path: Path, source: Source) -> None:
    def garbled(name: str, offset: int, size: int) -> bytes:
        part = bytearray(source.read(name, offset, size))
        if name == "features.npy":
            part[-1] ^= 1
        return bytes(part)

    here = tmp_path / "here"
    with pytest.raises(IntegrityError, match="not what was written"):
        receive(here, KEY, source.sizes, garbled)
    assert not list((here / "entries").rglob("*.npy"))
    assert receive(here, KEY, source.sizes, source.read)


def test_an_entry_that_ends_early_is_refused(tmp_path: Path, source: Source) -> None:
    def short(name: str, offset: int, size: int) -> bytes:
        return source.read(name, offset, size) if name != "y.npy" else b""

    with pytest.raises(IntegrityError, match=r"y\.npy"):
        receive(tmp_path / "here", KEY, source.sizes, short)
    assert entry_problem(entry_path(tmp_path / "here", KEY)) is not None


def test_a_damaged_entry_is_replaced(tmp_path: Path, source: Source) -> None:
    here = tmp_path / "here"
    receive(here, KEY, source.sizes, source.read)
    (entry_path(here, KEY) / "y.npy").write_bytes(b"x")
    assert receive(here, KEY, source.sizes, source.read)
    assert files(here) == files(source.root)


def test_nothing_but_files_of_an_entry_is_handed_out(source: Source) -> None:
    (source.root / "secret").write_text("x")
    for name in ("../../../secret", "/etc/hostname", "", "features.zarr/../../x", ".hidden"):
        with pytest.raises(IntegrityError):
            read_part(source.root, KEY, name, 0, 10)
    with pytest.raises(IntegrityError):
        sizes_of(source.root, "cd" * 64)
