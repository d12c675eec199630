"""What is made once per process, also when several threads want it at the same time."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def once(make: Callable[P, T]) -> Callable[P, T]:
    """``functools.cache``, but whoever comes while something is being made waits for it instead of making it too."""
    cached, making = functools.cache(make), threading.RLock()

    @functools.wraps(make)
    def found(*args: P.args, **kwargs: P.kwargs) -> T:
        with making:
            return cached(*args, **kwargs)  # type: ignore[arg-type]

    return found
