"""A terminal for tests: runs a program on a pseudo-terminal and keeps what a person would see at its end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

_TOKEN = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\x1b\][^\x07]*\x07|(\r)|(\n)|([^\x1b\r\n])")


@dataclass
class Terminal:
    """Lines as they stand after everything that was written; knows what rewriting views use of VT100."""

    lines: list[str] = field(default_factory=lambda: [""])
    cursor_shown: bool = True
    _row: int = 0
    _column: int = 0
    _rest: str = ""

    def write(self, text: str) -> None:
        text = self._rest + text
        cut = text.rfind("\x1b", max(len(text) - 12, 0))  # a sequence may come in two pieces
        whole = cut < 0 or _TOKEN.match(text, cut) is not None
        text, self._rest = (text, "") if whole else (text[:cut], text[cut:])
        for number, command, back, down, letter in _TOKEN.findall(text):
            if back:
                self._column = 0
            elif down:
                self._row += 1
                self.lines.extend([""] * (self._row + 1 - len(self.lines)))
            elif letter:
                line = self.lines[self._row].ljust(self._column)
                self.lines[self._row] = line[: self._column] + letter + line[self._column + 1 :]
                self._column += 1
            elif command == "A":
                self._row = max(self._row - int(number or 1), 0)
            elif command == "K":
                self.lines[self._row] = "" if number == "2" else self.lines[self._row][: self._column]
            elif command in "hl" and number == "?25":
                self.cursor_shown = command == "h"

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines)


@dataclass(frozen=True)
class Seen:
    """How a program ended: its code, what it wrote to stdout, the terminal, and the raw bytes sent there."""

    code: int
    stdout: str
    terminal: Terminal
    raw: str


def on_terminal(
    command: list[str], *, environ: Mapping[str, str] | None = None, rows: int = 40, columns: int = 110,
    watch: Callable[[subprocess.Popen[bytes], Terminal], None] | None = None, timeout: float = 120.0,
) -> Seen:  # fmt: skip
    """Run a program with stderr on a terminal and stdout in a pipe; ``watch`` is called while it runs."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    surroundings = {**os.environ, "TERM": "xterm", **(environ or {})}
    process = subprocess.Popen(
        command, stderr=theirs, stdin=theirs, stdout=subprocess.PIPE, env=surroundings, start_new_session=True
    )
    os.close(theirs)
    terminal, raw, end = Terminal(), "", time.monotonic() + timeout
    try:
        while time.monotonic() < end:
            if select.select([ours], [], [], 0.05)[0]:
                try:
                    piece = os.read(ours, 1 << 16)
                except OSError:  # the other side is closed
                    break
                if not piece:
                    break
                raw += piece.decode(errors="replace")
                terminal.write(piece.decode(errors="replace"))
            if watch is not None:
                watch(process, terminal)
        stdout, _ = process.communicate(timeout=max(end - time.monotonic(), 1.0))
    finally:
        process.kill()
        os.close(ours)
    return Seen(process.returncode, stdout.decode(), terminal, raw)
