"""How the kernel gets its samples: a block's design is built in the first-level cache, the next block's is fetched.

A design holds, row by row (ROW floats each): x, its square and h, standardised; then a row of bits, of which the sign
is set where a sample is positive (training) or that is the sample's mark (validation); then a row whose bits are all
set where there is a sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from nx46vx.model.kernel_ir import BYTES, F32, FLOATS, I8, I32, I64, LONGS, Machine, Value, Writer
from nx46vx.model.kernel_layout import CONSTANTS, LINE, NEGATIVE, ROW

#: Vectors that are computed, and cache lines that are asked for, in one go.
_TOGETHER = 4


def write_fill(module: Any, name: str, f: int, machine: Machine, train: bool) -> Any:
    """``fill(features, stride, rows, constants, y, start, count, design)``: some samples' columns."""
    w = Writer(module, name, [FLOATS, I64, LONGS, FLOATS, BYTES, I64, I64, FLOATS], machine, internal=True)
    b = w.b
    features, stride, rows, constants, y, start, count, design = w.function.args
    whole = b.and_(count, I64(-w.width))

    def both(body: Callable[[Value], None]) -> None:
        """The body over all samples: by vectors, some at a time as long as that goes, then one by one."""
        many = b.and_(count, I64(-w.width * _TOGETHER))

        def some(at: Value) -> None:
            for vector in range(_TOGETHER):
                body(b.add(at, I64(vector * w.width)))

        w.loop_if_any(0, many, _TOGETHER * w.width, some)
        w.loop_if_any(many, whole, w.width, body)
        w.width = 1
        w.loop_if_any(whole, count, 1, body)
        w.width = machine.width

    def last_rows(at: Value) -> None:
        positive = b.zext(w.load(w.at(y, start, at), I8), w.of(I32))
        if train:
            mark = b.shl(positive, w.whole(31))
        else:  # NEGATIVE - positive (NEGATIVE - 1)
            mark = b.sub(w.whole(NEGATIVE), b.mul(positive, w.whole(NEGATIVE - 1)))
        for row, bits in ((3 * f, mark), (3 * f + 1, w.whole(-1))):
            w.store(b.bitcast(bits, w.of(F32)), w.at(design, at, row * ROW))

    both(last_rows)

    def feature(index: Value) -> None:
        source, spatial = (w.at(features, b.mul(b.load(w.at(rows, index, offset)), stride), start) for offset in (0, f))
        numbers = [b.load(w.at(constants, b.mul(index, I64(CONSTANTS)), item)) for item in range(CONSTANTS)]
        target = w.at(design, b.mul(index, I64(ROW)))

        def columns(at: Value) -> None:
            shift, inverse, square, square_shift, h_shift, h_inverse = (w.spread(number) for number in numbers)
            x = b.fmul(b.fsub(w.load(w.at(source, at)), shift), inverse)
            q = w.fma(b.fmul(x, x), square, square_shift)
            h = b.fmul(b.fsub(w.load(w.at(spatial, at)), h_shift), h_inverse)
            for third, value in enumerate((x, q, h)):
                w.store(value, w.at(target, at, third * f * ROW))

        both(columns)

    w.loop(0, f, 1, feature)
    return w.finish()


def write_fetch(module: Any, name: str, f: int, machine: Machine) -> Any:
    """``fetch(features, stride, rows, start, count)``: asks for some samples' features ahead of their use."""
    w = Writer(module, name, [FLOATS, I64, LONGS, I64, I64], machine, internal=True)
    b = w.b
    features, stride, rows, start, count = w.function.args
    kind = ir.FunctionType(ir.VoidType(), [FLOATS, I32, I32, I32])
    prefetch = module.globals.get("llvm.prefetch.p0") or ir.Function(module, kind, "llvm.prefetch.p0")

    def feature(index: Value) -> None:
        source = w.at(features, b.mul(b.load(w.at(rows, index)), stride), start)

        def lines(at: Value) -> None:
            for line in range(_TOGETHER):  # those past the end do no harm
                b.call(prefetch, [w.at(source, at, line * LINE), I32(0), I32(3), I32(1)])

        w.loop(0, count, _TOGETHER * LINE, lines)

    w.loop(0, 2 * f, 1, feature)
    return w.finish()
