"""The features' pointwise part as one kernel: the arithmetic of ``extractors``, traced at neighbouring voxels.

Two views of a region's fields like those in ``views``: along a line, or at single voxels. A field's values lie at an
address; steps to neighbours are strides, so fields hold as many voxels around the core as are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]

from nx46vx.features.extractors import evaluate
from nx46vx.features.jit import Kernel, host
from nx46vx.features.once import once
from nx46vx.features.pool import spec_of
from nx46vx.features.smoothing import Window
from nx46vx.features.trace import F32, F64, I32, I64, Code, Traced, Value

#: How far beside a voxel the features look at a smoothed volume, in voxels: four along the normal, and interpolate.
REACH = 5


class Field(NamedTuple):
    """A field of a region: ``gauss`` with its scale, ``log`` with its scale, ``tensor`` with rho and component."""

    kind: str
    scale: int
    part: int = 0

    @property
    def layout(self) -> tuple[str, int]:
        """Fields of one layout have the same strides."""
        return ("gauss", self.scale) if self.kind == "gauss" else ("core", 0)


@dataclass(frozen=True)
class Voxels:
    """Addresses: of each field at the first voxel, in order; out; for ``points`` the places z, y, x from there (int64).

    Numbers: lines (1 for points), voxels, feature to feature and line to line in out, then plane to plane and line to
    line of each layout, in order. Scalars: the direction.
    """

    kernel: Kernel
    fields: tuple[Field, ...]
    layouts: tuple[tuple[str, int], ...]


@once
def voxels(names: tuple[str, ...], sign_skew: int, points: bool) -> Voxels:
    """The kernel of some features, in their order, for volumes with that sign."""
    empty = _write(names, sign_skew, points, (), ())[1]
    fields = tuple(empty)
    layouts = tuple(dict.fromkeys(field.layout for field in fields))
    code, _ = _write(names, sign_skew, points, fields, layouts)
    return Voxels(Kernel(code.finish(), code.name, host()), fields, layouts)


def _write(
    names: tuple[str, ...], sign_skew: int, points: bool, fields: tuple[Field, ...],
    layouts: tuple[tuple[str, int], ...],
) -> tuple[Code, dict[Field, None]]:  # fmt: skip
    """The code, and the fields that it needs; as long as they are not known, the code means nothing."""
    code = Code("voxels", host().width)
    b, seen = code.b, _Fields()
    specs = [spec_of(name) for name in names]
    count = len(fields)
    out, lines, length = code.address(count), code.number(0), code.number(1)
    feature_step, line_step = code.number(2), code.number(3)
    strides = {layout: (code.number(4 + 2 * k), code.number(5 + 2 * k)) for k, layout in enumerate(layouts)}
    bases = {field: code.address(place) for place, field in enumerate(fields)}
    places = [code.address(count + 1 + axis) for axis in range(3)] if points else []
    direction = [code.scalar(axis, F64) for axis in range(3)]
    reference = SimpleNamespace(direction=direction, sign_skew=sign_skew)

    def line(number: Value) -> None:
        def some(start: Value) -> None:
            view: _Line | _Points
            if points:
                view = _Points(code, bases, strides, start, places)
            else:
                view = _Line(code, bases, strides, start, number)
            for feature, value in enumerate(evaluate(specs, seen, view, reference)):
                row = code.add(out, code.mul(feature_step, feature), b.mul(number, line_step))
                code.store(value, code.add(row, b.mul(start, I64(4))))

        code.vectors(0, length, some)

    code.loop(0, lines, 1, line)
    return code, seen.wanted


class _Fields:
    """Hands out the names of fields instead of fields, and remembers them."""

    core: Any = None

    def __init__(self) -> None:
        self.wanted: dict[Field, None] = {}

    def gauss(self, sigma: int) -> Field:
        return self._want(Field("gauss", sigma))

    def log(self, sigma: int) -> Field:
        return self._want(Field("log", sigma))

    def tensor(self, rho: int) -> tuple[Field, ...]:
        return tuple(self._want(Field("tensor", rho, part)) for part in range(6))

    def _want(self, field: Field) -> Field:
        self.wanted[field] = None
        return field


class _View:
    """What both views share. ``strides`` of a layout: bytes from plane to plane and from line to line."""

    def __init__(
        self, code: Code, bases: dict[Field, Value], strides: dict[tuple[str, int], tuple[Value, Value]], start: Value
    ) -> None:
        self._code, self._bases, self._strides, self._start = code, bases, strides, start

    def inside(self, core: Window) -> Any:
        return self

    def steps(self, field: Field) -> tuple[Value, Value, Value]:
        """Bytes from a voxel to its neighbours along z, y and x."""
        plane, line = self._strides.get(field.layout, (I64(0), I64(0)))
        return plane, line, I64(4)

    def base(self, field: Field) -> Value:
        return self._bases.get(field, I64(0))

    def displaced(self, field: Field, offset: tuple[Any, Any, Any]) -> Traced:
        """As ``views``: trilinear, along x first."""
        code, b = self._code, self._code.b
        whole = [np.floor(part) for part in offset]
        weights = [part - floor for part, floor in zip(offset, whole, strict=True)]
        steps = self.steps(field)
        near: Value = None
        for floor, step in zip(whole, steps, strict=True):
            moved = b.mul(b.fptosi(floor.value, code.vector(I32)), code.spread(b.trunc(step, I32)).value)
            near = moved if near is None else b.add(near, moved)
        origins = [
            code.add(address, b.sext(b.extract_element(near, I32(lane)), I64))
            for lane, address in enumerate(self.addresses(field))
        ]

        def along_x(*further: Value) -> Traced:
            low, high = self._pairs([code.add(origin, *further) for origin in origins])
            return low + (high - low) * weights[2]

        def along_yx(*further: Value) -> Traced:
            low, high = along_x(*further), along_x(*further, steps[1])
            return low + (high - low) * weights[1]

        low, high = along_yx(), along_yx(steps[0])
        return low + (high - low) * weights[0]

    def addresses(self, field: Field) -> list[Value]:
        """Where the field's value of each voxel lies."""
        raise NotImplementedError

    def _pairs(self, addresses: list[Value]) -> tuple[Traced, Traced]:
        """The values at some addresses and at those right after, each two read at once."""
        code, b = self._code, self._code.b
        both: Value = ir.Constant(code.vector(I64), ir.Undefined)
        for lane, address in enumerate(addresses):
            both = b.insert_element(both, code.load_one(address, I64), I32(lane))
        shift = ir.Constant(code.vector(I64), [32] * code.width)
        parts = [b.trunc(half, code.vector(I32)) for half in (both, b.lshr(both, shift))]
        low, high = (Traced(code, b.bitcast(part, code.vector(F32))) for part in parts)
        return low, high


class _Line(_View):
    """Neighbours along x."""

    def __init__(self, code: Code, bases: Any, strides: Any, start: Value, line: Value) -> None:
        super().__init__(code, bases, strides, start)
        self._line = line

    def at(self, field: Field) -> Traced:
        return self._code.load(self._first(field))

    def beside(self, field: Field, axis: int, step: int) -> Traced:
        return self._code.load(self._code.add(self._first(field), self._code.mul(self.steps(field)[axis], step)))

    def addresses(self, field: Field) -> list[Value]:
        first = self._first(field)
        return [self._code.add(first, 4 * lane) for lane in range(self._code.width)]

    def _first(self, field: Field) -> Value:
        b = self._code.b
        return self._code.add(
            self.base(field), b.mul(self._line, self.steps(field)[1]), b.mul(self._start, I64(4))
        )  # fmt: skip


class _Points(_View):
    """Voxels whose places z, y, x (int64, from the first voxel) lie at three addresses."""

    def __init__(self, code: Code, bases: Any, strides: Any, start: Value, places: list[Value]) -> None:
        super().__init__(code, bases, strides, start)
        self._places = [
            [code.load_one(code.add(place, code.b.mul(start, I64(8)), 8 * lane), I64) for place in places]
            for lane in range(code.width)
        ]
        self._offsets: dict[tuple[str, int], list[Value]] = {}

    def at(self, field: Field) -> Traced:
        return self._gathered(self.addresses(field))

    def beside(self, field: Field, axis: int, step: int) -> Traced:
        further = self._code.mul(self.steps(field)[axis], step)
        return self._gathered([self._code.add(address, further) for address in self.addresses(field)])

    def addresses(self, field: Field) -> list[Value]:
        b, layout = self._code.b, field.layout
        if layout not in self._offsets:
            steps = self.steps(field)
            self._offsets[layout] = [
                self._code.add(*(b.mul(place, step) for place, step in zip(lane, steps, strict=True)))
                for lane in self._places
            ]
        return [b.add(self.base(field), offset) for offset in self._offsets[layout]]

    def _gathered(self, addresses: list[Value]) -> Traced:
        code, b = self._code, self._code.b
        found: Value = ir.Constant(code.vector(F32), ir.Undefined)
        for lane, address in enumerate(addresses):
            found = b.insert_element(found, code.load_one(address, F32), I32(lane))
        return Traced(code, found)
