"""One cache, many processes: built once, absent after a kill, and one copy in memory for all readers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from nx46vx.data.discovery import Case
from nx46vx.data.synthetic import make_case
from nx46vx.data.volume_io import write_volume
from nx46vx.features import build as build_module
from nx46vx.features.cache import FeatureCache, SampleRequest
from nx46vx.features.entry import open_entry, write_entry
from nx46vx.runtime.digest import digest_file
from nx46vx.runtime.sink import MemorySink, NullSink

SPAWN = multiprocessing.get_context("spawn")
WRITTEN = "written"


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> SampleRequest:
    folder = tmp_path_factory.mktemp("data")
    image, label = make_case((40, 40, 40), scroll=1, seed=1)
    write_volume(folder / "a.tif", image)
    write_volume(folder / "b.tif", label)
    digests = digest_file(folder / "a.tif"), digest_file(folder / "b.tif")
    case = Case("case", folder / "a.tif", folder / "b.tif", (40, 40, 40), *digests, None)
    return SampleRequest(case, role="train", seed=0, limit=1000, block=64)


def build_and_log(root: Path, request: SampleRequest, start: Any) -> None:
    """Build once both are ready; each real computation leaves a line."""
    compute = build_module.draw_samples

    def counted(request: SampleRequest, **keywords: Any) -> Any:
        with open(root / WRITTEN, "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.5)  # long enough for the other to come and find the lock held
        return compute(request, **keywords)

    build_module.draw_samples = counted
    start.wait()
    with ThreadPoolExecutor(1) as executor:
        FeatureCache(root, sink=NullSink()).build([request], executor=executor)


def test_two_runs_that_start_together_build_once(tmp_path: Path, request_: SampleRequest) -> None:
    start = SPAWN.Barrier(2)
    runs = [SPAWN.Process(target=build_and_log, args=(tmp_path, request_, start)) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0, 0]
    assert len((tmp_path / WRITTEN).read_text().split()) == 1
    FeatureCache(tmp_path, sink=NullSink()).verify(request_.key)


def build_and_hang(root: Path, request: SampleRequest, where: str) -> None:
    """Stop for good after the payload's first fsync, or right before the entry would be renamed into place."""
    from nx46vx.features import entry

    def hang(*_: Any) -> None:
        (root / WRITTEN).touch()
        time.sleep(600)

    if where == "payload":
        entry.os.fsync = hang
    else:
        entry.fsync_folder = hang
    with ThreadPoolExecutor(1) as executor:
        FeatureCache(root, sink=NullSink()).build([request], executor=executor)


@pytest.mark.parametrize("where", ["payload", "rename"])
def test_a_killed_builder_leaves_neither_an_entry_nor_a_lock(
    tmp_path: Path, request_: SampleRequest, where: str
) -> None:
    builder = SPAWN.Process(target=build_and_hang, args=(tmp_path, request_, where))
    builder.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / WRITTEN).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(builder.pid, signal.SIGKILL)
    builder.join(60)
    sink = MemorySink()
    cache = FeatureCache(tmp_path, sink=sink)
    folder = cache.path(request_.key).parent
    assert not cache.has(request_.key)
    assert len(os.listdir(folder)) == 1, "only the temporary folder is there"
    with ThreadPoolExecutor(1) as executor:
        cache.build([request_], executor=executor)
    cache.verify(request_.key)
    assert os.listdir(folder) == [request_.key], "the next builder cleans up"
    assert sink.named("CACHE_MISS")
    assert not sink.named("CACHE_ENTRY_REBUILT")


READER = """
import sys, numpy as np
from pathlib import Path
from nx46vx.features.entry import open_entry
samples = open_entry(Path(sys.argv[1]), "train") if sys.argv[1] != "-" else None
if samples is not None:
    assert float(np.add.reduce(samples.features, axis=None)) >= 0
print("ready", flush=True)
sys.stdin.readline()
"""


def total_pss(entry: str, count: int) -> int:
    """Proportional set size of ``count`` processes that have read the whole entry and hold it mapped."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, entry], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        for _ in range(count)
    ]
    try:
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"ready\n"
        return sum(psutil.Process(reader.pid).memory_full_info().pss for reader in readers)
    finally:
        for reader in readers:
            reader.communicate(b"\n")


def test_sixteen_readers_cost_one_copy(tmp_path: Path) -> None:
    samples = 500_000
    arrays = {
        "features": np.ones((38, samples), np.float32),
        "y": np.zeros(samples, np.uint8),
        "index": np.arange(samples),
        "group": np.zeros(samples, np.int32),
    }
    write_entry(tmp_path / "entry", arrays, case_id="case", counts=(1, 1), facts={})
    size = open_entry(tmp_path / "entry", "train").features.nbytes
    assert size >= 64 << 20
    cost = total_pss(str(tmp_path / "entry"), 16) - total_pss("-", 16)
    assert 0.8 * size < cost < 1.3 * size
