"""A million events and a thousand checkpoints through one process: nothing piles up, and the log proves itself."""

from __future__ import annotations

import gc
import os
from statistics import median

import numpy as np
import psutil
import pytest

from nx46vx.events import EventLog, verify_log
from nx46vx.runtime.checkpoint import CheckpointStore

OWNER = "k000-l1_0.001-l2_0.01"
COMMITS, EVENTS_EACH, BLOCK = 1000, 1000, 10


@pytest.mark.slow
def test_a_million_events_and_a_thousand_checkpoints_leave_no_trace_in_memory(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", mirror=tmp_path / "second", run_id="r", identity={})
    arrays = {"theta": np.zeros(19), "point": np.zeros(19)}
    process, resident, handles = psutil.Process(), [], []
    rng = np.random.default_rng(0)
    with EventLog(tmp_path / "events", OWNER, run_id="r") as log:
        for commit in range(COMMITS):
            losses = enumerate(rng.random(BLOCK).tolist())
            block = [{"substage": "fit_prox_iter", "iter": number, "loss": loss} for number, loss in losses]
            for _ in range(EVENTS_EACH // BLOCK):
                log.emit_many("PROGRESS_UPDATE", block)
            cursor = {"epoch": 0, "candidate_index": 0, "candidate_total": 1, "iter": commit, "max_iter": COMMITS}
            store.commit(OWNER, cursor=cursor, model_state={}, arrays=arrays, metrics={}, data_cursor={}, sink=log)
            if commit % 10 == 9:
                gc.collect()
                resident.append(process.memory_info().rss)
                handles.append(len(os.listdir("/proc/self/fd")))
        assert log.count == COMMITS * (EVENTS_EACH + 1) + 1
        log.seal()
    warm, late = slice(len(resident) // 5, 2 * len(resident) // 5), slice(-len(resident) // 5, None)
    assert median(resident[late]) < 1.05 * median(resident[warm]), "memory grows"
    assert min(handles[late]) <= min(handles[warm]), "file descriptors pile up"
    assert store.latest(OWNER).number == COMMITS
    anchors = store.anchors()
    assert len(anchors) == 4  # two are kept in each root
    assert verify_log(tmp_path / "events", anchors) == []
