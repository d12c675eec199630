"""The profile adds up, answers from what was measured, and compares with the last run of the same plan."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from nx46vx.report.profile import profile_lines
from nx46vx.runtime.gpu_memory import GpuMemory
from nx46vx.runtime.memory import Family, Memory
from nx46vx.runtime.profile import LogCost, MemoryPeaks, RunTimes, driver_peak_bytes, summarise
from search.lives import Lives
from search.tally import Tally, engine_fields, kernels

TALLY = Tally(
    search_seconds=20.0, ray_init_seconds=3.0, engine_busy_seconds=8.0, gpu_seconds=2.0, trial_log_seconds=0.5,
    trial_checkpoint_seconds=4.0, lane_iterations=16_200, trial_events=17_820, trial_checkpoints=1620, trials=135,
)  # fmt: skip
IO = {
    "wall_seconds": 5.0, "alone_seconds": 1.0, "overlapped": True, "read_seconds": 4.0, "write_seconds": 2.5,
    "kinds": {"read_volumes": {"seconds": 4.0, "times": 9}, "write_masks": {"seconds": 2.5, "times": 3}},
}  # fmt: skip
PHASES = {"features": 10.0, "train_supervised": 25.0, "segment": 5.0}


def summary(tally: Tally = TALLY, **given: Any) -> dict[str, Any]:
    search = {**asdict(tally), "overhead_seconds": tally.overhead_seconds}
    return summarise(
        **{
            "wall_seconds": 50.0, "phases": PHASES, "search": search, "driver_log": LogCost(300, 0.1), "io": IO,
            "samples": 1_000_000, "candidates": 135, "memory": {"family_peak_bytes": 1 << 30}, "previous": None,
            **given,
        }
    )  # fmt: skip


def test_shares_are_of_the_whole_session_and_nothing_is_left_out() -> None:
    found = summary()
    assert found["phases"]["train_supervised"] == {"seconds": 25.0, "share_pct": 50.0}
    assert found["outside_phases"] == {"seconds": 10.0, "share_pct": 20.0}
    everything = [*found["phases"].values(), found["outside_phases"]]
    assert sum(part["seconds"] for part in everything) == found["wall_seconds"]
    assert sum(part["share_pct"] for part in everything) == pytest.approx(100.0)


def test_the_search_is_split_in_start_engine_and_the_rest() -> None:
    parts = summary()["parts"]
    assert (parts["ray_init"]["seconds"], parts["compute"]["seconds"]) == (3.0, 8.0)
    assert parts["search_overhead"]["seconds"] == 20.0 - 3.0 - 8.0
    assert parts["event_log"]["seconds"] == pytest.approx(0.6)
    assert parts["checkpoints"]["seconds"] == 4.0


def test_reading_and_writing_is_a_share_of_the_session() -> None:
    found = summary()
    assert found["parts"]["io"] == {"seconds": 5.0, "share_pct": 10.0}
    assert found["io"] == IO


def test_the_answers_follow() -> None:
    found = summary()
    assert found["answers"] == {
        "fit_share_of_search_pct": pytest.approx(40.0), "log_share_of_compute_pct": pytest.approx(7.5),
        "checkpoint_share_of_compute_pct": pytest.approx(50.0), "largest_phase": "train_supervised",
    }  # fmt: skip
    assert found["rates"]["candidates_per_second"] == pytest.approx(135 / 25)
    assert found["rates"]["ns_per_sample_lane_iteration"] == pytest.approx(1e9 * 8.0 / (1e6 * 16_200))
    assert found["event_log"]["events"] == 18_120


def test_a_session_that_trained_nothing_has_no_rates() -> None:
    found = summary(Tally(), phases={"discovery": 1.0}, samples=0, candidates=0)
    assert found["rates"]["candidates_per_second"] is None
    assert found["rates"]["ns_per_sample_lane_iteration"] is None
    assert found["answers"]["fit_share_of_search_pct"] is None
    orjson.dumps(found)


def test_speedup_is_against_the_run_before() -> None:
    found = summary(previous={"wall_seconds": 100.0, "train_seconds": 100.0})
    assert found["speedup"] == {
        "previous_wall_seconds": 100.0, "previous_train_seconds": 100.0, "wall": 2.0, "train": 4.0,
    }  # fmt: skip
    assert summary()["speedup"] is None


def test_the_overhead_is_never_negative() -> None:
    assert replace(TALLY, engine_busy_seconds=30.0).overhead_seconds == 0.0


def test_epochs_of_a_session_add_up_and_peaks_do_not() -> None:
    whole, first = Tally(), replace(TALLY, gpu_peak_bytes=5)
    whole.add(first)
    whole.add(replace(TALLY, gpu_peak_bytes=3))
    assert whole.search_seconds == 40.0 and whole.trials == 270 and whole.gpu_peak_bytes == 5
    assert whole.overhead_seconds == 2 * TALLY.overhead_seconds


def test_engines_work_side_by_side_but_their_lanes_add_up() -> None:
    tally = Tally()
    one = {"busy_seconds": 3.0, "gpu_seconds": 2.0, "lane_iterations": 10, "gpu_peak_bytes": 7}
    tally.add_engines([one, {**one, "busy_seconds": 4.0, "gpu_peak_bytes": 9}])
    assert (tally.engine_busy_seconds, tally.gpu_seconds) == (4.0, 2.0)
    assert (tally.lane_iterations, tally.gpu_peak_bytes) == (20, 9)
    assert engine_fields(tally)["busy_seconds"] == 4.0 and engine_fields(tally)["restarts"] == 0
    stats = [{"kernel": "llvm", "kernel_reason": "x"}, {"kernel": "llvm", "kernel_reason": "x"}]
    assert kernels(stats) == ["llvm: x"]


def life(name: str, busy: float, iterations: int, *, gpu: float = 0.0, peak: int = 0) -> dict[str, Any]:
    return {
        "life": name, "busy_seconds": busy, "figures_seconds": busy / 8, "lane_iterations": iterations,
        "gpu_seconds": gpu, "gpu_peak_bytes": peak,
        "kernel": "torch", "kernel_reason": name,
    }  # fmt: skip


def test_a_dead_engines_work_is_counted_as_far_as_it_told_of_it() -> None:
    lives, tally = Lives(), Tally()
    lives.tell(0, life("a", 0.0, 0))
    lives.tell(0, life("a", 3.0, 150, gpu=2.0, peak=9))
    lives.tell(1, life("c", 5.0, 100, gpu=0.5, peak=2))
    lives.tell(0, life("b", 1.0, 50, gpu=0.5, peak=4))
    lives.tell(0, life("a", 2.0, 100, gpu=1.0, peak=9))  # an answer that was on its way
    lives.tell(0, life("b", 2.0, 100, gpu=1.0, peak=4))
    total = lives.total(0)
    assert (total["busy_seconds"], total["lane_iterations"], total["gpu_seconds"]) == (5.0, 250, 3.0)
    assert total["figures_seconds"] == 5.0 / 8
    assert (total["gpu_peak_bytes"], total["restarts"], total["kernel_reason"]) == (9, 1, "b")
    tally.add_engines([total, lives.total(1)])
    assert (tally.engine_busy_seconds, tally.gpu_seconds, tally.lane_iterations) == (5.0, 3.0, 350)
    assert tally.engine_restarts == 1 and tally.gpu_peak_bytes == 9


def test_peaks_are_the_largest_readings() -> None:
    def reading(family: int, gpu: int) -> Memory:
        return Memory(100, 50, "machine", Family(3, family, "pss"), (GpuMemory(1, "x", 100, gpu),))

    readings = iter([reading(10, 7), reading(30, 5), reading(20, 9)])
    peaks = MemoryPeaks(lambda: next(readings))
    assert [peaks.read().family.resident_bytes for _ in range(3)] == [10, 30, 20]
    found = peaks.to_json()
    assert found["family_peak_bytes"] == 30 and found["family_measure"] == "pss"
    assert found["gpu_peak_bytes"] == {"1": 9}
    assert found["driver_peak_bytes"] == driver_peak_bytes() > 10 << 20


def test_times_of_plans_are_remembered_durably_and_the_oldest_go(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "run_seconds.json"
    times = RunTimes(path)
    assert times.get("a") is None
    for number in range(150):
        times.put(f"plan-{number}", float(number), 1.0)
    times.put("plan-60", 7.0, 2.0)
    again = RunTimes(path)
    assert again.get("plan-60") == {"wall_seconds": 7.0, "train_seconds": 2.0}
    assert again.get("plan-10") is None and again.get("plan-149") is not None
    assert len(orjson.loads(path.read_bytes())) == 100


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"a": 1}', b'{"a": {"wall_seconds": "x"}}', b"{"])
def test_damaged_times_are_begun_anew(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "run_seconds.json"
    path.write_bytes(damage)
    times = RunTimes(path)
    assert times.get("a") is None
    times.put("a", 1.0, 1.0)
    assert RunTimes(path).get("a") == {"wall_seconds": 1.0, "train_seconds": 1.0}


NO_GPU = {"gpu_phase_coverage_pct": None, "gpu_time_ratio": None, "cpu_fallback_count": 0}


def test_the_report_shows_where_the_time_went() -> None:
    text = "\n".join(profile_lines(summary(previous={"wall_seconds": 100.0, "train_seconds": 100.0}), NO_GPU))
    assert "| engine in passes | 8.0 | 16.0 |" in text and "5.40 candidates" in text
    assert "2.00 times as fast" in text and "GPU" not in text
    assert "| reading volumes, writing features and masks | 5.0 | 10.0 |" in text
    assert "4.0 s of reading and 2.5 s of writing" in text and "beside other work; 1.0 s" in text
    used = {"gpu_phase_coverage_pct": 100.0, "gpu_time_ratio": 0.25, "cpu_fallback_count": 2}
    assert "25.0 % of their time; 2 fallbacks" in "\n".join(profile_lines(summary(), used))


def test_reports_of_earlier_versions_show_what_they_have() -> None:
    assert profile_lines(None, None) == []
    earlier = summary()
    del earlier["io"], earlier["parts"]["io"]
    text = "\n".join(profile_lines(earlier, NO_GPU))
    assert "| engine in passes | 8.0 | 16.0 |" in text and "reading" not in text
