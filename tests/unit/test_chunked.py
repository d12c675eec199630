"""Features kept compressed: any Zarr reads them, indexing is NumPy's, and a fit on them has the same bits."""

from __future__ import annotations

import builtins
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_samples import make_data, make_specs

from nx46vx.errors import EnvironmentFault, IntegrityError
from nx46vx.features import chunked as chunked_module
from nx46vx.features.chunked import SAMPLES, ChunkedArray, examine_chunked, write_chunked
from nx46vx.features.entry import CHUNKED, entry_problem, open_entry, verify_entry, write_entry
from nx46vx.model.candidates import TILE
from nx46vx.model.passes import Passes
from nx46vx.model.samples import FitData

zarr = pytest.importorskip("zarr")


def samples(n: int, rows: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    return {
        "features": rng.standard_normal((rows, n)).astype(np.float32),
        "y": rng.integers(0, 2, n).astype(np.uint8),
        "index": np.arange(n),
        "group": np.sort(rng.integers(0, 9, n)).astype(np.int32),
    }


def write(path: Path, arrays: dict[str, np.ndarray], **how: Any) -> Path:
    write_entry(path, arrays, case_id="case", counts=(3, 4), facts={"seed": 0}, **how)
    return path


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, ChunkedArray]:
    array = samples(2 * SAMPLES + 700)["features"]
    folder = tmp_path_factory.mktemp("chunked") / "features.zarr"
    parts = {name: (folder / name).stat().st_size for name in write_chunked(folder, array)}
    shape, dtype = examine_chunked(folder, parts)
    return array, ChunkedArray(folder, shape, dtype)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_indexing_gives_what_numpy_gives(stored: tuple[np.ndarray, ChunkedArray], data: st.DataObject) -> None:
    array, found = stored
    bound = st.one_of(st.none(), st.integers(-array.shape[1] - 5, array.shape[1] + 5))
    columns = slice(data.draw(bound), data.draw(bound), data.draw(st.sampled_from([None, 1, 2, 37, SAMPLES + 1])))
    some = st.builds(np.array, st.lists(st.integers(-6, 5), min_size=1, max_size=4))
    rows: Any = data.draw(some | st.integers(-6, 5) | st.sampled_from([slice(None), slice(1, 5, 2)]))
    expected = array[rows, columns]
    assert found[rows, columns].dtype == np.float32
    assert np.array_equal(found[rows, columns], expected)


def test_the_whole_array_is_read_by_numpy_and_by_zarr(stored: tuple[np.ndarray, ChunkedArray]) -> None:
    array, found = stored
    assert (found.shape, found.dtype, found.nbytes, len(found)) == (array.shape, array.dtype, array.nbytes, 6)
    assert np.array_equal(np.asarray(found), array)
    assert np.array_equal(zarr.open_array(str(found.folder), mode="r")[:], array)


def test_an_entry_has_the_same_arrays_and_digest_however_it_is_kept(tmp_path: Path) -> None:
    arrays = samples(5000)
    plain = open_entry(write(tmp_path / "plain", arrays), "train")
    packed = open_entry(write(tmp_path / "packed", arrays, store="zarr"), "train")
    assert isinstance(packed.features, ChunkedArray)
    assert packed.digest == plain.digest
    for name, array in arrays.items():
        assert np.array_equal(np.asarray(getattr(packed, name)), array)
        assert np.array_equal(getattr(plain, name), array)
    verify_entry(tmp_path / "packed")


def lose(folder: Path) -> None:
    (folder / "c/0/1").unlink()


def cut(folder: Path) -> None:
    os.truncate(folder / "c/0/0", 100)


def forget(folder: Path) -> None:
    (folder / "zarr.json").unlink()


def garble(folder: Path) -> None:
    (folder / "zarr.json").write_bytes(b'{"shape"' + b" " * ((folder / "zarr.json").stat().st_size - 8))


@pytest.mark.parametrize("damage", [lose, cut, forget, garble])
def test_damage_is_seen_at_opening(damage: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "entry", samples(5000), store="zarr")
    assert entry_problem(path) is None
    damage(path / CHUNKED)
    assert entry_problem(path) is not None
    with pytest.raises(IntegrityError):
        open_entry(path, "train")


def test_verify_names_the_chunk_that_differs(tmp_path: Path) -> None:
    path = write(tmp_path / "entry", samples(5000), store="zarr")
    file = path / CHUNKED / "c/0/1"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"c/0/1"):
        verify_entry(path)


def test_without_zarr_the_fix_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def absent(name: str, *given: Any, **named: Any) -> Any:
        if name.partition(".")[0] == "zarr":
            raise ImportError(name)
        return load(name, *given, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(EnvironmentFault, match=r"nx46vx\[zarr\]"):
        write(tmp_path / "entry", samples(50), store="zarr")
    assert list(tmp_path.iterdir()) == []


def test_a_fit_reads_chunks_and_has_the_bits_of_a_fit_on_mapped_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make_data((SAMPLES + 900, 1300), 8, chunk=1500, validation=500)
    cases = [*plain.train, *plain.validation]
    packed_cases = []
    for number, case in enumerate(cases):
        arrays = {"features": case.features, "y": case.y, "index": np.arange(case.y.size), "group": case.group}
        write_entry(
            tmp_path / str(number), arrays, case_id=case.case_id, counts=case.counts, facts={}, store="zarr"
        )  # fmt: skip
        packed_cases.append(open_entry(tmp_path / str(number), "train"))
    packed = FitData(plain.pool, packed_cases[:2], packed_cases[2:], 1500)
    specs = make_specs(plain, neurons=2, width=6)
    assert [spec.digest for spec in make_specs(packed, neurons=2, width=6)] == [spec.digest for spec in specs]
    most: list[int] = []
    read = chunked_module.ChunkedArray.__getitem__

    def noted(self: ChunkedArray, place: Any) -> np.ndarray:
        found = read(self, place)
        most.append(found.shape[1])
        return found

    monkeypatch.setattr(chunked_module.ChunkedArray, "__getitem__", noted)
    thetas = {
        spec.meta_neuron: 0.3 * np.random.default_rng(spec.meta_neuron).standard_normal((spec.columns, TILE))
        for spec in specs
    }
    found = []
    for data, threads in ((plain, 1), (packed, 2)):
        passes = Passes(data, seed=0, threads=threads)
        for spec in specs:
            passes.add(spec)
        assert passes.kernel == "llvm", passes.kernel_reason
        gradients, validated = passes.gradients(thetas), passes.validate(thetas)
        passes.close()
        found.append([
            part
            for k in thetas
            for part in (*gradients[k], validated[k][0], *(dataclasses.astuple(c)[0] for c in validated[k][1]))
        ])  # fmt: skip
    assert len(most) == len(packed.train_chunks) + len(packed.validation_chunks), "one decoding for all tiles"
    assert max(most) <= 1500
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one, other)
