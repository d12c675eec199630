"""The view on a terminal: one table that rewrites itself every second, with the talk above it."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, Group, JustifyMethod, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nx46vx.logs import Screen, talk_through
from nx46vx.runtime.memory import gib
from nx46vx.runtime.progress import PHASES

#: Times a second that the view is drawn; the figures are those of the last tick, the clocks run.
DRAWN_PER_SECOND = 1.0
#: Lines that the terminal has to have for the table of phases; else they are one line.
ROOM_FOR_PHASES = 24

_LEVEL_STYLES = {"ok": "green", "warning": "yellow", "critical": "bold red"}


def make_screen(environ: Mapping[str, str] = os.environ) -> Screen:
    """The view where stderr is a terminal that can rewrite lines; plain lines elsewhere."""
    if sys.stderr.isatty() and environ.get("TERM", "dumb") != "dumb":
        console = Console(stderr=True)
        if console.is_terminal and console.is_interactive:  # the user may say otherwise in the environment
            return LiveScreen(console)
    return Screen()


class LiveScreen(Screen):
    """Draws on ``console`` while it is shown; leaves the last view there. ``clock`` in seconds."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._view: dict[str, Any] | None = None
        self._told_at = self._began = clock()

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        live = Live(
            console=self._console, get_renderable=lambda: self, refresh_per_second=DRAWN_PER_SECOND,
            redirect_stdout=sys.stdout.isatty(), vertical_overflow="crop",
        )  # fmt: skip
        self._began = self._clock()
        try:
            with contextlib.suppress(OSError, ValueError):  # the terminal may be gone: that ends no work
                live.start(refresh=True)
            with talk_through(self._say):
                yield
        finally:
            with contextlib.suppress(OSError, ValueError):
                live.stop()

    def show(self, view: Mapping[str, Any]) -> None:
        self._view, self._told_at = dict(view), self._clock()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        view, since = self._view, self._clock() - self._told_at
        if view is None:
            yield Text(f"starting, {clock_time(self._clock() - self._began)}")
            return
        try:
            yield render(view, since, phases_as_table=console.size.height >= ROOM_FOR_PHASES)
        except (KeyError, TypeError, ValueError) as error:  # a figure that cannot be drawn stops no thread
            yield Text(f"the view cannot be drawn: {type(error).__name__}: {error}")

    def _say(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)


def render(view: Mapping[str, Any], since: float, *, phases_as_table: bool) -> Group:
    """The monitor's view, ``since`` seconds after it was taken."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="cyan", no_wrap=True)
    rows.add_column(overflow="fold")
    for name in ("global_progress_reel", "train_progress_reel"):
        rows.add_row(name, _bar(view[name], f"{view[name]:6.2f} %"))
    rows.add_row("cursor(epoch,candidate,iter)", _cursor(view))
    rows.add_row("candidates", _candidates(view))
    rows.add_row("best objective", _best(view))
    left = view["remaining_estimate_s"]
    rows.add_row("remaining_estimate_s", "not known yet" if left is None else _left(left, since))
    state = view["governor_state"]
    spent = f"{clock_time(view['budget_left_s'] - since)}, {clock_time(view['elapsed_s'] + since)} elapsed, governor "
    rows.add_row("budget left", Text.assemble(spent, (state, "green" if state == "RUN" else "yellow")))
    for name, text in _memory(view["memory"]):
        rows.add_row(name, text)
    return Group(_phase_table(view) if phases_as_table else _phase_line(view), rows)


def clock_time(seconds: float) -> str:
    """``h:mm:ss``; a minus sign once it is over."""
    whole = abs(int(seconds))
    return f"{'-' if seconds <= -1 else ''}{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _phase_table(view: Mapping[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    sides: tuple[JustifyMethod, ...] = ("left", "right", "left", "left")
    for justify in sides:
        table.add_column(justify=justify, no_wrap=True)
    for phase, state in _phase_states(view):
        share, left = view["shares"][phase], view["eta_per_phase_s"][phase]
        style = {"now": "bold", "waiting": "dim"}.get(state, "green")
        told = "" if state == "done" or left is None else f"about {clock_time(left)}"
        table.add_row(
            Text(phase, style), Text(f"{100 * view['weights'][phase]:.0f} % of all", "dim"),
            _bar(100 * share, f"{100 * share:6.2f} %"), Text(f"{state:8s} {told}", style),
        )  # fmt: skip
    return table


def _phase_line(view: Mapping[str, Any]) -> Text:
    parts = [
        phase + (f" {100 * view['shares'][phase]:.1f} %" if state == "now" else f" {state}")
        for phase, state in _phase_states(view)
        if state != "waiting"
    ]
    return Text(", ".join(parts), overflow="ellipsis", no_wrap=True)


def _phase_states(view: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    running = next((phase for phase in PHASES if view["shares"][phase] < 1.0), None)
    for phase in PHASES:
        done = view["shares"][phase] == 1.0
        yield phase, "done" if done else "now" if phase == running else "waiting"


def _bar(percent: float, text: str) -> Table:
    bar = Table.grid(padding=(0, 1))
    bar.add_row(ProgressBar(total=100.0, completed=percent, width=24), text)
    return bar


def _cursor(view: Mapping[str, Any]) -> str:
    if view["cursor"] is None:
        return "the fit has not begun"
    return "({}, {}, {})".format(*view["cursor"])


def _candidates(view: Mapping[str, Any]) -> str:
    total = view["candidates_total"]
    if total is None:
        return "not planned yet"
    return f"{view['candidates_done']}/{total} done, {view['in_flight']} trials in flight"


def _best(view: Mapping[str, Any]) -> str:
    best = view["best"]
    return "none yet" if best is None else f"{best['objective']:.6f}  {best['candidate_id']}"


def _left(seconds: float, since: float) -> str:
    left = max(seconds - since, 0.0)
    return f"{left:.0f}   {clock_time(left)} from now"


def _memory(memory: Mapping[str, Any]) -> Iterator[tuple[str, Text]]:
    place = "machine" if memory["limited_by"] == "machine" else "container limit"
    yield (
        "memory",
        Text(
            f"{100 * memory['used_share']:.0f} % of {gib(memory['limit_bytes'])} ({place}), "
            f"{gib(memory['family_bytes'])} in this run's processes ({memory['family_processes']}), {memory['level']}",
            _LEVEL_STYLES[memory["level"]],
        ),
    )
    for gpu in memory["gpus"]:
        yield (
            f"GPU {gpu['index']} memory",
            Text(
                f"{100 * gpu['used_share']:.0f} % of {gib(gpu['total_bytes'])}, {gpu['level']}",
                _LEVEL_STYLES[gpu["level"]],
            ),
        )
