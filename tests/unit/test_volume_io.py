"""Volumes come back as they were written, by whomever; anything else is refused with its reason."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile

from nx46vx.data.volume_io import probe_volume, read_volume, write_volume
from nx46vx.errors import DataError

RNG = np.random.default_rng(7)
VOLUME = RNG.integers(0, 4, (6, 21, 17), dtype=np.uint8)


@pytest.mark.parametrize("compression", ["deflate", "lzw", None])
@pytest.mark.parametrize("shape", [(6, 21, 17), (5, 8, 3), (3, 8, 8), (5, 8, 4), (2, 1, 1), (4, 3, 9)])
def test_what_is_written_is_read_by_us_and_by_tifffile(tmp_path: Path, compression, shape) -> None:
    volume = RNG.integers(0, 255, shape, dtype=np.uint8)
    path = tmp_path / "v.tif"
    write_volume(path, volume, compression=compression)
    with tifffile.TiffFile(path) as tiff:
        assert [page.shape for page in tiff.pages] == [shape[1:]] * shape[0]
        np.testing.assert_array_equal(np.stack([page.asarray() for page in tiff.pages]), volume)
    np.testing.assert_array_equal(read_volume(path), volume)
    info = probe_volume(path)
    assert (info.shape, info.nbytes, info.compression) == (shape, volume.size, compression or "none")
    assert os.listdir(tmp_path) == ["v.tif"]


@pytest.mark.parametrize("compression", ["deflate", "lzw", None])
def test_writing_twice_gives_the_same_bytes_and_no_names_or_times(tmp_path: Path, compression) -> None:
    for name in ("a.tif", "b.tif"):
        write_volume(tmp_path / name, np.asfortranarray(VOLUME), compression=compression)
    a, b = ((tmp_path / name).read_bytes() for name in ("a.tif", "b.tif"))
    assert hashlib.sha512(a).digest() == hashlib.sha512(b).digest()
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert not {"Software", "DateTime", "ImageDescription"} & {tag.name for tag in tiff.pages[0].tags}


def test_an_uncompressed_volume_is_mapped_read_only(tmp_path: Path) -> None:
    write_volume(tmp_path / "v.tif", VOLUME, compression=None)
    volume = read_volume(tmp_path / "v.tif")
    assert probe_volume(tmp_path / "v.tif").mappable
    assert isinstance(volume, np.memmap)
    assert not volume.flags.writeable
    write_volume(tmp_path / "c.tif", VOLUME, compression="lzw")
    decoded = read_volume(tmp_path / "c.tif")
    assert not isinstance(decoded, np.memmap)
    assert not decoded.flags.writeable


FOREIGN = {
    "lzw with predictor": {"compression": "lzw", "predictor": True},
    "deflate": {"compression": "deflate"},
    "old deflate": {"compression": 32946},
    "packbits": {"compression": "packbits"},
    "raw": {},
    "described": {"metadata": {"axes": "ZYX"}},
    "small strips": {"rowsperstrip": 4},
    "small lzw strips": {"rowsperstrip": 4, "compression": "lzw"},
    "tiles": {"tile": (16, 16)},
    "lzw tiles": {"tile": (16, 16), "compression": "lzw"},
    "one page with a depth": {"volumetric": True},
    "one deflated page with a depth": {"volumetric": True, "compression": "deflate"},
    "one page and a shape": {"truncate": True},
}


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("how", sorted(FOREIGN))
def test_files_of_other_programs_are_read(tmp_path: Path, how, bigtiff, byteorder) -> None:
    path = tmp_path / "v.tif"
    tifffile.imwrite(path, VOLUME, bigtiff=bigtiff, byteorder=byteorder, photometric="minisblack", **FOREIGN[how])
    assert probe_volume(path).shape == VOLUME.shape
    np.testing.assert_array_equal(read_volume(path), VOLUME)


@pytest.mark.parametrize("compression", [None, "lzw", "deflate"])
def test_files_written_page_by_page_are_read(tmp_path: Path, compression) -> None:
    path = tmp_path / "v.tif"
    with tifffile.TiffWriter(path) as writer:
        for page in VOLUME:
            writer.write(page, compression=compression, photometric="minisblack", contiguous=False)
    info = probe_volume(path)
    assert info.shape == VOLUME.shape
    assert not info.mappable
    np.testing.assert_array_equal(read_volume(path), VOLUME)


def test_a_link_to_a_volume_is_followed(tmp_path: Path) -> None:
    write_volume(tmp_path / "v.tif", VOLUME)
    (tmp_path / "link.tif").symlink_to(tmp_path / "v.tif")
    np.testing.assert_array_equal(read_volume(tmp_path / "link.tif"), VOLUME)


def refused(path: Path, words: str, *, when_reading: bool = False) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_volume(path, case_id="c7") if when_reading else probe_volume(path)
    assert path.name in str(caught.value)
    assert caught.value.fix
    if when_reading:
        assert "c7" in str(caught.value)


def test_what_is_no_volume_is_refused_by_its_headers(tmp_path: Path) -> None:
    path = tmp_path / "v.tif"
    refused(path, "cannot be opened")
    path.write_bytes(b"")
    refused(path, "empty")
    path.write_bytes(b"PK\x03\x04 this is a zip, not a picture")
    refused(path, "not a TIFF")
    path.write_bytes(b"II*\0")
    refused(path, "not a TIFF")
    tifffile.imwrite(path, VOLUME[0])
    refused(path, "a 3D volume of several pages is needed")
    for dtype in (np.uint16, np.int8, np.float32, bool):
        tifffile.imwrite(path, VOLUME.astype(dtype), photometric="minisblack")
        refused(path, "uint8")
    tifffile.imwrite(path, RNG.integers(0, 9, (4, 8, 8, 3), dtype=np.uint8), photometric="rgb")
    refused(path, "greyscale")
    with tifffile.TiffWriter(path) as writer:
        writer.write(VOLUME[0])
        writer.write(VOLUME[1, :-1])
    refused(path, "differ in shape")
    tifffile.imwrite(path, np.zeros((3, 64, 64), np.uint8), compression="jpeg", photometric="minisblack")
    refused(path, "codec")


def test_pipes_and_folders_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tif")
    refused(tmp_path / "pipe.tif", "not a regular file")
    (tmp_path / "folder.tif").mkdir()
    refused(tmp_path / "folder.tif", "not a regular file")
    (tmp_path / "gone.tif").symlink_to(tmp_path / "nowhere")
    refused(tmp_path / "gone.tif", "cannot be opened")


@pytest.mark.parametrize("compression", [None, "lzw", "deflate"])
@pytest.mark.parametrize("page_by_page", [False, True])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, compression, page_by_page) -> None:
    path = tmp_path / "v.tif"
    with tifffile.TiffWriter(path) as writer:
        for data in VOLUME if page_by_page else [VOLUME]:
            writer.write(data, compression=compression, photometric="minisblack", metadata=None)
    whole = path.read_bytes()
    for length in range(1, len(whole), 61):
        path.write_bytes(whole[:length])
        try:
            survived = read_volume(path)
        except DataError as error:
            assert path.name in str(error)  # noqa: PT017
        else:  # only bytes that hold no voxel may be missing
            np.testing.assert_array_equal(survived, VOLUME)
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, "truncated|not usable")


@pytest.mark.parametrize("compression", ["lzw", "deflate"])
def test_pixel_data_that_ends_early_is_an_error_not_zeros(tmp_path: Path, compression) -> None:
    path = tmp_path / "v.tif"
    tifffile.imwrite(path, VOLUME, compression=compression, photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tag = tiff.pages[3].tags["StripByteCounts"]
        tag.overwrite(tag.value[0] // 2)
    refused(path, "damaged or truncated", when_reading=True)


def test_scrambled_pixel_data_never_leaks_another_kind_of_error(tmp_path: Path) -> None:
    path = tmp_path / "v.tif"
    for compression in ("lzw", "deflate"):
        tifffile.imwrite(path, VOLUME, compression=compression, photometric="minisblack", metadata=None)
        whole = path.read_bytes()
        for trial in range(60):
            rng = np.random.default_rng(trial)
            data = np.frombuffer(whole, np.uint8).copy()
            data[rng.integers(0, data.size, 12)] = rng.integers(0, 256, 12)
            path.write_bytes(data.tobytes())
            with contextlib.suppress(DataError):
                assert read_volume(path).ndim == 3


def _one_page(width: int, height: int, next_page: int = 0) -> bytes:
    """A little-endian TIFF of one uncompressed page with a strip of four bytes."""
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 200), (277, 1), (278, height), (279, 4)]
    body = b"".join(struct.pack("<HHII", code, 4, 1, value) for code, value in tags)
    head = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(tags)) + body + struct.pack("<I", next_page)
    return head.ljust(200, b"\0") + b"abcd"


def test_absurd_claims_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "v.tif"
    path.write_bytes(_one_page(2**31 - 1, 2**31 - 1))
    refused(path, "3D volume|impossible|truncated|damaged")
    slices = np.zeros((4, 16, 16), np.uint8)
    tifffile.imwrite(path, slices, volumetric=True, metadata=None, compression="deflate", photometric="minisblack")
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for name in ("ImageLength", "ImageWidth", "RowsPerStrip"):
            tiff.pages[0].tags[name].overwrite(60_000)
    refused(path, "impossible dimensions")


def test_a_loop_of_pages_ends_in_an_error(tmp_path: Path) -> None:
    path = tmp_path / "v.tif"
    path.write_bytes(_one_page(2, 2, next_page=8))
    refused(path, "loop")


@pytest.mark.parametrize("bad", [VOLUME[0], VOLUME[:1], VOLUME.astype(np.uint16), VOLUME[:, :0]])
def test_only_volumes_are_written(tmp_path: Path, bad) -> None:
    with pytest.raises(DataError, match="3D uint8"):
        write_volume(tmp_path / "v.tif", bad)
    assert not list(tmp_path.iterdir())
