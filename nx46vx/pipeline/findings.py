"""What a verification found: problems by file and key, what was checked, what was not there to be checked."""

from __future__ import annotations

import math
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from nx46vx.errors import NX46Error
from nx46vx.events.verify import Problem
from nx46vx.runtime.files import REAL_FILES

_LIMIT = 256 << 20
_MALFORMED = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError)


class Findings:
    """Collects what is found in one run directory; paths are shown relative to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.problems: list[Problem] = []
        self.checked: Counter[str] = Counter()
        self.not_checked: list[str] = []

    def problem(self, path: object, what: str, line: int | None = None) -> None:
        found = Problem(self._relative(path), line, what)
        if found not in self.problems:
            self.problems.append(found)

    def add(self, problems: Iterable[Problem]) -> None:
        for one in problems:
            self.problem(one.path, one.what, one.line)

    def skip(self, what: str, why: str) -> None:
        if (text := f"{what}: {why}") not in self.not_checked:
            self.not_checked.append(text)

    def names(self, path: object) -> bool:
        """Whether a problem of this file is known already."""
        return any(problem.path == self._relative(path) for problem in self.problems)

    @contextmanager
    def guard(self, path: object) -> Iterator[None]:
        """Turn what goes wrong inside into a problem of ``path``: files come from anywhere and may hold anything."""
        try:
            yield
        except NX46Error as error:
            found = f": {error.found}" if error.found is not None else ""
            self.problem(path if error.where is None else error.where, f"{error.what}{found}")
        except OSError as error:
            self.problem(error.filename or path, f"cannot be read: {error.strerror or error}")
        except _MALFORMED as error:
            self.problem(path, f"is not in its form: {type(error).__name__}: {str(error)[:200]}")

    def read(self, path: Path) -> bytes | None:
        """A file's bytes; None, and a problem, where it cannot be read. Links are not followed."""
        try:
            raw = REAL_FILES.read(path, 0, _LIMIT + 1)
        except FileNotFoundError:
            self.problem(path, "is missing")
        except OSError as error:
            self.problem(path, f"cannot be read: {error.strerror}")
        else:
            if len(raw) <= _LIMIT:
                return raw
            self.problem(path, f"has more than {_LIMIT} bytes")
        return None

    def read_json(self, path: Path) -> dict[str, Any] | None:
        """A file's JSON object; None, and a problem, where there is none."""
        raw = self.read(path)
        if raw is None:
            return None
        try:
            value = orjson.loads(raw)
        except ValueError as error:
            self.problem(path, f"is no JSON: {error}")
            return None
        if not isinstance(value, dict):
            self.problem(path, "is no JSON object")
            return None
        if orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n" != raw:
            self.problem(path, "is not spelled as this program writes it")
        return value

    def compare(self, path: object, expected: Any, found: Any, key: str = "", line: int | None = None) -> None:
        """Name every key in which ``found`` differs from what was recomputed; floats have to be equal to the bit."""
        for where, wanted, there in differences(_plain(expected), found, key):
            what = f"{where or 'its content'} is {_shown(there)}, the records give {_shown(wanted)}"
            self.problem(path, what, line)
        self.checked["numbers"] += _leaves(expected)

    def close(self, path: object, expected: float, found: Any, key: str, tolerance: float) -> None:
        """The same for a number that another machine may compute with other last digits."""
        self.checked["numbers"] += 1
        if (
            isinstance(found, bool)
            or not isinstance(found, int | float)
            or not math.isclose(expected, found, rel_tol=tolerance, abs_tol=tolerance)
        ):
            self.problem(path, f"{key} is {_shown(found)}, the records give {_shown(expected)}")

    def result(self) -> dict[str, Any]:
        return {
            "run": str(self.root),
            "ok": not self.problems,
            "problems": [{"path": one.path, "line": one.line, "what": one.what} for one in self.problems],
            "checked": dict(self.checked),
            "not_checked": self.not_checked,
        }

    def _relative(self, path: object) -> str:
        text = str(path)
        prefix = f"{self.root}{os.sep}"
        return text.removeprefix(prefix)


ABSENT = object()


def differences(expected: Any, found: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """``(key, expected, found)`` of everything in which two JSON values differ; ``ABSENT`` where one has nothing."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for name in [*expected, *(name for name in found if name not in expected)]:
            at = f"{key}.{name}" if key else str(name)
            yield from differences(expected.get(name, ABSENT), found.get(name, ABSENT), at)
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from differences(one, other, f"{key}[{index}]")
    elif isinstance(expected, bool) != isinstance(found, bool) or expected != found:
        yield key, expected, found


def unsafe_entries(root: Path, skip: Iterable[str] = ()) -> list[str]:
    """Paths below ``root`` that are neither a regular file nor a folder: links, pipes, devices. ``skip``: top names."""
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        top = Path(folder) == root
        if top:
            folders[:] = [name for name in folders if name not in skip]
        for name in [*folders, *files]:
            if top and name in skip:
                continue
            path = os.path.join(folder, name)
            mode = os.lstat(path).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                found.append(os.path.relpath(path, root))
    return sorted(found)


def _plain(value: Any) -> Any:
    return orjson.loads(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY))


def _leaves(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(map(_leaves, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_leaves, value))
    return 1


def _shown(value: Any) -> str:
    if value is ABSENT:
        return "absent"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
