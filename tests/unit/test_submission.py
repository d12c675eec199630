"""The archive is reproducible, and the gate finds what is wrong with one."""

import io
import os
import re
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile

from nx46vx.data.volume_io import write_volume
from nx46vx.errors import EnvironmentFault, IntegrityError, NX46Error
from nx46vx.runtime.digest import digest_bytes
from nx46vx.runtime.sink import MemorySink
from nx46vx.submission.gate import GateReport, check_submission
from nx46vx.submission.package import encode_mask, write_submission

SHAPES = {"17": (6, 10, 8), "4": (5, 7, 9)}


def a_mask(case_id: str, shape: tuple[int, int, int] | None = None) -> np.ndarray:
    return (np.random.default_rng(int(case_id)).random(shape or SHAPES[case_id]) < 0.3).astype(np.uint8)


def tiff(volume: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, volume, photometric=options.pop("photometric", "minisblack"), metadata=None, **options)
    return stream.getvalue()


def archive(path: Path, method: int = zipfile.ZIP_DEFLATED, **members: bytes) -> Path:
    """A zip with sound members for both cases, except those that are given (keys end in ``_tif``)."""
    contents = {f"{case_id}.tif": tiff(a_mask(case_id)) for case_id in SHAPES}
    contents |= {name.removeprefix("m").replace("_tif", ".tif"): data for name, data in members.items()}
    with zipfile.ZipFile(path, "w", method) as target:
        for name, data in contents.items():
            target.writestr(name, data)
    return path


def check(path: Path, **options) -> GateReport:
    return check_submission(path, SHAPES, sink=MemorySink(), **options)


def only_problem(path: Path, **options) -> str:
    report = check(path, **options)
    assert not report.ok and len(report.problems) == 1, report.problems
    return report.problems[0]


@pytest.fixture
def masks(tmp_path: Path) -> dict[str, Path]:
    paths = {case_id: tmp_path / "masks" / f"{case_id}.tif" for case_id in SHAPES}
    (tmp_path / "masks").mkdir()
    for case_id, path in paths.items():
        write_volume(path, a_mask(case_id), compression=None)
    return paths


def test_what_is_written_passes_the_gate_and_gives_the_masks_back(tmp_path: Path, masks: dict[str, Path]) -> None:
    path = tmp_path / "submission.zip"
    write_submission(path, masks)
    sink = MemorySink()
    report = check_submission(path, SHAPES, sink=sink)
    assert report.ok and report.problems == ()
    (event,) = sink.named("COMPETITION_RULES_VALIDATION")
    assert event["ok"] is True and event["problems"] == [] and event["files"] == list(report.files)
    with zipfile.ZipFile(path) as opened:
        for case_id, file in zip(sorted(SHAPES), report.files, strict=True):
            data = opened.read(f"{case_id}.tif")
            volume = tifffile.imread(io.BytesIO(data))
            np.testing.assert_array_equal(volume, a_mask(case_id))
            assert file == {
                "name": f"{case_id}.tif", "shape": list(SHAPES[case_id]), "dtype": "uint8",
                "foreground_fraction": pytest.approx(volume.mean()), "sha512": digest_bytes(data),
            }  # fmt: skip


def test_the_archive_is_the_same_bytes_whatever_order_time_or_permissions(tmp_path: Path, masks) -> None:
    first, second = tmp_path / "a.zip", tmp_path / "elsewhere" / "b.zip"
    write_submission(first, masks)
    for path in masks.values():
        os.utime(path, (1, 1))
        path.chmod(0o600)
    write_submission(second, dict(reversed(masks.items())))
    assert first.read_bytes() == second.read_bytes()


def test_members_lie_at_the_root_sorted_deflated_and_with_fixed_attributes(tmp_path: Path, masks) -> None:
    path = tmp_path / "submission.zip"
    write_submission(path, masks)
    with zipfile.ZipFile(path) as opened:
        members = opened.infolist()
        assert opened.testzip() is None
    assert [member.filename for member in members] == ["17.tif", "4.tif"]
    for member in members:
        assert member.compress_type == zipfile.ZIP_DEFLATED
        assert member.date_time == (1980, 1, 1, 0, 0, 0)
        assert member.external_attr >> 16 == 0o100644 and member.create_system == 3


def test_an_interrupted_archive_leaves_the_old_one(tmp_path: Path, masks, monkeypatch) -> None:
    path = tmp_path / "submission.zip"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nx46vx.submission.package.shutil.copyfileobj", fail)
    with pytest.raises(EnvironmentFault, match="No space left"):
        write_submission(path, masks)
    assert path.read_bytes() == b"old" and not list(tmp_path.glob(".*.tmp"))


def test_missing_masks_and_names_that_leave_the_root_are_refused(tmp_path: Path, masks) -> None:
    path = tmp_path / "submission.zip"
    with pytest.raises(IntegrityError, match="missing"):
        write_submission(path, masks | {"9": tmp_path / "9.tif"})
    for name in ("../17", "a/b", "", "a\\b"):
        with pytest.raises(NX46Error, match="file name"):
            write_submission(path, {name: masks["17"]})
    with pytest.raises(NX46Error, match="no mask"):
        write_submission(path, {})
    assert not path.exists()


def test_an_encoded_mask_is_one_plain_page_per_z_without_dates() -> None:
    data = encode_mask(a_mask("17"))
    assert data == encode_mask(a_mask("17"))
    with tifffile.TiffFile(io.BytesIO(data)) as opened:
        assert len(opened.pages) == 6
        assert opened.pages[0].compression == tifffile.COMPRESSION.NONE
        assert not {"DateTime", "Software", "HostComputer"} & set(opened.pages[0].tags.keys())
        np.testing.assert_array_equal(opened.asarray(), a_mask("17"))


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4), np.uint8), np.zeros((2, 4, 4), bool), np.full((2, 4, 4), 2, np.uint8)]
)
def test_what_is_no_mask_is_not_encoded(bad: np.ndarray) -> None:
    with pytest.raises(NX46Error, match="0 and 1"):
        encode_mask(bad)


@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_the_gate_reads_masks_in_the_usual_encodings(tmp_path: Path, compression) -> None:
    path = archive(tmp_path / "s.zip", m17_tif=tiff(a_mask("17"), compression=compression))
    assert check(path).problems == ()


def test_names_have_to_be_the_test_sets(tmp_path: Path) -> None:
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("17.TIF", tiff(a_mask("17")))
        target.writestr("masks/4.tif", tiff(a_mask("4")))
        target.writestr("4.tif", tiff(a_mask("4")))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.writestr("4.tif", tiff(a_mask("4")))
    problems = check(path).problems
    assert any("17.tif: missing" in problem for problem in problems)
    assert any("17.TIF: unexpected" in problem for problem in problems)
    assert any("masks/4.tif" in problem and "folders" in problem for problem in problems)
    assert any("4.tif: stands 2 times" in problem for problem in problems)
    assert len(problems) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no readable TIFF"),
        (b"II*\0 nonsense", "no readable TIFF"),
        (tiff(a_mask("17", (6, 10, 9))), "shape"),
        (tiff(a_mask("17", (10, 6, 8))), "shape"),
        (tiff(a_mask("17")[0]), "no multipage TIFF"),
        (tiff(a_mask("17"), volumetric=True, tile=(16, 16, 16)), "no multipage TIFF"),
        (tiff(a_mask("17").astype(np.uint16)), "dtype is uint16"),
        (tiff(a_mask("17").astype(bool)), "dtype is bool"),
        (tiff(a_mask("17").astype(np.float64)), "dtype is float64"),
        (tiff(a_mask("17") * 255), "values are 0, 255"),
        (tiff(np.repeat(a_mask("17")[:1], 6, axis=0)), "repeated along z"),
        (tiff(np.ones(SHAPES["17"], np.uint8)), "repeated along z"),
        (tiff(np.zeros(SHAPES["17"], np.uint8)), "empty"),
        (tiff(a_mask("17"), photometric="miniswhite"), "0 as background"),
        (tiff(a_mask("17"))[:-100], "cut off|no readable TIFF"),
        (tiff(a_mask("17"), compression="zlib")[:-3], "cut off|no readable TIFF"),
    ],
)
def test_a_mask_that_breaks_a_rule_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    problem = only_problem(archive(tmp_path / "s.zip", m17_tif=content))
    assert problem.startswith("17.tif: ") and re.search(message, problem), problem


def test_pages_that_differ_from_the_first_are_named(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        for z, page in enumerate(a_mask("17")):
            writer.write(page if z != 4 else page.astype(np.uint16), metadata=None, photometric="minisblack")
    assert "uint16 (page 4)" in only_problem(archive(tmp_path / "s.zip", m17_tif=stream.getvalue()))


def test_an_empty_mask_passes_only_where_it_is_allowed(tmp_path: Path) -> None:
    path = archive(tmp_path / "s.zip", m17_tif=tiff(np.zeros(SHAPES["17"], np.uint8)))
    assert check(path, empty_allowed={"17"}).ok
    assert "empty" in only_problem(path, empty_allowed={"4"})


def test_a_damaged_archive_is_a_problem_and_no_exception(tmp_path: Path) -> None:
    path = archive(tmp_path / "s.zip")
    sound = path.read_bytes()
    path.write_bytes(sound[:-30])
    assert "no readable zip" in only_problem(path)
    path.write_bytes(b"")
    assert "no readable zip" in only_problem(path)
    assert "not there" in only_problem(tmp_path / "absent.zip")
    with zipfile.ZipFile(archive(path)) as opened:
        member = opened.getinfo("17.tif")
    offset = member.header_offset + 30 + len(member.filename) + member.compress_size // 2
    path.write_bytes(sound[:offset] + bytes([sound[offset] ^ 0xFF]) + sound[offset + 1 :])
    assert "17.tif: it cannot be unpacked" in only_problem(path)


def test_every_single_flipped_byte_is_survived(tmp_path: Path) -> None:
    path = archive(tmp_path / "s.zip")
    sound = path.read_bytes()
    for offset in np.random.default_rng(0).integers(0, len(sound), 150):
        path.write_bytes(sound[:offset] + bytes([sound[offset] ^ 0x41]) + sound[offset + 1 :])
        assert isinstance(check(path), GateReport)


def test_members_that_are_stored_or_encrypted_are_named(tmp_path: Path) -> None:
    problems = check(archive(tmp_path / "s.zip", zipfile.ZIP_STORED)).problems
    assert len(problems) == 2 and all("not compressed with deflate" in problem for problem in problems)
    path = archive(tmp_path / "e.zip")
    data = bytearray(path.read_bytes())
    directory = data.find(b"PK\x01\x02")
    data[directory + 8] |= 1
    path.write_bytes(bytes(data))
    assert "encrypted" in only_problem(path)


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, monkeypatch) -> None:
    def explode(*_: object, **__: object) -> None:
        raise AssertionError("unpacked")

    bomb = archive(tmp_path / "bomb.zip", m17_tif=bytes(2_000_000), m4_tif=bytes(2_000_000))
    lie = archive(tmp_path / "lie.zip")
    data = bytearray(lie.read_bytes())
    directory = data.find(b"PK\x01\x02")
    struct.pack_into("<I", data, directory + 20, 10)  # compressed size
    struct.pack_into("<I", data, directory + 24, 60_000)  # size
    lie.write_bytes(bytes(data))
    large = tmp_path / "large.zip"
    large.write_bytes(os.urandom(1_000_000))
    assert "too large to unpack" in only_problem(large)
    assert any("impossible for deflate" in problem for problem in check(lie).problems)
    monkeypatch.setattr(zipfile.ZipFile, "open", explode)
    assert [("unpacks to 2000000" in problem) for problem in check(bomb).problems] == [True, True]


def test_a_page_that_would_inflate_without_bound_is_not_decoded(tmp_path: Path) -> None:
    data = bytearray(tiff(a_mask("17"), compression="zlib", rowsperstrip=10))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as opened:
        tag = opened.pages[0].tags["StripByteCounts"]
    struct.pack_into("<H" if tag.dtype == 3 else "<I", data, tag.valueoffset, 20_000)
    problem = only_problem(archive(tmp_path / "s.zip", m17_tif=bytes(data) + bytes(30_000)))
    assert "more bytes than its voxels" in problem


def test_a_chain_of_pages_that_runs_in_a_circle_ends(tmp_path: Path) -> None:
    data = bytearray(tiff(a_mask("17")))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as opened:
        last = opened.pages[-1]
        first_offset, last_offset, tags = opened.pages[0].offset, last.offset, len(last.tags)
    struct.pack_into("<I", data, last_offset + 2 + 12 * tags, first_offset)
    report = check(archive(tmp_path / "s.zip", m17_tif=bytes(data)))
    assert isinstance(report, GateReport) and len(report.files) == 2
