"""The kernel's two functions, written for a number of features F and a processor.

Samples come in blocks of at most BLOCK that share a bootstrap weight. A block's design D (3F + 1, n) is built in the
first-level cache (kernel_fill). Then, GROUP lanes at a time, kernel_lanes adds what the block contributes.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from nx46vx.model.candidates import TILE
from nx46vx.model.kernel_fill import write_fetch, write_fill
from nx46vx.model.kernel_ir import (
    BYTES,
    DOUBLES,
    F32,
    F64,
    FLOATS,
    I32,
    I64,
    INTS,
    LONGS,
    Machine,
    Value,
    Writer,
    constant,
)
from nx46vx.model.kernel_lanes import Lanes
from nx46vx.model.kernel_layout import GROUP, JOB, NEGATIVE, ROW, SLOTS, STEP


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
        """``train|validate(features, stride, y, number, jobs, n_jobs, cuts, scratch)``: some jobs' sums over chunk
        ``number``. A job is a row of JOB integers, see ``kernel_layout``."""
        inner = self._tile()
        w = Writer(
            self.module, self.name, [FLOATS, I64, BYTES, I64, LONGS, I64, FLOATS, FLOATS], self.machine, internal=False
        )
        b = w.b
        features, stride, y, number, jobs, n_jobs, cuts, scratch = w.function.args

        def job(index: Value) -> None:
            words = [b.load(w.at(jobs, b.mul(index, I64(len(JOB))), item)) for item in range(len(JOB))]
            of = dict(zip(JOB, words, strict=True))
            bounds = b.inttoptr(of["bounds"], LONGS)
            first, last = (b.load(w.at(bounds, number, item)) for item in (0, 1))
            with b.if_then(b.icmp_signed("<", first, last)):
                out = w.at(b.inttoptr(of["out"], DOUBLES), b.mul(number, of["out_step"]))
                counts = w.at(b.inttoptr(of["counts"], INTS), b.mul(number, of["counts_step"]))
                blocks = w.at(b.inttoptr(of["blocks"], INTS), b.mul(first, I64(4)))
                rows, constants, pieces, weights = (
                    b.inttoptr(of[name], kind)
                    for name, kind in (("rows", LONGS), ("constants", FLOATS), ("pieces", INTS), ("weights", FLOATS))
                )
                b.call(inner, [
                    features, stride, rows, constants, y, blocks, b.sub(last, first), pieces, weights, cuts,
                    of["lanes"], scratch, out, counts,
                ])  # fmt: skip

        w.loop(0, n_jobs, 1, job)
        w.finish()

    def _tile(self) -> Any:
        """``tile(features, stride, rows, constants, y, blocks, n_blocks, pieces, weights, cuts, lanes, scratch, out,
        counts)``: loss and gradient, or loss and counts, of one chunk for the first ``lanes`` lanes."""
        fill = write_fill(self.module, f"{self.name}_fill", self.f, self.machine, self.train)
        fetch = write_fetch(self.module, f"{self.name}_fetch", self.f, self.machine)
        lanes_of = Lanes(self.module, self.f, self.thresholds, self.machine, self.train)
        groups = {size: lanes_of.write(size) for size in (GROUP, 1)}
        w = Writer(
            self.module, f"{self.name}_tile",
            [FLOATS, I64, LONGS, FLOATS, BYTES, INTS, I64, INTS, FLOATS, FLOATS, I64, FLOATS, DOUBLES, INTS],
            self.machine, internal=True,
        )  # fmt: skip
        b = w.b
        (features, stride, rows, constants, y, blocks, n_blocks, pieces,
         weights, cuts, lanes, scratch, out, counts) = w.function.args  # fmt: skip
        errors = w.at(scratch, (self.columns + 1) * ROW)
        loss = w.at(errors, GROUP * ROW)
        sums = w.at(loss, TILE * SLOTS)
        per_lane = self.rows * SLOTS
        zero = w.real(0.0)
        for start, size in ((loss, SLOTS), (sums, per_lane)):
            total = b.mul(lanes, I64(size))
            w.loop(0, total, w.width, lambda i, start=start: w.store(zero, w.at(start, i)))

        def block(index: Value) -> None:
            first, last, count, weight = w.integers(blocks, index, 4)

            def piece(number: Value, position: Value) -> list[Value]:
                start, length = w.integers(pieces, number, 2)
                b.call(fill, [features, stride, rows, constants, y, start, length, w.at(scratch, position)])
                return [b.add(position, length)]

            w.loop(first, last, 1, piece, [I64(0)])
            following = b.add(index, I64(1))
            with b.if_then(b.icmp_signed("<", following, n_blocks)):
                begin, end, *_ = w.integers(blocks, following, 4)

                def ahead(number: Value) -> None:
                    b.call(fetch, [features, stride, rows, *w.integers(pieces, number, 2)])

                w.loop(begin, end, 1, ahead)
            padded = b.and_(b.add(count, I64(STEP - 1)), I64(-STEP))

            def clear(row: Value) -> None:
                start = w.at(scratch, b.mul(row, I64(ROW)))
                w.loop(count, padded, w.width, lambda at: w.store(zero, w.at(start, at)))

            with b.if_then(b.icmp_signed("<", count, padded)):
                w.loop(0, self.columns + 1, 1, clear)
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
        return w.finish()

    def _reduce(self, w: Writer, lanes: Value, loss: Value, sums: Value, out: Value, counts: Value) -> None:
        """Sums over the slots: ``out`` float64 [loss, gradient...][lane], ``counts`` int32 [threshold][class][lane]."""
        b = w.b
        sixteen, low = constant(I32, 16, SLOTS), constant(I32, NEGATIVE - 1, SLOTS)

        def float64_sum(pointer: Value) -> Value:
            return w.sum_slots(b.fpext(w.load_slots(pointer), ir.VectorType(F64, SLOTS)))

        def lane(index: Value) -> None:
            b.store(float64_sum(w.at(loss, b.mul(index, I64(SLOTS)))), w.at(out, index))

            def row(j: Value) -> None:
                own = w.at(sums, b.mul(b.add(b.mul(index, I64(self.rows)), j), I64(SLOTS)))
                if self.train:
                    b.store(float64_sum(own), w.at(out, b.mul(b.add(j, I64(1)), I64(TILE)), index))
                    return
                marks = w.load_slots(own, I32)
                for half, part in enumerate((b.and_(marks, low), b.lshr(marks, sixteen))):
                    place = b.mul(b.add(b.mul(j, I64(2)), I64(half)), I64(TILE))
                    b.store(w.sum_slots(part), w.at(counts, place, index))

            w.loop(0, self.rows, 1, row)

        w.loop(0, lanes, 1, lane)
