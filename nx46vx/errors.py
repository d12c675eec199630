"""The error tree and the exit code each error ends the program with.

::

    NX46Error                 1   internal error
    ├── UsageError            2   the command or its configuration
    ├── StoppedError          3   stopped by budget or signal, resumable
    ├── DataError             4   the dataset
    ├── IntegrityError        5   something on disk is not what it says it is
    │   └── IncompatibleError 5   a run that this configuration cannot continue
    ├── LockedError           6   another run holds the directory
    └── EnvironmentFault      7   disk full, no permission, missing device

Every message says what is wrong, where, what was found, and how to mend it.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

EXIT_DONE = 0
EXIT_INTERRUPTED_TWICE = 130


class NX46Error(Exception):
    """Base of all errors raised on purpose. ``exit_code`` is what the command line returns."""

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, found: object = None, fix: str | None = None) -> None:
        self.what, self.where, self.found, self.fix = what, where, found, fix
        parts = [what.rstrip(".") + "."]
        if where is not None:
            parts.append(f"Where: {where}.")
        if found is not None:
            parts.append(f"Found: {found}.")
        if fix:
            parts.append(f"Fix: {fix.rstrip('.')}.")
        super().__init__(" ".join(parts))

    def __reduce__(self) -> tuple[Any, ...]:  # keyword-only arguments have to survive the trip between processes
        return _rebuild, (type(self), self.what, self.where, self.found, self.fix)


def _rebuild(kind: type[NX46Error], what: str, where: object, found: object, fix: str | None) -> NX46Error:
    return kind(what, where=where, found=found, fix=fix)


class UsageError(NX46Error):
    """The command line or the configuration asks for something impossible."""

    exit_code = 2


class StoppedError(NX46Error):
    """Stopped by the time budget or by a signal; the run directory can be resumed."""

    exit_code = 3


class DataError(NX46Error):
    """The dataset cannot be used as it is."""

    exit_code = 4


class IntegrityError(NX46Error):
    """A file of the run is damaged or was tampered with."""

    exit_code = 5


class IncompatibleError(IntegrityError):
    """The run directory was made by a configuration that differs from this one."""


class LockedError(NX46Error):
    """Another live process holds this directory."""

    exit_code = 6


class EnvironmentFault(NX46Error):
    """The machine refuses: disk full, no permission, missing device."""

    exit_code = 7


def failure_fields(error: NX46Error) -> dict[str, str | None]:
    """An error as plain fields, to cross from one process to another."""
    return {
        "kind": type(error).__name__,
        "what": error.what,
        **{name: None if (value := getattr(error, name)) is None else str(value) for name in ("where", "found", "fix")},
    }


def failure_from(fields: Mapping[str, str | None]) -> NX46Error:
    """The error that ``failure_fields`` described."""
    kinds = [NX46Error]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
    kind = next((kind for kind in kinds if kind.__name__ == fields.get("kind")), NX46Error)
    return kind(str(fields["what"]), where=fields.get("where"), found=fields.get("found"), fix=fields.get("fix"))


_ADVICE = {
    errno.ENOSPC: "free some space there, or choose another place",
    errno.EDQUOT: "free some of your quota there, or choose another place",
    errno.EACCES: "give yourself the right to write there, or choose another place",
    errno.EPERM: "give yourself the right to write there, or choose another place",
    errno.EROFS: "choose a place that can be written to",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.EIO: "the device reports a failure; choose another place",
}


def in_words(error: Exception, most: int | None = None) -> str:
    """An error's kind and the first line of what it says, at most so many characters: libraries have many kinds, and
    say much."""
    said = (str(error).strip().splitlines() or [""])[0][:most]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def from_os_error(error: OSError, doing: str, where: object = None) -> EnvironmentFault:
    """Name an operating system failure: what was being done, where, and what to do about it."""
    return EnvironmentFault(
        f"{doing} failed",
        where=where if where is not None else (error.filename or "unknown file"),
        found=error.strerror or str(error),
        fix=_ADVICE.get(error.errno or 0, "see the message above"),
    )
