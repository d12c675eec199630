"""The kernel's two functions, written for a number of features F and a processor.

Samples come in blocks of at most BLOCK that share a bootstrap weight. A block's design D (3F + 1, n) is built in the
first-level cache: x, its square and h, standardised, and ones. Then, GROUP lanes at a time, kernel_lanes adds what
the block contributes.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from nx46vx.model.candidates import TILE
from nx46vx.model.kernel_ir import BYTES, DOUBLES, F32, F64, FLOATS, I8, I32, I64, INTS, LONGS, Machine, Value, Writer
from nx46vx.model.kernel_lanes import Lanes
from nx46vx.model.kernel_layout import BLOCK, CONSTANTS, GROUP, NEGATIVE, ROW, SLOTS, STEP


def build(features: int, thresholds: int, machine: Machine) -> str:
    """LLVM assembly of ``train`` and ``validate`` for views of ``features`` features."""
    module = ir.Module("nx46vx")
    for train in (True, False):
        _Kernel(module, features, thresholds, machine, train).build()
    return str(module)


class _Kernel:
    """One of the two functions, and the inner functions it calls."""

    def __init__(self, module: Any, features: int, thresholds: int, machine: Machine, train: bool) -> None:
        self.module, self.f, self.thresholds, self.machine, self.train = module, features, thresholds, machine, train
        self.columns = 3 * features + 1
        self.name = "train" if train else "validate"
        self.rows = self.columns if train else thresholds  # accumulators of a lane, next to its loss

    def build(self) -> None:
        """``train|validate(features, stride, rows, constants, y, blocks, n_blocks, pieces, weights, cuts, lanes,
        scratch, out, counts)``: loss and gradient, or loss and counts, of one chunk for the first ``lanes`` lanes."""
        fill = self._fill()
        lanes_of = Lanes(self.module, self.f, self.thresholds, self.machine, self.train)
        groups = {size: lanes_of.write(size) for size in (GROUP, 1)}
        w = Writer(
            self.module, self.name,
            [FLOATS, I64, LONGS, FLOATS, BYTES, INTS, I64, INTS, FLOATS, FLOATS, I64, FLOATS, DOUBLES, INTS],
            self.machine, internal=False,
        )  # fmt: skip
        b = w.b
        (features, stride, rows, constants, y, blocks, n_blocks, pieces,
         weights, cuts, lanes, scratch, out, counts) = w.function.args  # fmt: skip
        errors = w.at(scratch, (self.columns + 1) * ROW)
        loss = w.at(errors, GROUP * BLOCK)
        sums = w.at(loss, TILE * SLOTS)
        per_lane = self.rows * SLOTS
        zero = w.real(0.0)
        for start, size in ((loss, SLOTS), (sums, per_lane)):
            total = b.mul(lanes, I64(size))
            w.loop(0, total, w.width, lambda i, start=start: w.store(zero, w.at(start, i)))

        def block(index: Value) -> None:
            first, last, count, weight = (
                b.sext(b.load(w.at(blocks, b.mul(index, I64(4)), item)), I64) for item in range(4)
            )

            def piece(number: Value, position: Value) -> list[Value]:
                start, length = (
                    b.sext(b.load(w.at(pieces, b.mul(number, I64(2)), item)), I64) for item in range(2)
                )  # fmt: skip
                b.call(fill, [features, stride, rows, constants, y, start, length, w.at(scratch, position)])
                return [b.add(position, length)]

            w.loop(first, last, 1, piece, [I64(0)])
            padded = b.and_(b.add(count, I64(STEP - 1)), I64(-STEP))

            def clear(row: Value) -> None:
                start = w.at(scratch, b.mul(row, I64(ROW)))
                w.loop(count, padded, w.width, lambda at: w.store(zero, w.at(start, at)))

            with b.if_then(b.icmp_signed("<", count, padded)):
                w.loop(0, self.columns + (not self.train), 1, clear)
            omega = b.sitofp(weight, F32)

            def advance(size: int) -> Any:
                def body(lane: Value) -> None:
                    b.call(groups[size], [
                        scratch, w.at(weights, lane), errors, w.at(loss, b.mul(lane, I64(SLOTS))),
                        w.at(sums, b.mul(lane, I64(per_lane))), cuts, omega, padded,
                    ])  # fmt: skip

                return body

            whole = b.mul(b.udiv(lanes, I64(GROUP)), I64(GROUP))
            w.loop_if_any(0, whole, GROUP, advance(GROUP))
            w.loop_if_any(whole, lanes, 1, advance(1))

        w.loop(0, n_blocks, 1, block)
        self._reduce(w, lanes, loss, sums, out, counts)
        w.finish()

    def _fill(self) -> Any:
        """``fill(features, stride, rows, constants, y, start, count, design)``: some samples' columns."""
        w = Writer(
            self.module, f"{self.name}_fill", [FLOATS, I64, LONGS, FLOATS, BYTES, I64, I64, FLOATS],
            self.machine, internal=True,
        )  # fmt: skip
        b, f = w.b, self.f
        features, stride, rows, constants, y, start, count, design = w.function.args
        whole = b.and_(count, I64(-w.width))

        def both(body: Any) -> None:
            """The body over all samples: by vectors, then one by one."""
            w.loop_if_any(0, whole, w.width, body)
            w.width = 1
            w.loop_if_any(whole, count, 1, body)
            w.width = self.machine.width

        def last_rows(at: Value) -> None:
            positive = b.zext(w.load(w.at(y, start, at), I8), w.of(I32))
            if self.train:
                sign = b.sub(w.whole(1), b.shl(positive, w.whole(1)))
                w.store(b.sitofp(sign, w.of(F32)), w.at(design, at, 3 * f * ROW))
            else:
                w.store(w.real(1.0), w.at(design, at, 3 * f * ROW))
                # NEGATIVE - positive (NEGATIVE - 1)
                less = b.mul(positive, w.whole(NEGATIVE - 1))
                mark = b.sub(w.whole(NEGATIVE), less)
                w.store(b.bitcast(mark, w.of(F32)), w.at(design, at, (3 * f + 1) * ROW))

        both(last_rows)

        def feature(index: Value) -> None:
            source, spatial = (
                w.at(features, b.mul(b.load(w.at(rows, index, offset)), stride), start) for offset in (0, f)
            )
            numbers = [b.load(w.at(constants, b.mul(index, I64(CONSTANTS)), item)) for item in range(CONSTANTS)]
            target = w.at(design, b.mul(index, I64(ROW)))

            def columns(at: Value) -> None:
                shift, inverse, square, square_shift, h_shift, h_inverse = (w.spread(number) for number in numbers)
                x = b.fmul(b.fsub(w.load(w.at(source, at)), shift), inverse)
                q = w.fma(b.fmul(x, x), square, square_shift)
                h = b.fmul(b.fsub(w.load(w.at(spatial, at)), h_shift), h_inverse)
                sign = w.load(w.at(design, at, 3 * f * ROW)) if self.train else None
                for third, value in enumerate((x, q, h)):
                    w.store(b.fmul(value, sign) if self.train else value, w.at(target, at, third * f * ROW))

            both(columns)

        w.loop(0, f, 1, feature)
        return w.finish()

    def _reduce(self, w: Writer, lanes: Value, loss: Value, sums: Value, out: Value, counts: Value) -> None:
        """Sums over the slots: ``out`` float64 [loss, gradient...][lane], ``counts`` int32 [threshold][class][lane]."""
        b = w.b

        def lane(index: Value) -> None:
            own = w.at(loss, b.mul(index, I64(SLOTS)))
            b.store(w.sum_slots(own, F32, F64, lambda x: b.fpext(x, F64)), w.at(out, index))

            def row(j: Value) -> None:
                own = w.at(sums, b.mul(b.add(b.mul(index, I64(self.rows)), j), I64(SLOTS)))
                if self.train:
                    total = w.sum_slots(own, F32, F64, lambda x: b.fpext(x, F64))
                    b.store(total, w.at(out, b.mul(b.add(j, I64(1)), I64(TILE)), index))
                    return
                whole = b.bitcast(own, INTS)
                for half in (0, 1):
                    take = (lambda x: b.lshr(x, I32(16))) if half else (lambda x: b.and_(x, I32(NEGATIVE - 1)))
                    place = b.mul(b.add(b.mul(j, I64(2)), I64(half)), I64(TILE))
                    b.store(w.sum_slots(whole, I32, I32, take), w.at(counts, place, index))

            w.loop(0, self.rows, 1, row)

        w.loop(0, lanes, 1, lane)
