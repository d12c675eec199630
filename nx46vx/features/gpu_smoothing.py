"""Gaussian smoothing on a GPU, one kernel for each pass: ``smoothing.smooth`` with the same order of operations.

Array by array each weighted pair would go to memory and back, ten times the traffic. Products and sums are rounded one
by one (``__fadd_rn`` and alike are never contracted), so the bits are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nx46vx.features.smoothing import GROUP, Window, half_kernel, smooth

#: Threads of a block, and columns beside each other that are walked together along the axis: the values that one
#: output needs are those of the outputs before it, still in a cache.
_THREADS, _COLUMNS = 256, 64
_MOST = 2**31 - 1  # voxels that its indices can count
_NAMES = {"float32": ("float", "f"), "float64": ("double", "d")}

#: An array seen as (outer, length, inner) is smoothed along its middle axis, at ``size`` places from ``start`` on.
_SOURCE = """
#define AT(place) (FROM)x[(long long)inner * mirrored((place), length)]

__device__ static int mirrored(int place, int length)
{
    if (place >= 0 && place < length)
        return place;
    place %= 2 * length;
    if (place < 0)
        place += 2 * length;
    return place < length ? place : 2 * length - 1 - place;
}

extern "C" __global__ void along(
    const FROM* in, const NUMBER* weights, NUMBER* out,
    int reach, int length, int size, int start, int inner, int outer, int columns)
{
    unsigned int rest = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned int chunks = (inner + columns - 1) / columns;
    int column = rest % columns;
    rest /= columns;
    int place = rest % size;
    rest /= size;
    column += (rest % chunks) * columns;
    int slab = rest / chunks;
    if (column >= inner || slab >= outer)
        return;
    const FROM* x = in + ((long long)slab * length * inner + column);
    int centre = start + place;
    NUMBER total = 0, group = 0;
    for (int first = reach; first > 0; first -= GROUP) {
        for (int tap = first; tap > first - GROUP; tap--) {
            NUMBER pair = MUL(ADD((NUMBER)AT(centre - tap), (NUMBER)AT(centre + tap)), weights[tap]);
            group = tap == first ? pair : ADD(group, pair);
        }
        total = first == reach ? group : ADD(total, group);
    }
    out[((long long)slab * size + place) * inner + column] = ADD(total, MUL(weights[0], (NUMBER)AT(centre)));
}
"""


def source(taken: Any, number: Any) -> str:
    """The kernel for arrays of kind ``taken``, whose sums are of kind ``number``: CUDA C."""
    (kind, _), (sums, letter) = _NAMES[np.dtype(taken).name], _NAMES[np.dtype(number).name]
    names = {"FROM": kind, "NUMBER": sums, "GROUP": GROUP, "ADD": f"__{letter}add_rn", "MUL": f"__{letter}mul_rn"}
    return "".join(f"#define {name} {meaning}\n" for name, meaning in names.items()) + _SOURCE


class FusedSmoothing:
    """``smoothing.smooth`` for CuPy's arrays."""

    def __init__(self, cupy: Any) -> None:
        self._cupy, self._kernels = cupy, {}  # type: Any, dict[tuple[str, str], Any]

    def __call__(self, array: Any, sigma: int, window: Window, dtype: Any) -> Any:
        weights = half_kernel(sigma, dtype)
        if array.size + 2 * _COLUMNS * max(array.shape) ** 2 > _MOST:
            return smooth(array, sigma, window, dtype)
        there = self._cupy.asarray(weights)
        for axis in range(3):
            array = self._along(array, there, len(weights) - 1, axis, window[axis])
        return array

    def _along(self, array: Any, weights: Any, reach: int, axis: int, part: slice) -> Any:
        array = self._cupy.ascontiguousarray(array)
        shape = list(array.shape)
        outer, length, inner = int(np.prod(shape[:axis])), shape[axis], int(np.prod(shape[axis + 1 :]))
        size = shape[axis] = part.stop - part.start
        out = self._cupy.empty(shape, weights.dtype)
        columns = min(inner, _COLUMNS)
        threads = outer * -(-inner // columns) * size * columns
        numbers = (reach, length, size, part.start, inner, outer, columns)
        self._kernel(array.dtype, weights.dtype)(
            (-(-threads // _THREADS),), (_THREADS,), (array, weights, out, *map(np.int32, numbers))
        )
        return out

    def _kernel(self, taken: Any, number: Any) -> Any:
        key = np.dtype(taken).name, np.dtype(number).name
        if key not in self._kernels:
            self._kernels[key] = self._cupy.RawKernel(source(taken, number), "along", options=("--fmad=false",))
        return self._kernels[key]
