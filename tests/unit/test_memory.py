"""Memory: the container's limit counts, GPUs and all processes of a run count, and a warning comes before it hurts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from nx46vx.runtime.cgroup import GroupMemory, tightest_group
from nx46vx.runtime.gpu_memory import GpuMemory, read_gpus
from nx46vx.runtime.memory import (
    CRITICAL_SHARE,
    WARNING_SHARE,
    Family,
    Level,
    Memory,
    MemoryWatch,
    level_of,
    read_family,
    read_memory,
)

GIB = 1 << 30


def machine(total: int, available: int) -> Any:
    return lambda: SimpleNamespace(total=total, available=available)


def reading(share: float, *gpus: float) -> Memory:
    cards = tuple(GpuMemory(index, "card", 100, round(100 * used)) for index, used in enumerate(gpus))
    return Memory(1000, round(1000 * share), "machine", Family(1, 10, "pss"), cards)


def put(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_without_a_limit_the_machine_counts_as_psutil_says_it() -> None:
    memory = read_memory(group=lambda: None, gpus=lambda: ((), "none"))
    whole = psutil.virtual_memory()
    assert memory.limit_bytes == whole.total and memory.limited_by == "machine"
    assert memory.used_bytes == pytest.approx(whole.total - whole.available, rel=0.2)


def test_a_containers_limit_counts_before_the_machines_memory() -> None:
    limit = GroupMemory(Path("/sys/fs/cgroup/box"), 4 * GIB, 3 * GIB)
    memory = read_memory(machine=machine(64 * GIB, 60 * GIB), group=lambda: limit, gpus=lambda: ((), ""))
    assert (memory.limit_bytes, memory.used_bytes, memory.limited_by) == (4 * GIB, 3 * GIB, "/sys/fs/cgroup/box")
    assert memory.used_share == 0.75


def test_a_machine_that_is_fuller_than_the_container_counts() -> None:
    limit = GroupMemory(Path("/box"), 4 * GIB, 1 * GIB)
    memory = read_memory(machine=machine(8 * GIB, 1 * GIB), group=lambda: limit, gpus=lambda: ((), ""))
    assert memory.limited_by == "machine" and memory.used_share == 0.875


def test_version_2_reads_limit_and_use_of_the_own_group_without_file_pages(tmp_path: Path) -> None:
    put(tmp_path / "box", memory__max=1000, memory__current=900)
    put(tmp_path / "box", memory__stat="anon 300\ninactive_file 450\nactive_file 50\nshmem 100")
    put(tmp_path, membership="0::/box")
    found = tightest_group(tmp_path, tmp_path / "membership")
    assert found == GroupMemory(tmp_path / "box", 1000, 400)


def test_version_2_respects_the_limit_of_a_group_above(tmp_path: Path) -> None:
    put(tmp_path / "outer", memory__max=1000, memory__current=800)
    put(tmp_path / "outer" / "inner", memory__max="max", memory__current=10)
    put(tmp_path, membership="0::/outer/inner")
    found = tightest_group(tmp_path, tmp_path / "membership")
    assert found is not None and found.path == tmp_path / "outer" and found.used_share == 0.8


def test_inside_a_container_the_own_group_is_the_root(tmp_path: Path) -> None:
    put(tmp_path, memory__max=1000, memory__current=500, membership="0::/../../docker/abc")
    found = tightest_group(tmp_path, tmp_path / "membership")
    assert found == GroupMemory(tmp_path, 1000, 500)


def test_version_1_reads_the_memory_controllers_group(tmp_path: Path) -> None:
    put(tmp_path / "memory" / "box", memory__limit_in_bytes=1000, memory__usage_in_bytes=700)
    put(tmp_path / "memory" / "box", memory__stat="inactive_file 1\ntotal_inactive_file 150\ntotal_active_file 50")
    put(tmp_path / "memory", memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=5)
    put(tmp_path, membership="5:cpu,cpuacct:/elsewhere\n4:memory:/box\n0::/")
    assert tightest_group(tmp_path, tmp_path / "membership") == GroupMemory(tmp_path / "memory" / "box", 1000, 500)


@pytest.mark.parametrize("limit", ["max", "9223372036854771712", "0", "much"])
def test_no_limit_is_no_limit(tmp_path: Path, limit: str) -> None:
    put(tmp_path, memory__max=limit, memory__current=5, membership="0::/")
    put(tmp_path / "memory", memory__limit_in_bytes=limit, memory__usage_in_bytes=5)
    assert tightest_group(tmp_path, tmp_path / "membership") is None


def test_a_system_without_control_groups_has_no_limit(tmp_path: Path) -> None:
    assert tightest_group(tmp_path / "absent", tmp_path / "absent") is None


def test_the_family_holds_this_process_and_its_children() -> None:
    alone = read_family()
    program = "data = bytearray(64 << 20); print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline()
    try:
        together = read_family()
        assert together.processes == alone.processes + 1
        assert together.resident_bytes - alone.resident_bytes > 60 << 20
    finally:
        child.communicate(b"\n")
    assert read_family().processes == alone.processes


def test_the_family_of_one_process_is_what_psutil_says_of_it() -> None:
    family = read_family(os.getpid())
    info = psutil.Process().memory_full_info()
    if family.processes == 1:
        expected = info.pss if family.measure == "pss" else info.rss
        assert family.resident_bytes == pytest.approx(expected, rel=0.2)
    assert family.resident_bytes >= info.uss * 0.8


def test_where_shared_pages_are_not_told_the_resident_sizes_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: psutil.Process) -> None:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "memory_full_info", refused)
    family = read_family()
    assert family.measure == "rss" and family.resident_bytes >= psutil.Process().memory_info().rss * 0.8


class Driver:
    """The management library of a machine with these cards: (name, total, used); ``None`` for one that is lost."""

    def __init__(self, *cards: tuple[bytes | str, int, int] | None) -> None:
        self.cards = cards

    def nvmlInit(self) -> None:  # noqa: N802
        return None

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple[bytes | str, int, int]:  # noqa: N802
        card = self.cards[index]
        if card is None:
            raise RuntimeError("GPU is lost")
        return card

    def nvmlDeviceGetName(self, handle: tuple[bytes | str, int, int]) -> bytes | str:  # noqa: N802
        return handle[0]

    def nvmlDeviceGetMemoryInfo(self, handle: tuple[bytes | str, int, int]) -> Any:  # noqa: N802
        return SimpleNamespace(total=handle[1], used=handle[2])


def test_every_gpu_is_read_and_one_that_fails_is_named() -> None:
    gpus, reason = read_gpus(lambda: Driver((b"H100", 80, 20), None, ("T4", 16, 4)))
    assert gpus == (GpuMemory(0, "H100", 80, 20), GpuMemory(2, "T4", 16, 4))
    assert reason == "GPU 1: GPU is lost"
    assert [gpu.used_share for gpu in gpus] == [0.25, 0.25]


def test_without_the_library_there_are_no_gpus_and_a_reason() -> None:
    def absent() -> None:
        raise ImportError

    assert read_gpus(absent) == ((), "nvidia-ml-py is not installed")


def test_a_driver_that_does_not_answer_is_a_reason() -> None:
    class Broken(Driver):
        def nvmlInit(self) -> None:  # noqa: N802
            raise RuntimeError("Driver Not Loaded")

    assert read_gpus(Broken) == ((), "RuntimeError: Driver Not Loaded")
    assert read_gpus(Driver) == ((), "the driver names no GPU")


def test_levels_warn_before_it_hurts() -> None:
    assert 0.5 < WARNING_SHARE < CRITICAL_SHARE < 1.0
    shares = (0.0, WARNING_SHARE - 0.01, WARNING_SHARE, CRITICAL_SHARE - 0.01, CRITICAL_SHARE, 1.0)
    assert [level_of(share).name for share in shares] == ["OK", "OK", "WARNING", "WARNING", "CRITICAL", "CRITICAL"]


def test_the_fullest_memory_gives_the_level_also_a_gpus() -> None:
    assert reading(0.2, 0.3, 0.96).level == Level.CRITICAL
    assert reading(0.9, 0.1).level == Level.WARNING
    assert reading(0.2, 0.3).level == Level.OK


def test_the_event_names_share_threshold_level_and_what_limits() -> None:
    fields = reading(0.9, 0.5).to_json()
    assert (fields["level"], fields["used_share"], fields["threshold"]) == ("warning", 0.9, WARNING_SHARE)
    assert fields["limit_bytes"] - fields["used_bytes"] == fields["available_bytes"] == 100
    assert fields["limited_by"] == "machine" and fields["family_bytes"] == 10
    assert fields["resident_bytes"] == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)
    assert fields["gpus"] == [
        {"index": 0, "name": "card", "total_bytes": 100, "used_bytes": 50, "used_share": 0.5, "level": "ok"}
    ]


def test_a_rise_is_told_once_and_a_reading_at_the_edge_not_again() -> None:
    edge = WARNING_SHARE
    shares = [0.5, edge, edge, edge - 0.01, edge, 0.96, 0.96, 0.5, 0.96]
    readings = iter([reading(share) for share in shares])
    watch = MemoryWatch(lambda: next(readings))
    assert [watch.look()[1] for _ in shares] == [False, True, False, False, False, True, False, False, True]


def test_words_name_the_limit_and_the_run() -> None:
    text = Memory(4 * GIB, 3 * GIB, "/box", Family(3, GIB, "pss"), (GpuMemory(0, "T4", 16 * GIB, 8 * GIB),)).to_text()
    assert "75 % of the memory limit of /box (4.0 GiB)" in text and "50 % of GPU 0" in text and "1.0 GiB" in text
