"""The kernel's inner functions: logits, errors, gradient and counts of one block of samples, for some lanes.

Samples run along the vectors and each lane has registers of its own, so its arithmetic is the same wherever it stands.

With t the logit, turned around where the sample is positive, the cross-entropy is log(1 + exp(t)) and its derivative
sigmoid(t), whatever the label. Logits are in units of log 2. The logarithms of 1 + 2^-|t| are taken once for the
product over a block's samples of one slot (at most 2^(BLOCK / SLOTS)).

The sums over the columns keep the multipliers busy and the sigmoids the other units: where there are registers enough,
the sigmoids of some samples are written in between the sums of the following ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from nx46vx.model.candidates import TILE
from nx46vx.model.kernel_ir import F32, FLOATS, I32, I64, Machine, Value, Writer
from nx46vx.model.kernel_layout import ROW, SLOTS, STEP

#: Vectors of samples that are taken together where there are registers enough, and where there are not.
_WIDE, _NARROW = STEP // SLOTS, STEP // SLOTS // 2
#: Sums that are written between one part of a sigmoid and the next.
_PACE = 2


class Lanes:
    """Writes ``group(design, weights, errors, loss, sums, cuts, omega, n)``: adds one block to the loss (SLOTS)
    and to the gradient (columns, SLOTS), or counts (thresholds, SLOTS), of a few lanes."""

    def __init__(self, module: Any, features: int, thresholds: int, machine: Machine, train: bool) -> None:
        self.module, self.f, self.thresholds, self.machine, self.train = module, features, thresholds, machine, train
        self.columns = 3 * features + 1
        self.many = machine.registers >= 32
        self.vectors = _WIDE if self.many else _NARROW

    def write(self, size: int) -> Any:
        """The function for ``size`` lanes."""
        w = Writer(
            self.module, f"{'train' if self.train else 'validate'}_{size}", [FLOATS] * 6 + [F32, I64],
            self.machine, internal=True,
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
        """Logits of the block; their losses into ``loss``; into ``errors`` the errors, or the logits to count."""
        b, step = w.b, self.vectors * SLOTS

        def logits(v: Value, between: Iterator[None] | None = None) -> None:
            self._logits(w, size, design, weights, errors, b.add(v, slot), between)

        def losses(v: Value, kept: Sequence[Value], out: list[Value]) -> Iterator[None]:
            return self._losses(w, size, design, errors, b.add(v, slot), kept, out)

        def together(v: Value, *kept: Value) -> list[Value]:
            out: list[Value] = []
            logits(v, losses(b.sub(v, I64(step)), kept, out))
            return out

        def alone(v: Value, *kept: Value) -> list[Value]:
            out: list[Value] = []
            _exhaust(losses(v, kept, out))
            return out

        begin = [w.real(1.0)] * size + [w.real(0.0)] * size
        if self.many:
            logits(I64(0))
            kept = w.loop(step, n, step, together, begin, perhaps=True)
            kept = alone(b.sub(n, I64(step)), *kept)
        else:
            w.loop(0, n, step, logits)
            kept = w.loop(0, n, step, alone, begin)
        for lane in range(size):
            value = b.fadd(w.log2(kept[lane]), kept[size + lane])
            self._add(w, w.at(loss, slot, lane * SLOTS), value, omega)

    def _logits(
        self, w: Writer, size: int, design: Value, weights: Value, errors: Value, base: Value,
        between: Iterator[None] | None,
    ) -> None:  # fmt: skip
        """Logits of some vectors of samples; ``between`` writes something else in between."""
        b, f, vectors, lanes = w.b, self.f, self.vectors, range(size)

        def column(j: Value | int, *logits: Value) -> list[Value]:
            row = w.at(design, base, j * ROW if isinstance(j, int) else b.mul(j, I64(ROW)))
            values = [w.load(w.at(row, k * SLOTS)) for k in range(vectors)]
            at = w.at(weights, j * TILE if isinstance(j, int) else b.mul(j, I64(TILE)))
            following = []
            for lane in lanes:
                weight = w.spread(b.load(w.at(at, lane)))
                for k, value in enumerate(values):
                    following.append(w.fma(weight, value, logits[lane * vectors + k]))
                    if between is not None and len(following) % _PACE == 0:
                        next(between, None)
            return following

        drawn = [w.load(w.at(design, base, (3 * f + 1) * ROW + k * SLOTS)) for k in range(vectors)]
        intercepts = [w.spread(b.load(w.at(weights, 3 * f * TILE + lane))) for lane in lanes]
        logits = [w.both_bits(intercept, mask) for intercept in intercepts for mask in drawn]
        if between is None:
            logits = list(w.loop(0, 3 * f, 1, column, logits))
        else:
            for j in range(3 * f):
                logits = column(j, *logits)
            _exhaust(between)
        for i, z in enumerate(logits):
            lane, k = divmod(i, vectors)
            w.store(z, w.at(errors, base, lane * ROW + k * SLOTS))

    def _losses(
        self, w: Writer, size: int, design: Value, errors: Value, base: Value, kept: Sequence[Value], out: list[Value]
    ) -> Iterator[None]:
        """Multiplies and adds up the losses of some vectors of samples into ``kept``, and gives ``out``; training puts
        errors in the place of logits. Written two vectors at a time, with a stop after each pair of instructions."""
        b = w.b
        products, linear = list(kept[:size]), list(kept[size:])
        for lane in range(size):
            for first in range(0, self.vectors, 2):
                ts, signs, targets = [], [], []
                for k in (first, first + 1):
                    target = w.at(errors, base, lane * ROW + k * SLOTS)
                    sign = b.bitcast(w.load(w.at(design, base, 3 * self.f * ROW + k * SLOTS)), w.of(I32))
                    sign = sign if self.train else b.shl(sign, w.whole(31))
                    ts.append(b.bitcast(b.xor(b.bitcast(w.load(target), w.of(I32)), sign), w.of(F32)))
                    signs.append(sign)
                    targets.append(target)
                    yield
                us = yield from w.exp2_minus_abs(ts)
                belows = [b.fadd(u, w.real(1.0)) for u in us]
                yield
                for below in belows:
                    products[lane] = b.fmul(products[lane], below)
                yield
                for t in ts:
                    linear[lane] = b.fadd(linear[lane], w.positive_part(t))
                    yield
                if self.train:
                    aboves = [
                        b.select(b.fcmp_ordered(">=", t, w.real(0.0)), w.real(1.0), u)
                        for t, u in zip(ts, us, strict=True)
                    ]  # fmt: skip
                    yield
                    for above, below, sign, target in zip(aboves, belows, signs, targets, strict=True):
                        e = b.bitcast(b.fdiv(above, below), w.of(I32))
                        w.store(b.bitcast(b.xor(e, sign), w.of(F32)), target)
                        yield
        out.extend(products + linear)

    def _gradient(
        self, w: Writer, size: int, design: Value, errors: Value, sums: Value, omega: Value, n: Value, slot: Value
    ) -> None:
        """Adds omega D e to the sums (columns, SLOTS) of each lane; the intercept's column is one everywhere."""
        b = w.b
        for columns in _split(self.columns, 7 if self.many else 4):
            pairs = [(lane, j) for lane in range(size) for j in columns]

            def some(v: Value, *totals: Value, columns: Sequence[int] = columns, pairs: Any = pairs) -> list[Value]:
                base = b.add(v, slot)
                e = [w.load(w.at(errors, base, lane * ROW)) for lane in range(size)]
                d = {j: w.load(w.at(design, base, j * ROW)) for j in columns if j < 3 * self.f}
                return [
                    w.fma(d[j], e[lane], total) if j in d else b.fadd(total, e[lane])
                    for (lane, j), total in zip(pairs, totals, strict=True)
                ]

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
            for chosen in _split(self.thresholds, 20 if self.many else 10):
                targets = [w.at(sums, slot, (lane * self.thresholds + number) * SLOTS) for number in chosen]

                def some(v: Value, *totals: Value, lane: int = lane, chosen: Sequence[int] = chosen) -> list[Value]:
                    base = b.add(v, slot)
                    z = w.load(w.at(errors, base, lane * ROW))
                    mark = b.bitcast(w.load(w.at(design, base, 3 * self.f * ROW)), w.of(I32))
                    return [
                        b.add(total, b.select(b.fcmp_ordered(">=", z, w.spread(b.load(w.at(cuts, number)))),
                                              mark, w.whole(0)))
                        for number, total in zip(chosen, totals, strict=True)
                    ]  # fmt: skip

                begin = [b.bitcast(w.load(target), w.of(I32)) for target in targets]
                for target, total in zip(targets, w.loop(0, n, SLOTS, some, begin), strict=True):
                    w.store(total, target)


def _exhaust(steps: Iterator[None]) -> None:
    for _ in steps:
        pass


def _split(total: int, most: int) -> list[range]:
    """range(total) in as few nearly equal pieces of at most ``most`` as possible."""
    pieces = -(-total // most)
    bounds = [total * piece // pieces for piece in range(pieces + 1)]
    return [range(start, stop) for start, stop in pairwise(bounds)]
