"""The kernels of the features: weighted sums along an axis, arithmetic voxel by voxel, features, quadratic forms.

Strides and offsets are in bytes. Rows are at least one vector long. See ``jit`` for how kernels are called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nx46vx.features.jit import Kernel, host
from nx46vx.features.once import once
from nx46vx.features.smoothing import GROUP
from nx46vx.features.trace import F32, F64, I64, Code, Traced, Value

_TOGETHER = 4  # vectors that are summed side by side: additions wait for each other otherwise


@once
def weighted_sum(double: bool) -> Kernel:
    """Slices of rows of out[i] = sum over k of weights[|k|] source[i + k step], added as in ``smoothing``.

    Addresses: source (where the first value's centre lies), weights (from the centre outwards), out. Numbers: step,
    radius, slices, rows, length of a row; slice to slice and row to row in the source, and in out.
    """
    kind, size = (F64, 8) if double else (F32, 4)
    code = Code("weighted_sum", host().width // 2 if double else host().width)
    b, width = code.b, code.width
    source, weights, out = (code.address(place) for place in range(3))
    step, radius, slices, rows, length = (code.number(place) for place in range(5))
    source_slice, source_row, out_slice, out_row = (code.number(place) for place in range(5, 9))

    def some(part: Value, row: Value, start: Value, vectors: int) -> None:
        at = code.add(source, b.mul(part, source_slice), b.mul(row, source_row), b.mul(start, I64(size)))
        apart = [number * width * size for number in range(vectors)]

        def group(tap: Value) -> list[Traced]:
            """The sum of three weighted pairs for each vector, from ``tap`` inwards."""
            found: list[Any] = [None] * vectors
            for inwards in range(GROUP):
                here = b.sub(tap, I64(inwards))
                weight = code.spread(code.load_one(code.add(weights, b.mul(here, I64(size))), kind))
                away = b.mul(here, step)
                for number, offset in enumerate(apart):
                    low = code.load(code.add(b.sub(at, away), offset), kind)
                    high = code.load(code.add(at, away, offset), kind)
                    pair = (low + high) * weight
                    found[number] = pair if found[number] is None else found[number] + pair
            return found

        def more(tap: Value, *totals: Value) -> list[Value]:
            inner = b.sub(radius, tap)
            return [(Traced(code, total) + part).value for total, part in zip(totals, group(inner), strict=True)]

        begin = [part.value for part in group(radius)]
        totals = code.loop(GROUP, radius, GROUP, more, begin)
        centre = code.spread(code.load_one(weights, kind))
        into = code.add(out, b.mul(part, out_slice), b.mul(row, out_row), b.mul(start, I64(size)))
        for total, offset in zip(totals, apart, strict=True):
            code.store(Traced(code, total) + code.load(code.add(at, offset), kind) * centre, code.add(into, offset))

    many = _TOGETHER * width
    whole = b.mul(b.sdiv(length, I64(many)), I64(many))

    def each(part: Value, row: Value) -> None:
        code.loop(0, whole, many, lambda start: some(part, row, start, _TOGETHER))
        code.vectors(whole, length, lambda start: some(part, row, start, 1))

    code.loop(0, slices, 1, lambda part: code.loop(0, rows, 1, lambda row: each(part, row)) and None)
    return Kernel(code.finish(), code.name, host())


def by_voxel(
    name: str, function: Callable[..., Sequence[Traced] | Traced], inputs: Sequence[Any], outputs: Sequence[Any],
    scalars: int = 0,
) -> Kernel:  # fmt: skip
    """``function`` of the values of arrays, voxel by voxel: (scalars float32..., inputs...) to outputs.

    Addresses: the arrays', inputs first. Numbers: slices, rows, length of a row, then for each array slice to slice and
    row to row. No output may lie where an input does.
    """
    code = Code(name, host().width)
    b, kinds = code.b, [*inputs, *outputs]
    slices, rows, length = (code.number(place) for place in range(3))
    given = [code.scalar(place, F32) for place in range(scalars)]
    bases = [code.address(place) for place in range(len(kinds))]
    strides = [(code.number(3 + 2 * place), code.number(4 + 2 * place)) for place in range(len(kinds))]

    def each(part: Value, row: Value) -> None:
        lines = [
            code.add(base, b.mul(part, slice_), b.mul(row, line))
            for base, (slice_, line) in zip(bases, strides, strict=True)
        ]

        def some(start: Value) -> None:
            places = [code.add(line, b.mul(start, I64(_size(kind)))) for line, kind in zip(lines, kinds, strict=True)]
            values = [code.load(place, kind) for place, kind in zip(places, inputs, strict=False)]
            found = function(*given, *values)
            for value, place in zip(found if isinstance(found, list | tuple) else [found], places[len(inputs) :],
                                    strict=True):  # fmt: skip
                code.store(value, place)

        code.vectors(0, length, some)

    code.loop(0, slices, 1, lambda part: code.loop(0, rows, 1, lambda row: each(part, row)) and None)
    return Kernel(code.finish(), name, host())


@once
def product() -> Kernel:
    return by_voxel("product", lambda a, b: a * b, [F32, F32], [F32])


@once
def half_difference() -> Kernel:
    return by_voxel("half_difference", lambda ahead, behind: np.float32(0.5) * (ahead - behind), [F32, F32], [F32])


@once
def rounded() -> Kernel:
    return by_voxel("rounded", lambda wide: wide.astype(np.float32), [F64], [F32])


@once
def laplacian(factor: float) -> Kernel:
    """As in ``fields``: the centre, then what lies ahead and behind along z, y and x."""

    def at(c: Any, az: Any, bz: Any, ay: Any, by: Any, ax: Any, bx: Any) -> Any:
        return ((-6.0 * c + (az + bz) + (ay + by) + (ax + bx)) * factor).astype(np.float32)

    return by_voxel("laplacian", at, [F64] * 7, [F32])


@once
def slope() -> Kernel:
    """Gradient magnitude from what lies ahead and behind along z, y and x."""

    def at(az: Any, bz: Any, ay: Any, by: Any, ax: Any, bx: Any) -> Any:
        dz, dy, dx = (np.float32(0.5) * (a - b) for a, b in ((az, bz), (ay, by), (ax, bx)))
        return np.sqrt(dz * dz + dy * dy + dx * dx)

    return by_voxel("slope", at, [F32] * 6, [F32])


@once
def quadratic(features: int) -> Kernel:
    """See ``Backend.quadratic``. Addresses: here, before, after (each where the first voxel lies), out. Numbers: rows,
    length of a row, row to row, feature to feature (of planes and alike), row to row of out. Scalars: the constant,
    then shift, a, b, c of each feature."""
    code = Code("quadratic", host().width)
    b = code.b
    here, before, after, out = (code.address(place) for place in range(4))
    rows, length, row_step, feature_step, out_step = (code.number(place) for place in range(5))

    def each(row: Value) -> None:
        def some(start: Value) -> None:
            shared = code.add(b.mul(row, row_step), b.mul(start, I64(4)))
            total = code.scalar(0, F32)
            for feature in range(features):
                offset = code.add(shared, code.mul(feature_step, feature))
                at = code.add(here, offset)
                along_z = code.load(code.add(after, offset)) - code.load(code.add(before, offset))
                along_y = code.load(code.add(at, row_step)) - code.load(b.sub(at, row_step))
                along_x = code.load(code.add(at, 4)) - code.load(code.add(at, -4))
                dz, dy, dx = (np.float32(0.5) * part for part in (along_z, along_y, along_x))
                g = np.sqrt(dz * dz + dy * dy + dx * dx)
                shift, first, second, third = (code.scalar(1 + 4 * feature + place, F32) for place in range(4))
                s = code.load(at) - shift
                total = total + ((first * s + second) * s + third * g)
            code.store(total, code.add(out, b.mul(row, out_step), b.mul(start, I64(4))))

        code.vectors(0, length, some)

    code.loop(0, rows, 1, each)
    return Kernel(code.finish(), code.name, host())


def _size(kind: Any) -> int:
    return 8 if kind == F64 else 4


def address_of(array: np.ndarray) -> int:
    """Where an array's first value lies."""
    return int(array.__array_interface__["data"][0])


def run(kernel: Kernel, arrays: Sequence[np.ndarray], shape: tuple[int, ...]) -> None:
    """A kernel by voxel on arrays that are at least of some shape (slices, rows, length)."""
    steps = [step for array in arrays for step in array.strides[:2]]
    kernel([address_of(array) for array in arrays], [*shape, *steps])


def run_sums(kernel: Kernel, source: np.ndarray, step: int, weights: np.ndarray, out: np.ndarray) -> None:
    """Weighted sums into all of ``out`` (slices, rows, length); ``source`` begins at the first centre."""
    arrays = [source, weights, out]
    kernel(
        [address_of(array) for array in arrays],
        [step, len(weights) - 1, *out.shape, *source.strides[:2], *out.strides[:2]],
    )
