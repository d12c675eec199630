"""A run's archive: the same bytes each time, back whole or not at all, and every hostile one refused by name."""

from __future__ import annotations

import fcntl
import gzip
import io
import os
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nx46vx.errors import EnvironmentFault, IntegrityError, LockedError, NX46Error, UsageError
from nx46vx.runtime import archive as archive_room
from nx46vx.runtime import archive_check
from nx46vx.runtime.archive import copy_run, export_run, import_run
from nx46vx.runtime.archive_names import travelling_files
from nx46vx.runtime.lock import at_rest

OWNER = "k000-l1_0.001-l2_0.01"
FILES = {
    "config.yaml": b"seed: 0\n",
    "run.json": b'{"run_id": "a"}\n',
    "plan.json": b"{}\n",
    "decisions.json": b"{}\n",
    "progress.json": b"{}\n",
    "run.lock.fence": b'{"fence": 3}\n',
    f"checkpoints/{OWNER}/fence-00000003": b"",
    f"checkpoints/{OWNER}/ckpt-00000007/ckpt_manifest.json": b"{}\n",
    f"checkpoints/{OWNER}/ckpt-00000007/payload.safetensors": bytes(range(256)),
    "events/driver/00000000.jsonl.gz": gzip.compress(b'{"ts_ns":1}\n', mtime=0),
    "events/driver/00000000.seal.json": b"{}\n",
    "events/driver/00000001.jsonl": b'{"ts_ns":2}\n',
    "events/driver/00000001.torn": b'{"ts',
    "events/run_seal.0.json": b"{}\n",
    "masks/A case (1).tif": bytes(2 << 20),
    "leaderboard.csv": b"candidate_id\n",
    "submission.zip": b"PK",
    "report.json": b"{}\n",
}
LEFT_BEHIND = {
    "run.lock": b"{}", "costs.json": b"{}", "ray/token": b"secret", "ray/tune/deep/x": b"secret",
    "data/train_images/a.tif": b"II", ".report.json.1.abc.tmp": b"half", "events/driver/.00000002.tmp": b"half",
    f"checkpoints/{OWNER}/.tmp-1-abc/payload.safetensors": b"half", "notes.txt": b"mine", ".env": b"secret",
}  # fmt: skip


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def read(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write(tmp_path / "run", {**FILES, **LEFT_BEHIND})


def test_out_and_back_gives_the_same_files(run: Path, tmp_path: Path) -> None:
    before = read(run)
    assert export_run(run, tmp_path / "run.zip") == len(FILES)
    import_run(tmp_path / "run.zip", tmp_path / "deep" / "back")
    assert read(tmp_path / "deep" / "back") == FILES
    assert read(run) == before
    copy_run(run, tmp_path / "copy")
    assert read(tmp_path / "copy") == FILES


def test_nothing_but_what_is_needed_is_packed(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "run.zip")
    assert set(zipfile.ZipFile(tmp_path / "run.zip").namelist()) == set(FILES)
    assert b"secret" not in (tmp_path / "run.zip").read_bytes()
    assert zipfile.ZipFile(tmp_path / "run.zip").testzip() is None


def test_the_same_run_gives_the_same_bytes_and_checkpoints_come_before_the_log(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "one.zip")
    other = write(tmp_path / "other", dict(reversed(list(FILES.items()))))
    os.utime(other / "config.yaml", (1, 1))
    export_run(other, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    names = zipfile.ZipFile(tmp_path / "one.zip").namelist()
    last = max(names.index(name) for name in names if name.startswith("checkpoints/"))
    assert last < min(names.index(name) for name in names if name.startswith("events/"))


def test_what_shrinks_like_a_bomb_is_stored_so_that_our_own_archives_pass(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "run.zip")
    kept = zipfile.ZipFile(tmp_path / "run.zip").getinfo("masks/A case (1).tif")
    assert kept.compress_type == zipfile.ZIP_STORED and kept.file_size == 2 << 20


def test_an_archive_packed_by_other_means_is_taken_too(run: Path, tmp_path: Path) -> None:
    """Folders in it, a folder around it, and what does not travel."""
    import shutil

    (run / "notes.txt").unlink()
    (run / ".env").unlink()
    (run / "masks/A case (1).tif").write_bytes(b"II")
    shutil.make_archive(str(tmp_path / "flat"), "zip", run)
    shutil.make_archive(str(tmp_path / "around"), "zip", run.parent, run.name)
    for name in ("flat", "around"):
        import_run(tmp_path / f"{name}.zip", tmp_path / name)
        assert read(tmp_path / name) == {**FILES, "masks/A case (1).tif": b"II"}


def test_a_run_that_goes_on_is_not_packed(run: Path, tmp_path: Path) -> None:
    with open(run / "run.lock", "r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for act in (export_run, copy_run):
            with pytest.raises(LockedError):
                act(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_run(run, tmp_path / "out")


def test_a_run_cannot_be_started_while_it_is_packed(run: Path) -> None:
    from nx46vx.runtime.lock import DirectoryLock

    with at_rest(run), pytest.raises(LockedError):
        DirectoryLock(run / "run.lock").acquire()
    with DirectoryLock(run / "run.lock"):
        pass


def test_what_is_no_run_is_not_packed(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        export_run(tmp_path, tmp_path / "out.zip")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["plan.json", "events/driver/00000001.jsonl", "events", "checkpoints"])
@pytest.mark.parametrize("how", ["link", "pipe"])
def test_links_in_a_run_are_not_followed(run: Path, tmp_path: Path, name: str, how: str) -> None:
    (run / name).rename(tmp_path / "moved")
    (run / name).symlink_to(tmp_path / "moved") if how == "link" else os.mkfifo(run / name)
    for act in (export_run, copy_run):
        with pytest.raises(IntegrityError, match="link or a special file"):
            act(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_place_must_be_free(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "run.zip")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    for place in (run, tmp_path / "link", tmp_path / "empty", tmp_path / "run.zip"):
        with pytest.raises(UsageError, match="taken"):
            import_run(tmp_path / "run.zip", place)
        with pytest.raises(UsageError, match="taken"):
            copy_run(run, place)
    assert os.listdir(tmp_path / "empty") == []


# ---- hostile archives ----------------------------------------------------------------------------------------------

Member = tuple[zipfile.ZipInfo | str, bytes]
GOOD: list[Member] = [("config.yaml", b"seed: 0\n"), ("run.json", b'{"run_id": "a"}\n')]


def packed(members: list[Member], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", method) as archive:
        for member, data in members:
            archive.writestr(member, data)
    return raw.getvalue()


def with_name(name: str) -> bytes:
    """A member of this very name, which zipfile itself may refuse to write."""
    stand_in = ("x" * len(name.encode()),)[0]
    return packed([*GOOD, (stand_in, b"data")]).replace(stand_in.encode(), name.encode())


def with_mode(mode: int, name: str = "plan.json", data: bytes = b"/etc/passwd") -> bytes:
    member = zipfile.ZipInfo(name)
    member.create_system, member.external_attr = 3, mode << 16
    return packed([*GOOD, (member, data)])


def dos_folder() -> bytes:
    member = zipfile.ZipInfo("plan.json")
    member.external_attr = 0x10
    return packed([*GOOD, (member, b"")])


def patched(raw: bytes, name: bytes, offset: int, form: str, value: int, *, local: bool = True) -> bytes:
    """Change one field of a member's headers; ``offset`` is the central directory's."""
    data = bytearray(raw)
    at = data.rindex(name) - 46
    assert data[at : at + 4] == b"PK\1\2"
    struct.pack_into(form, data, at + offset, value)
    if local:
        at = data.index(name) - 30
        struct.pack_into(form, data, at + offset - 2, value)
    return bytes(data)


def lying(by: int) -> bytes:
    """A member that unpacks to 2 MB of noise and says that it is shorter or longer."""
    noise = os.urandom(2 << 20)
    raw = packed([*GOOD, ("plan.json", noise)], zipfile.ZIP_STORED)
    return patched(raw, b"plan.json", 24, "<I", len(noise) + by)


def zip64_table() -> bytes:
    """An end record that says that the table of contents has gigabytes."""
    raw = bytearray(packed(GOOD))
    struct.pack_into("<I", raw, len(raw) - 22 + 12, 0xF0000000)
    return bytes(raw)


def many_members() -> bytes:
    """A table of contents of 13 MB."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for number in range(60_000):
            archive.writestr(zipfile.ZipInfo(f"masks/{number:0160d}.tif"), b"")
    return raw.getvalue()


def overlapping() -> bytes:
    """Hundreds of names for one and the same compressed megabyte."""
    body = bytes(1 << 20)
    raw = packed([*GOOD, ("masks/0000.tif", body)])
    cut = raw.index(b"PK\1\2")
    local, table = raw[:cut], raw[cut : raw.rindex(b"PK\5\6")]
    start = table.rindex(b"masks/0000.tif") - 46
    entry = table[start:]
    entries = [entry.replace(b"0000", f"{number:04d}".encode()) for number in range(400)]
    whole = table[:start] + b"".join(entries)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 402, 402, len(whole), len(local), 0)
    return local + whole + end


def sharing() -> bytes:
    """Two members that lie in one another: the second is what the first one holds, a whole zip member."""
    inner = packed([("masks/b.tif", b"second")], zipfile.ZIP_STORED)
    inner = inner[: inner.index(b"PK\1\2")]
    raw = packed([*GOOD, ("masks/a.tif", inner), ("masks/b.tif", b"second")], zipfile.ZIP_STORED)
    offset = raw.index(inner)
    return patched(raw, b"masks/b.tif", 42, "<I", offset, local=False)


def zip64_sizes(**lies: int) -> bytes:
    """A member whose sizes stand in the large form, and lie."""
    raw = packed([*GOOD, ("plan.json", b"x" * 20)], zipfile.ZIP_STORED)
    cut, table_end = raw.rindex(b"PK\1\2"), raw.rindex(b"PK\5\6")
    entry = bytearray(raw[cut:table_end])
    large = struct.pack("<HHQQ", 1, 16, lies.get("size", 20), lies.get("packed", 20))
    struct.pack_into("<II", entry, 20, 0xFFFFFFFF, 0xFFFFFFFF)
    struct.pack_into("<H", entry, 30, len(large))
    end = bytearray(raw[table_end:])
    start, size = raw.index(b"PK\1\2"), table_end - raw.index(b"PK\1\2") + len(large)
    struct.pack_into("<II", end, 12, size, start)
    return raw[:cut] + bytes(entry) + large + bytes(end)


def zip64_end(size: int, entries: int) -> bytes:
    """An end record in the large form that names an absurd table of contents."""
    raw = packed(GOOD)
    cut = raw.rindex(b"PK\5\6")
    record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, size, raw.index(b"PK\1\2"))
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, cut, 1)
    return raw[:cut] + record + locator + raw[cut:]


def undecodable() -> bytes:
    """A name that says it is UTF-8 and is not."""
    raw = packed([*GOOD, ("masks/\u00e9.tif", b"x")])
    return raw.replace("\u00e9".encode(), b"\xc3\x28")


def with_segment(raw: bytes) -> bytes:
    return packed([*GOOD, ("events/driver/00000000.jsonl.gz", raw)])


def references() -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    return packed([("config.yaml", "\n".join(lines).encode()), GOOD[1]])


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "not a zip": (lambda: b"not a zip at all", "no readable zip"),
    "empty file": (lambda: b"", "no readable zip"),
    "cut in half": (lambda: packed([*GOOD, ("plan.json", os.urandom(4000))])[:2000], "no readable zip"),
    "no members": (lambda: packed([]), "no archive of a run"),
    "no configuration": (lambda: packed([GOOD[1]]), "no archive of a run"),
    "no identity": (lambda: packed([GOOD[0]]), "no archive of a run"),
    "absolute path": (lambda: with_name("/etc/cron.d/x"), "absolute path"),
    "drive letter": (lambda: with_name("C:/plan.json"), "absolute path"),
    "parent": (lambda: with_name("../plan.json"), "leads out"),
    "parent further down": (lambda: with_name("events/../../plan.json"), "leads out"),
    "dot": (lambda: with_name("./plan.json"), "leads out"),
    "share": (lambda: with_name("//host/share/x"), "absolute path"),
    "home": (lambda: packed([*GOOD, ("~/.ssh/config", b"x")]), "no run has such a file"),
    "device name of another system": (lambda: packed([*GOOD, ("events/CON", b"x")]), "no run has such a file"),
    "empty part": (lambda: with_name("events//driver/00000000.jsonl"), "leads out"),
    "backslash": (lambda: with_name("events\\..\\..\\plan.json"), "backslash"),
    "NUL": (lambda: with_name("plan.json\0.tif"), "NUL"),
    "control character": (lambda: with_name("masks/a\n.tif"), "control character"),
    "unexpected name": (lambda: packed([*GOOD, ("evil.sh", b"x")]), "no run has such a file"),
    "pickle": (lambda: packed([*GOOD, ("checkpoints/k/ckpt-00000001/state.pkl", b"x")]), "no run has such a file"),
    "hidden file": (lambda: packed([*GOOD, ("masks/.tif", b"x")]), "no run has such a file"),
    "code": (lambda: packed([*GOOD, ("events/driver/00000000.py", b"x")]), "no run has such a file"),
    "twice": (lambda: packed([*GOOD, ("plan.json", b"1"), ("plan.jsoN", b"2")]).replace(b"plan.jsoN", b"plan.json"),
              "two members"),
    "twice but for case": (lambda: packed([*GOOD, ("masks/a.tif", b"1"), ("masks/A.tif", b"2")]), "two members"),
    "twice but for spelling": (
        lambda: packed([*GOOD, ("masks/\u00e9.tif", b"1"), ("masks/e\u0301.tif", b"2")]), "two members"),
    "symbolic link": (lambda: with_mode(stat.S_IFLNK | 0o777), "a link"),
    "link for a folder": (lambda: with_mode(stat.S_IFLNK | 0o777, "events/driver", b"/etc"), "a link"),
    "pipe": (lambda: with_mode(stat.S_IFIFO | 0o644), "no regular file"),
    "device": (lambda: with_mode(stat.S_IFBLK | 0o644), "no regular file"),
    "terminal": (lambda: with_mode(stat.S_IFCHR | 0o644), "no regular file"),
    "socket": (lambda: with_mode(stat.S_IFSOCK | 0o644), "no regular file"),
    "folder for a file": (lambda: with_mode(stat.S_IFDIR | 0o755), "no regular file"),
    "folder by its DOS mark": (dos_folder, "no regular file"),
    "folder with content": (lambda: with_mode(stat.S_IFDIR | 0o755, "events/driver/", b"x"), "folder with content"),
    "encrypted": (lambda: patched(packed([*GOOD, ("plan.json", b"x" * 20)]), b"plan.json", 8, "<H", 1), "encrypted"),
    "another compression": (lambda: packed(GOOD, zipfile.ZIP_LZMA), "compressed by method"),
    "a bomb": (lambda: packed([*GOOD, ("plan.json", bytes(200 << 20))]), "bomb"),
    "a bomb under a mask's name": (lambda: packed([*GOOD, ("masks/a.tif", bytes(64 << 20))]), "bomb"),
    "too large for its kind": (lambda: packed([("config.yaml", os.urandom(1 << 20)), GOOD[1]]), "at most"),
    "a mark with content": (lambda: packed([*GOOD, (f"checkpoints/{OWNER}/fence-00000001", b"x")]), "at most 0"),
    "more names than bytes": (overlapping, "shares bytes"),
    "a huge table of contents": (many_members, "table of contents"),
    "a lying table of contents": (zip64_table, "no readable zip"),
    "members that share bytes": (sharing, "shares bytes"),
    "a member after the table of contents": (
        lambda: patched(packed([*GOOD, ("plan.json", b"x")]), b"plan.json", 42, "<I", 1 << 30, local=False),
        "shares bytes"),
    "more packed bytes than there are": (
        lambda: patched(packed([*GOOD, ("plan.json", b"x")]), b"plan.json", 20, "<I", 1 << 30, local=False),
        "shares bytes"),
    "a large form that lies of the size": (lambda: zip64_sizes(size=1 << 60), "at most"),
    "a large form that lies of the packed size": (lambda: zip64_sizes(packed=1 << 62), "shares bytes"),
    "a large form of the end that lies": (lambda: zip64_end(1 << 60, 2), "no readable zip"),
    "more members than there are": (lambda: zip64_end(0, 1 << 62), "no readable zip|no archive of a run"),
    "a name in another encoding": (undecodable, "no readable zip"),
    "longer than it says": (lambda: lying(-(1 << 20)), "cannot be unpacked"),
    "shorter than it says": (lambda: lying(1 << 20), "unpacked|ends .* early"),
    "another checksum": (
        lambda: patched(packed([*GOOD, ("plan.json", b"x" * 99)]), b"plan.json", 16, "<I", 7), "cannot be unpacked"),
    "another local name": (
        lambda: packed([*GOOD, ("plan.json", b"x")]).replace(b"plan.json", b"evil.json", 1), "cannot be unpacked"),
    "a bomb in a segment": (lambda: with_segment(gzip.compress(bytes(100 << 20))), "segment is a bomb"),
    "a broken segment": (lambda: with_segment(b"\x1f\x8b" + bytes(40)), "segment is damaged"),
    "references in the configuration": (references, "references"),
    "a configuration of brackets": (lambda: packed([("config.yaml", b"[" * (60 << 10)), GOOD[1]]), "too deeply"),
    "a configuration of tiny keys": (
        lambda: packed([("config.yaml", b"a: {b: [" + b"1," * (30 << 10)), GOOD[1]]), "cannot be read"),
    "a configuration that is no YAML": (lambda: packed([("config.yaml", b"a: [}"), GOOD[1]]), "cannot be read"),
    "a configuration that is no text": (lambda: packed([("config.yaml", b"\xff\xfe"), GOOD[1]]), "cannot be read"),
}  # fmt: skip


@pytest.fixture
def few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_check, "_MAX_TABLE", 4 << 20)


@pytest.mark.usefixtures("few_bytes")
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive_is_refused_by_name_and_leaves_nothing(tmp_path: Path, what: str) -> None:
    make, reason = HOSTILE[what]
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "evil.zip"
    path.write_bytes(make())
    with pytest.raises(IntegrityError, match=reason) as raised:
        import_run(path, tmp_path / "out" / "run")
    assert "evil.zip" in str(raised.value.where)
    assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []
    assert os.listdir(tmp_path / "in") == ["evil.zip"]


BOUNDED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_CPU, (5 * len(sys.argv),) * 2)
from nx46vx.errors import IntegrityError
from nx46vx.runtime.archive import import_run
for path in sys.argv[2:]:
    try:
        import_run(Path(path), Path(sys.argv[1]))
    except IntegrityError:
        continue
    sys.exit(f"{path} was taken")
status = Path("/proc/self/status").read_text()  # ru_maxrss would count what the parent had at the fork
print(status.split("VmHWM:")[1].split()[0])
"""


def test_refusing_bombs_costs_little_memory_and_time(tmp_path: Path) -> None:
    """All of them in one process, in less than 5 seconds of CPU each and 512 MB."""
    words = ("bomb", "table", "references", "more", " of ")
    names = [name for name in HOSTILE if any(word in name for word in words)]
    paths = []
    for number, name in enumerate(names):
        paths.append(tmp_path / f"{number}.zip")
        paths[-1].write_bytes(HOSTILE[name][0]())
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, tmp_path / "out", *paths], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 512 << 10


def test_links_pipes_and_absent_archives(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(IntegrityError, match="not a regular file"):
        import_run(tmp_path / "pipe", tmp_path / "out")
    with pytest.raises(UsageError, match="not there"):
        import_run(tmp_path / "absent.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_than_is_allowed_in_all_is_refused_before_anything_is_written(run: Path, tmp_path: Path) -> None:
    export_run(run, tmp_path / "run.zip")
    with pytest.raises(IntegrityError, match="too large"):
        import_run(tmp_path / "run.zip", tmp_path / "out", max_bytes=1000)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("act", ["import", "copy"])
def test_a_broken_off_import_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    export_run(run, tmp_path / "run.zip")
    (tmp_path / "place").mkdir()
    target = tmp_path / "place" / "back"

    def arrive(**options: Callable[[Path], None]) -> None:
        if act == "import":
            import_run(tmp_path / "run.zip", target, **options)
        else:
            copy_run(run, target, **options)

    def refuse(folder: Path) -> None:
        assert read(folder) == FILES
        raise IntegrityError("not this one", where=folder)

    with pytest.raises(IntegrityError, match="not this one"):
        arrive(check=refuse)
    assert os.listdir(tmp_path / "place") == []

    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        arrive(check=interrupt)
    assert os.listdir(tmp_path / "place") == []

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(archive_room.os, "fsync", full)
        with pytest.raises(EnvironmentFault, match="No space left"):
            arrive()
    assert os.listdir(tmp_path / "place") == []
    arrive()
    assert read(target) == FILES


def test_a_broken_off_export_leaves_what_was_there(run: Path, tmp_path: Path) -> None:
    (tmp_path / "run.zip").write_bytes(b"before")
    (run / "run.lock.fence").write_bytes(bytes(5000))
    with pytest.raises(IntegrityError, match="not what it should be"):
        export_run(run, tmp_path / "run.zip")
    assert (tmp_path / "run.zip").read_bytes() == b"before"
    assert {path.name for path in tmp_path.iterdir()} == {"run", "run.zip"}


def test_a_run_that_changes_while_it_is_packed_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_room, "travelling_files", lambda run: [*travelling_files(run), "report.md"])
    with pytest.raises(IntegrityError, match="changed while it was read"):
        export_run(run, tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


def test_every_rejection_is_an_error_of_ours() -> None:
    assert issubclass(IntegrityError, NX46Error) and IntegrityError.exit_code == 5
