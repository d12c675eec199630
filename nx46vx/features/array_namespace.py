"""NumPy or CuPy, chosen by the type of the array at hand."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np


def namespace(array: Any) -> Any:
    """The module that makes such arrays; CuPy is imported only when the array is already CuPy's."""
    if type(array).__module__.partition(".")[0] == "cupy":
        return importlib.import_module("cupy")
    return np
