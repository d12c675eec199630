"""The part of the report that says where the time went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PARTS = {
    "compute": "engine in passes", "event_log": "writing events, all processes",
    "checkpoints": "writing checkpoints, all processes", "io": "reading volumes, writing features and masks",
    "ray_init": "starting Ray", "search_overhead": "search besides Ray's start and the engine",
}  # fmt: skip


def profile_lines(profile: Mapping[str, Any] | None, gpu: Mapping[str, Any] | None) -> list[str]:
    """Markdown; nothing for runs of versions that measured nothing."""
    if profile is None or gpu is None:
        return []
    rates, memory, speedup, io = profile["rates"], profile["memory"], profile["speedup"], profile.get("io")
    lines = [
        "## Where the time went",
        "",
        "| part | seconds | % of the run |",
        "|---|---|---|",
        *(f"| {text} | {_part(profile['parts'][name])} |" for name, text in _PARTS.items() if name in profile["parts"]),
        f"| outside the stages | {_part(profile['outside_phases'])} |",
        "",
        f"Processes work side by side, so parts overlap. {_number(rates['candidates_per_second'], '.2f')} candidates "
        f"per second, {_number(rates['ns_per_sample_lane_iteration'], '.3f')} ns per sample, candidate and iteration; "
        f"at most {memory['family_peak_bytes'] / (1 << 20):.0f} MiB in all processes.",
        "",
    ]
    if io is not None:
        beside = ", some of it beside other work" if io["overlapped"] else ""
        lines += [
            f"Files: {io['read_seconds']:.1f} s of reading and {io['write_seconds']:.1f} s of writing, summed over "
            f"threads{beside}; {io['alone_seconds']:.1f} s of it the run waited for.",
            "",
        ]
    if speedup is not None:
        before, wall, train = speedup["previous_wall_seconds"], speedup["wall"], speedup["train"]
        lines += [
            f"The same plan took {before:.1f} s before: {wall:.2f} times as fast now, {train:.2f} in training.",
            "",
        ]
    if gpu["gpu_phase_coverage_pct"] is not None:
        lines += [
            f"GPU: in {gpu['gpu_phase_coverage_pct']:.0f} % of the phases that asked for it, for "
            f"{100 * gpu['gpu_time_ratio']:.1f} % of their time; {gpu['cpu_fallback_count']} fallbacks to the CPU.",
            "",
        ]
    return lines


def _part(part: Mapping[str, Any]) -> str:
    return f"{part['seconds']:.1f} | {_number(part['share_pct'], '.1f')}"


def _number(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)
