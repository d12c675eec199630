"""The kernel's inner functions: logits, errors, gradient and counts of one block of samples, for some lanes.

Samples run along the vectors and each lane has registers of its own, so its arithmetic is the same wherever it stands.

Training multiplies the design of a positive sample by -1: with t the logit so turned, the cross-entropy is
log(1 + exp(t)) and its derivative sigmoid(t), whatever the label. Logits are in units of log 2. The logarithms of
1 + 2^-|t| are taken once for the product over a block's samples of one slot (at most 2^(BLOCK / SLOTS)).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from nx46vx.model.candidates import TILE
from nx46vx.model.kernel_ir import F32, FLOATS, I32, I64, Machine, Value, Writer
from nx46vx.model.kernel_layout import BLOCK, ROW, SLOTS


class Lanes:
    """Writes ``group(design, weights, errors, loss, sums, cuts, omega, n)``: adds one block to the loss (SLOTS) and to
    the gradient (columns, SLOTS), or counts (thresholds, SLOTS), of a few lanes."""

    def __init__(self, module: Any, features: int, thresholds: int, machine: Machine, train: bool) -> None:
        self.module, self.f, self.thresholds, self.machine, self.train = module, features, thresholds, machine, train
        self.columns = 3 * features + 1

    def write(self, size: int) -> Any:
        """The function for ``size`` lanes."""
        w = Writer(
            self.module, f"{'train' if self.train else 'validate'}_{size}", [FLOATS] * 6 + [F32, I64], self.machine,
            internal=True,
        )  # fmt: skip
        design, weights, errors, loss, sums, cuts, omega, n = w.function.args

        def part(slot: Value) -> None:
            self._forward(w, size, design, weights, errors, loss, omega, n, slot)
            if self.train:
                self._gradient(w, size, design, errors, sums, omega, n, slot)
            else:
                self._count(w, size, design, errors, sums, cuts, n, slot)

        w.loop(0, SLOTS, w.width, part)
        return w.finish()

    def _forward(
        self, w: Writer, size: int, design: Value, weights: Value, errors: Value, loss: Value, omega: Value, n: Value,
        slot: Value,
    ) -> None:  # fmt: skip
        """Logits of the block; their losses into ``loss``; into ``errors`` sigmoid(t), or the logits to count."""
        b, f = w.b, self.f
        vectors = 4 if self.machine.registers >= 32 else 2
        lanes = range(size)

        def some(v: Value, *kept: Value) -> list[Value]:
            base = b.add(v, slot)
            ones = [w.load(w.at(design, base, 3 * f * ROW + k * SLOTS)) for k in range(vectors)]
            intercepts = [w.spread(b.load(w.at(weights, 3 * f * TILE + lane))) for lane in lanes]
            begin = [b.fmul(intercept, one) for intercept in intercepts for one in ones]

            def column(j: Value, *logits: Value) -> list[Value]:
                row = w.at(design, b.add(base, b.mul(j, I64(ROW))))
                values = [w.load(w.at(row, k * SLOTS)) for k in range(vectors)]
                at = w.at(weights, b.mul(j, I64(TILE)))
                ws = [w.spread(b.load(w.at(at, lane))) for lane in lanes]
                return [w.fma(ws[i // vectors], values[i % vectors], logit) for i, logit in enumerate(logits)]

            logits = w.loop(0, 3 * f, 1, column, begin)
            products, linear = list(kept[:size]), list(kept[size:])
            for i, t in enumerate(logits):
                lane, k = divmod(i, vectors)
                target = w.at(errors, base, lane * BLOCK + k * SLOTS)
                if not self.train:
                    w.store(t, target)
                    mark = b.bitcast(w.load(w.at(design, base, (3 * f + 1) * ROW + k * SLOTS)), w.of(I32))
                    t = b.bitcast(b.xor(b.bitcast(t, w.of(I32)), b.shl(mark, w.whole(31))), w.of(F32))
                u = w.exp2_minus_abs(t)
                below = b.fadd(u, w.real(1.0))
                products[lane] = b.fmul(products[lane], below)
                linear[lane] = b.fadd(linear[lane], w.positive_part(t))
                if self.train:
                    above = b.select(b.fcmp_ordered(">=", t, w.real(0.0)), w.real(1.0), u)
                    w.store(b.fdiv(above, below), target)
            return products + linear

        found = w.loop(0, n, vectors * SLOTS, some, [w.real(1.0)] * size + [w.real(0.0)] * size)
        for lane in lanes:
            value = b.fadd(w.log2(found[lane]), found[size + lane])
            self._add(w, w.at(loss, slot, lane * SLOTS), value, omega)

    def _gradient(
        self, w: Writer, size: int, design: Value, errors: Value, sums: Value, omega: Value, n: Value, slot: Value
    ) -> None:
        """Adds omega D sigmoid(t) to the sums (columns, SLOTS) of each lane."""
        b = w.b
        for columns in _split(self.columns, 7 if self.machine.registers >= 32 else 4):
            pairs = [(lane, j) for lane in range(size) for j in columns]

            def some(v: Value, *totals: Value, columns: Sequence[int] = columns, pairs: Any = pairs) -> list[Value]:
                base = b.add(v, slot)
                e = [w.load(w.at(errors, base, lane * BLOCK)) for lane in range(size)]
                d = {j: w.load(w.at(design, base, j * ROW)) for j in columns}
                return [w.fma(d[j], e[lane], total) for (lane, j), total in zip(pairs, totals, strict=True)]

            totals = w.loop(0, n, SLOTS, some, [w.real(0.0)] * len(pairs))
            for (lane, j), total in zip(pairs, totals, strict=True):
                self._add(w, w.at(sums, slot, (lane * self.columns + j) * SLOTS), total, omega)

    def _add(self, w: Writer, target: Value, value: Value, omega: Value) -> None:
        w.store(w.fma(w.spread(omega), value, w.load(target)), target)

    def _count(
        self, w: Writer, size: int, design: Value, errors: Value, sums: Value, cuts: Value, n: Value, slot: Value
    ) -> None:
        """Adds the marks of the samples at or above each cut to the sums (thresholds, SLOTS) of each lane."""
        b = w.b
        for lane in range(size):
            for chosen in _split(self.thresholds, 20 if self.machine.registers >= 32 else 10):
                targets = [w.at(sums, slot, (lane * self.thresholds + number) * SLOTS) for number in chosen]

                def some(v: Value, *totals: Value, lane: int = lane, chosen: Sequence[int] = chosen) -> list[Value]:
                    base = b.add(v, slot)
                    z = w.load(w.at(errors, base, lane * BLOCK))
                    mark = b.bitcast(w.load(w.at(design, base, (3 * self.f + 1) * ROW)), w.of(I32))
                    return [
                        b.add(total, b.select(b.fcmp_ordered(">=", z, w.spread(b.load(w.at(cuts, number)))),
                                              mark, w.whole(0)))
                        for number, total in zip(chosen, totals, strict=True)
                    ]  # fmt: skip

                begin = [b.bitcast(w.load(target), w.of(I32)) for target in targets]
                for target, total in zip(targets, w.loop(0, n, SLOTS, some, begin), strict=True):
                    w.store(total, target)


def _split(total: int, most: int) -> list[range]:
    """range(total) in as few nearly equal pieces of at most ``most`` as possible."""
    pieces = -(-total // most)
    bounds = [total * piece // pieces for piece in range(pieces + 1)]
    return [range(start, stop) for start, stop in pairwise(bounds)]
