"""Packages that only benchmarks need: other people's solvers and trees that ours are compared with."""

from __future__ import annotations

from nx46vx.errors import UsageError


def need(what: str, *modules: str) -> None:
    """All modules can be imported; ``what`` they are, for people.

    Raises:
        UsageError: one is not installed.
    """
    try:
        for name in modules:
            __import__(name)
    except ImportError as error:
        raise UsageError(
            f"this benchmark compares with {what}", found=error, fix="pip install 'nx46vx[dev]'"
        ) from error
