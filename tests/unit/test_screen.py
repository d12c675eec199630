"""The view on a terminal: everything at a glance, talk in whole lines above it, a terminal that is left as it was."""

from __future__ import annotations

import io
import itertools
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from terminal import Terminal, on_terminal
from tiny import write_config

from nx46vx.logs import Screen, leave_terminal, say, talk_through
from nx46vx.pipeline.screen import LiveScreen, clock_time, make_screen
from nx46vx.runtime.memory import Family, Memory
from nx46vx.runtime.progress import DEFAULT_WEIGHTS, PHASES

LABELS = (
    "global_progress_reel", "train_progress_reel", "cursor(epoch,candidate,iter)", "candidates", "best objective",
    "remaining_estimate_s", "budget left", "memory",
)  # fmt: skip


def view(**changes: Any) -> dict[str, Any]:
    """What the monitor tells, in the middle of a fit."""
    shares = dict(zip(PHASES, (1.0, 1.0, 1.0, 0.45, 0.0, 0.0), strict=True))
    etas = dict(zip((*PHASES, "total"), (0.0, 0.0, 0.0, 1200.0, 300.0, 5.0, 1505.0), strict=True))
    memory = Memory(16 << 30, 4 << 30, "machine", Family(7, 3 << 30, "pss")).to_json()
    return {
        "global_progress_reel": 48.4, "train_progress_reel": 45.0, "cursor": [0, 61, 40],
        "remaining_estimate_s": 1505.0, "candidates_done": 60, "candidates_total": 135, "in_flight": 8,
        "best": {"candidate_id": "k003-l1_0.001-l2_0.01", "objective": -0.263744}, "shares": shares,
        "weights": DEFAULT_WEIGHTS, "eta_per_phase_s": etas, "budget_left_s": 3 * 3600.0, "elapsed_s": 6 * 3600.0,
        "governor_state": "RUN", "memory": {**memory, "gpus": [], "gpu_reason": "none"}, **changes,
    }  # fmt: skip


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def drawn(told: dict[str, Any] | None, *, height: int = 40, after: float = 0.0) -> list[str]:
    """The lines of one drawing, ``after`` seconds later."""
    clock = Clock()
    console = Console(file=io.StringIO(), width=110, height=height, record=True)
    screen = LiveScreen(console, clock)
    if told is not None:
        screen.show(told)
    clock.time += after
    console.print(screen)
    return [line.rstrip() for line in console.export_text().splitlines()]


def row(lines: list[str], label: str) -> str:
    (line,) = [line for line in lines if line.startswith(label)]
    return line


def test_one_view_shows_everything_that_was_promised() -> None:
    lines = drawn(view())
    assert "48.40 %" in row(lines, "global_progress_reel") and "45.00 %" in row(lines, "train_progress_reel")
    assert "(0, 61, 40)" in row(lines, "cursor(epoch,candidate,iter)")
    assert "60/135 done, 8 trials in flight" in row(lines, "candidates")
    assert "-0.263744  k003-l1_0.001-l2_0.01" in row(lines, "best objective")
    assert "1505" in row(lines, "remaining_estimate_s") and "0:25:05" in row(lines, "remaining_estimate_s")
    assert "3:00:00, 6:00:00 elapsed, governor RUN" in row(lines, "budget left")
    assert "25 % of 16.0 GiB (machine), 3.0 GiB" in row(lines, "memory") and "ok" in row(lines, "memory")


def test_every_phase_has_its_share_of_all_its_own_share_and_its_state() -> None:
    lines = drawn(view())
    states = {phase: row(lines, phase) for phase in PHASES}
    assert [phase for phase, line in states.items() if "done" in line] == ["discovery", "load", "train_data"]
    assert re.search(r"72 % of all .* 45\.00 % +now +about 0:20:00", states["train_fit"])
    assert re.search(r"10 % of all .* 0\.00 % +waiting +about 0:05:00", states["segment"])


def test_gpus_have_lines_of_their_own_and_a_container_is_named() -> None:
    gpus = [{"index": 0, "name": "T4", "total_bytes": 16 << 30, "used_bytes": 14 << 30, "used_share": 0.875,
             "level": "warning"}]  # fmt: skip
    lines = drawn(view(memory={**view()["memory"], "gpus": gpus, "limited_by": "/sys/fs/cgroup/box"}))
    assert "88 % of 16.0 GiB, warning" in row(lines, "GPU 0 memory")
    assert "(container limit)" in row(lines, "memory")


def test_what_is_not_known_yet_is_said_in_words() -> None:
    shares = dict.fromkeys(PHASES, 0.0)
    nothing = {"cursor": None, "remaining_estimate_s": None, "best": None, "candidates_total": None}
    lines = drawn(view(**nothing, shares=shares, eta_per_phase_s=dict.fromkeys((*PHASES, "total"))))
    assert "the fit has not begun" in row(lines, "cursor") and "none yet" in row(lines, "best objective")
    assert "not known yet" in row(lines, "remaining_estimate_s") and "not planned yet" in row(lines, "candidates")
    assert drawn(None, after=3.0) == ["starting, 0:00:03"]


def test_the_clocks_run_between_two_ticks() -> None:
    lines = drawn(view(), after=7.0)
    assert "2:59:53, 6:00:07 elapsed" in row(lines, "budget left")
    assert "1498" in row(lines, "remaining_estimate_s") and "0:24:58" in row(lines, "remaining_estimate_s")


def test_a_low_terminal_has_the_phases_in_one_line() -> None:
    lines = drawn(view(), height=20)
    assert lines[0] == "discovery done, load done, train_data done, train_fit 45.0 %" and len(lines) < 12
    assert all(any(line.startswith(label) for line in lines) for label in LABELS)


def test_a_figure_that_cannot_be_drawn_stops_nothing() -> None:
    assert drawn({"shares": None})[0].startswith("the view cannot be drawn: ")


def test_clock_times() -> None:
    assert [clock_time(seconds) for seconds in (0, 59.9, 3661, 36000, -90)] == [
        "0:00:00", "0:00:59", "1:01:01", "10:00:00", "-0:01:30",
    ]  # fmt: skip


def test_elsewhere_than_on_a_terminal_there_are_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = make_screen({"TERM": "xterm"})
    assert type(screen) is Screen
    with screen.shown():
        screen.show(view())
    (line,) = capsys.readouterr().err.splitlines()
    for part in ("48.4 %", "train 45.0 %", "60/135", "8 in flight", "(0, 61, 40)", "-0.2637", "1505 s", "memory 25 %"):
        assert part in line
    assert "\x1b" not in line
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert type(make_screen({"TERM": "dumb"})) is Screen and type(make_screen({})) is Screen


def test_talk_goes_through_the_view_while_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    with talk_through(lines.append):
        say("within")
    say("after")
    assert len(lines) == 1 and lines[0].endswith(" s] within")
    assert capsys.readouterr().err.endswith(" s] after\n")


def test_a_terminal_that_is_gone_does_not_end_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    def gone(line: str) -> None:
        raise OSError(5, "Input/output error")

    with talk_through(gone):
        say("to no one")

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    screen, done = LiveScreen(Console(file=Gone(), force_terminal=True)), False
    with screen.shown():
        screen.show(view())
        say("to no one")
        done = True
    assert done


def test_nothing_is_written_to_a_terminal_that_no_view_is_on(capfd: pytest.CaptureFixture[str]) -> None:
    leave_terminal()
    assert capfd.readouterr().err == ""
    with talk_through(lambda line: None):
        leave_terminal()
    assert capfd.readouterr().err == "\x1b[?25h\n"


PLAY = """
import sys, time
from nx46vx.logs import say
from nx46vx.pipeline.screen import make_screen
from nx46vx.runtime.stop import StopFlag
from test_screen import view
screen, stop = make_screen(), StopFlag()
with stop.on_signals(), screen.shown():
    screen.show(view())
    %s
"""


def play(body: str, **options: Any) -> Any:
    here = Path(__file__).parent
    lines = "\n    ".join(body.strip().splitlines())
    path = {"PYTHONPATH": f"{here.parents[1]}:{here}:{here.parent}"}
    return on_terminal([sys.executable, "-c", PLAY % lines], environ=path, **options)


def test_talk_stands_in_whole_lines_above_one_view() -> None:
    seen = play("""
for number in range(40):
    say(f"word {number} " + 10 * "long ")
    print("a warning by a library", file=sys.stderr) if number == 20 else None
    time.sleep(0.05)
""")
    lines = seen.terminal.text.splitlines()
    said = [line for line in lines if re.fullmatch(r"\[ *\d+\.\d s\] word \d+ (long ?){10}", line)]
    assert [int(line.split("word ")[1].split()[0]) for line in said] == list(range(40))
    assert lines.count("a warning by a library") == 1
    for label in LABELS:
        assert len([line for line in lines if line.startswith(label)]) == 1, label
    assert lines.index(said[-1]) < lines.index(row(lines, "global_progress_reel"))
    assert seen.code == 0 and seen.terminal.cursor_shown and "\x1b[?25l" in seen.raw


def test_it_is_drawn_at_least_every_two_seconds_without_any_tick() -> None:
    seen = play("time.sleep(4.2)")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.raw)
    left = [int(found) for found in re.findall(r"remaining_estimate_s +(\d+)", plain)]
    assert 1503 <= left[0] <= 1505 and left[-1] <= 1502
    assert all(0 <= earlier - later <= 2 for earlier, later in itertools.pairwise(left))


@pytest.mark.parametrize(
    ("body", "code"),
    [("raise RuntimeError('no')", 1), ("sys.exit(7)", 7), ("import os; os.kill(os.getpid(), 15)", 0)],
)
def test_the_terminal_is_as_it_was_after_every_end(body: str, code: int) -> None:
    seen = play(body)
    assert seen.code == code and "\x1b[?25l" in seen.raw and seen.terminal.cursor_shown
    assert len([line for line in seen.terminal.text.splitlines() if line.startswith("global_progress_reel")]) == 1
    assert ("RuntimeError: no" in seen.terminal.text) == (code == 1)


def test_a_second_interrupt_leaves_a_cursor_to_type_at() -> None:
    interrupts = []

    def watch(process: subprocess.Popen[bytes], terminal: Terminal) -> None:
        if "global_progress_reel" in terminal.text and len(interrupts) < 2:
            assert not terminal.cursor_shown
            process.send_signal(signal.SIGINT)
            interrupts.append(time.monotonic())
            time.sleep(0.2)

    seen = play("time.sleep(60)", watch=watch)
    assert seen.code == 130 and seen.terminal.cursor_shown and seen.terminal.lines[-1] == ""


def test_a_dumb_terminal_gets_plain_lines() -> None:
    here = Path(__file__).parent
    path = {"PYTHONPATH": f"{here.parents[1]}:{here}:{here.parent}", "TERM": "dumb"}
    seen = on_terminal([sys.executable, "-c", PLAY % "say('word')"], environ=path)
    assert seen.code == 0 and "\x1b" not in seen.raw and "48.4 %" in seen.raw and "word" in seen.raw


def test_a_run_on_a_terminal_shows_one_view_and_keeps_stdout_for_data(tmp_path: Path, tiny_data: Path) -> None:
    config = write_config(tmp_path / "tiny.yaml", flat={"data.dir": str(tiny_data)})
    command = [sys.executable, "-m", "nx46vx", "run", "--config", str(config), "--out", str(tmp_path / "run"), "--json"]
    seen = on_terminal(command)
    lines = seen.terminal.text.splitlines()
    assert seen.code == 0, seen.terminal.text
    assert "100.00 %" in row(lines, "global_progress_reel") and "4/4 done" in row(lines, "candidates ")
    assert any("hold-out" in line for line in lines) and lines.index(row(lines, "memory")) < len(lines) - 1
    assert seen.terminal.cursor_shown and '"submission"' in seen.stdout and "\x1b" not in seen.stdout


def test_a_run_that_is_interrupted_leaves_a_whole_terminal_and_exit_code_3(tmp_path: Path, tiny_data: Path) -> None:
    config = write_config(tmp_path / "tiny.yaml", flat={"data.dir": str(tiny_data)})
    sent = []

    def watch(process: subprocess.Popen[bytes], terminal: Terminal) -> None:
        if "data: 5 of 5" in terminal.text and not sent:
            process.send_signal(signal.SIGINT)
            sent.append(True)

    command = [sys.executable, "-m", "nx46vx", "run", "--config", str(config), "--out", str(tmp_path / "run")]
    seen = on_terminal(command, watch=watch)
    assert seen.code == 3 and seen.terminal.cursor_shown
    assert "StoppedError: stopped by SIGINT" in seen.terminal.text
    assert len([line for line in seen.terminal.text.splitlines() if line.startswith("global_progress_reel")]) == 1
