"""NumPy and SciPy, or CuPy and its twin of SciPy, chosen by the type of the array at hand."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import scipy.ndimage


def namespace(array: Any) -> tuple[Any, Any]:
    """``(xp, ndimage)`` for an array; CuPy is imported only when the array is already CuPy's."""
    if type(array).__module__.partition(".")[0] == "cupy":
        return importlib.import_module("cupy"), importlib.import_module("cupyx.scipy.ndimage")
    return np, scipy.ndimage
