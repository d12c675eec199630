"""Writes LLVM functions with explicit float32 vectors: loops, loads, and the transcendental functions of the kernel.

Everything is plain SSA in the order given here, without fast-math flags: LLVM may not regroup a sum, so the bits of a
result depend on the order written here and not on the width of the vectors.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]

from nx46vx.model.kernel_layout import SLOTS

F32, F64, I8, I32, I64 = ir.FloatType(), ir.DoubleType(), ir.IntType(8), ir.IntType(32), ir.IntType(64)

FLOATS, BYTES, INTS, LONGS, DOUBLES = (kind.as_pointer() for kind in (F32, I8, I32, I64, F64))

#: 2^r = 1 + r q(r) on [-1/2, 1/2]: minimax fit of q, relative error of 2^r 1e-7; exact at r = 0.
EXP2 = (0.6931470036506653, 0.24022242426872253, 0.05550733581185341, 0.009671512991189957, 0.001326472731307149)

#: log2(m) = s (c0 + c1 s^2 + c2 s^4 + ...), s = (m - 1) / (m + 1): the series of 2 artanh(s) / ln 2.
LOG2 = tuple(2.0 / 0.6931471805599453 / odd for odd in (1, 3, 5, 7, 9))

#: 1.5 * 2^23: adding it to a float32 rounds that to an integer, found in the low bits of the sum.
ROUND = 12582912.0

#: Bits of sqrt(1/2): the mantissa of a logarithm's argument is brought to [sqrt(1/2), sqrt(2)).
ROOT_HALF = 0x3F3504F3

#: Floats of an AVX-512 register.
_AVX512 = 16
#: VRANGEPS: the smaller magnitude, with a minus sign.
_MINUS_SMALLER = 0b1110
#: Rounding as it is in force.
_CURRENT = 4

Value = Any


@dataclass(frozen=True)
class Machine:
    """A processor as the kernel sees it: floats and how many of them a vector register holds, registers, whether it
    multiplies and adds in one rounding, and whether it has instructions for exponents (AVX-512 DQ). The last one
    changes no bits of finite results."""

    cpu: str
    features: str
    width: int
    registers: int
    fused: bool
    exponents: bool = False


def single(value: float) -> float:
    """The nearest float32."""
    return float(struct.unpack("f", struct.pack("f", value))[0])


@functools.cache
def constant(scalar: Any, value: float, width: int) -> Value:
    """A number in every place of a vector. Cached: its text is long and wanted often."""
    return ir.Constant(scalar, value) if width == 1 else ir.Constant(ir.VectorType(scalar, width), [value] * width)


class Writer:
    """Builds one function. ``width`` floats form its vectors; 1 gives scalars."""

    def __init__(self, module: Any, name: str, arguments: Sequence[Any], machine: Machine, *, internal: bool) -> None:
        self.machine, self.module = machine, module
        self.function = ir.Function(module, ir.FunctionType(ir.VoidType(), list(arguments)), name)
        if internal:
            self.function.linkage = "internal"
        for number, argument in enumerate(arguments):
            if isinstance(argument, ir.PointerType):
                self.function.args[number].add_attribute("noalias")
        self.b = ir.IRBuilder(self.function.append_basic_block())
        self.width = machine.width

    def finish(self) -> Any:
        self.b.ret_void()
        return self.function

    # types and constants

    def of(self, scalar: Any) -> Any:
        """The type that holds one register of a scalar type."""
        return scalar if self.width == 1 else ir.VectorType(scalar, self.width)

    def real(self, value: float) -> Value:
        return constant(F32, single(value), self.width)

    def whole(self, value: int) -> Value:
        return constant(I32, value, self.width)

    def spread(self, value: Value) -> Value:
        """A scalar in every place of a vector."""
        if self.width == 1:
            return value
        vector = self.of(value.type)
        first = self.b.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(I32, 0))
        return self.b.shuffle_vector(first, ir.Constant(vector, ir.Undefined), constant(I32, 0, self.width))

    # memory

    def at(self, pointer: Value, *offsets: Value | int) -> Value:
        """The address some elements further; offsets are added up."""
        total: Value | int = 0
        for offset in offsets:
            if isinstance(offset, int):
                total = total + offset if isinstance(total, int) else self.b.add(total, I64(offset))
            elif isinstance(total, int):
                total = self.b.add(offset, I64(total)) if total else offset
            else:
                total = self.b.add(total, offset)
        return self.b.gep(pointer, [I64(total) if isinstance(total, int) else total])

    def load(self, pointer: Value, scalar: Any = F32) -> Value:
        """A vector from an address that is a whole number of its elements."""
        address = self.b.bitcast(pointer, self.of(scalar).as_pointer())
        return self.b.load(address, align=4 if scalar is not I8 else 1)

    def integers(self, table: Value, row: Value, columns: int) -> list[Value]:
        """A row of a table of int32, as int64."""
        b = self.b
        return [b.sext(b.load(self.at(table, b.mul(row, I64(columns)), item)), I64) for item in range(columns)]

    def store(self, value: Value, pointer: Value) -> None:
        self.b.store(value, self.b.bitcast(pointer, value.type.as_pointer()), align=4)

    # control

    def loop(
        self, start: Value | int, stop: Value | int, step: int, body: Callable[..., Sequence[Value] | None],
        carried: Sequence[Value] = (), *, perhaps: bool = False,
    ) -> Sequence[Value]:  # fmt: skip
        """``for i in range(start, stop, step): carried = body(i, *carried)``; it runs at least once, unless
        ``perhaps``."""
        b = self.b
        first, end = (I64(bound) if isinstance(bound, int) else bound for bound in (start, stop))
        before, block, over = b.block, b.append_basic_block(), b.append_basic_block()
        if perhaps:
            b.cbranch(b.icmp_signed("<", first, end), block, over)
        else:
            b.branch(block)
        b.position_at_end(block)
        index = b.phi(I64)
        index.add_incoming(first, before)
        kept = [b.phi(value.type) for value in carried]
        for phi, value in zip(kept, carried, strict=True):
            phi.add_incoming(value, before)
        result = body(index, *kept) or ()
        following = b.add(index, I64(step))
        index.add_incoming(following, b.block)
        for phi, value in zip(kept, result, strict=True):
            phi.add_incoming(value, b.block)
        last = b.block
        b.cbranch(b.icmp_signed("<", following, end), block, over)
        b.position_at_end(over)
        if not perhaps:
            return result
        found = []
        for value, initial in zip(result, carried, strict=True):
            phi = b.phi(value.type)
            phi.add_incoming(initial, before)
            phi.add_incoming(value, last)
            found.append(phi)
        return found

    def loop_if_any(self, start: Value | int, stop: Value, step: int, body: Callable[[Value], None]) -> None:
        """The same loop without carried values; it may run not at all."""
        self.loop(start, stop, step, body, perhaps=True)

    # arithmetic

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        """x y + z, in one rounding where the processor can."""
        if not self.machine.fused:
            return self.b.fadd(self.b.fmul(x, y), z)
        name = "llvm.fma." + (f"v{self.width}f32" if isinstance(x.type, ir.VectorType) else "f32")
        return self._call(name, x.type, [x, y, z])

    def polynomial(self, x: Value, coefficients: Sequence[float]) -> Value:
        total = self.real(coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            total = self.fma(total, x, self.real(coefficient))
        return total

    def positive_part(self, x: Value) -> Value:
        """max(x, 0); NaN stays NaN."""
        zero = self.real(0.0)
        return self.b.select(self.b.fcmp_ordered(">", zero, x), zero, x)

    def both_bits(self, x: Value, mask: Value) -> Value:
        """The bits that are set in both."""
        return self.b.bitcast(self.b.and_(*(self.b.bitcast(value, self.of(I32)) for value in (x, mask))), x.type)

    def exp2_minus_abs(self, xs: Sequence[Value]) -> Generator[None, None, list[Value]]:
        """2^-|x| of some vectors, relative error 2e-7; below 2^-125 it stays there. Stops after every step."""
        b = self.b
        if self.machine.exponents and self.width == _AVX512:
            lows = [self._x86("range", x, self.real(125.0), I32(_MINUS_SMALLER)) for x in xs]
            yield
            wholes = [self._rint(low) for low in lows]
        else:
            floor, minus = self.real(-125.0), self.whole(-(2**31))
            lows = [b.bitcast(b.or_(b.bitcast(x, self.of(I32)), minus), x.type) for x in xs]
            yield
            lows = [b.select(b.fcmp_ordered(">", floor, low), floor, low) for low in lows]
            yield
            shifted = [b.fadd(low, self.real(ROUND)) for low in lows]
            yield
            wholes = [b.fsub(number, self.real(ROUND)) for number in shifted]
        yield
        rests = [b.fsub(low, whole) for low, whole in zip(lows, wholes, strict=True)]
        yield
        powers = [self.real(EXP2[-1]) for _ in xs]
        for coefficient in (*EXP2[-2::-1], 1.0):
            powers = [self.fma(power, rest, self.real(coefficient)) for power, rest in zip(powers, rests, strict=True)]
            yield
        if self.machine.exponents and self.width == _AVX512:
            return [self._x86("scalef", power, whole) for power, whole in zip(powers, wholes, strict=True)]
        exponents = [b.shl(b.bitcast(number, self.of(I32)), self.whole(23)) for number in shifted]
        yield
        return [
            b.bitcast(b.add(b.bitcast(power, self.of(I32)), exponent), power.type)
            for power, exponent in zip(powers, exponents, strict=True)
        ]

    def _call(self, name: str, result: Any, arguments: Sequence[Value]) -> Value:
        """A call of one of LLVM's own functions."""
        kinds = [argument.type for argument in arguments]
        found = self.module.globals.get(name) or ir.Function(self.module, ir.FunctionType(result, kinds), name)
        return self.b.call(found, arguments)

    def _rint(self, x: Value) -> Value:
        return self._call(f"llvm.rint.v{self.width}f32", x.type, [x])

    def _x86(self, name: str, *arguments: Value) -> Value:
        """An AVX-512 instruction on whole vectors, rounded as usual."""
        kind = arguments[0].type
        more = [ir.Constant(kind, ir.Undefined), ir.Constant(ir.IntType(_AVX512), -1), I32(_CURRENT)]
        return self._call(f"llvm.x86.avx512.mask.{name}.ps.512", kind, [*arguments, *more])

    def log2(self, x: Value) -> Value:
        """log2 of normal numbers >= 1, absolute error 1e-7; exact for powers of two."""
        b = self.b
        bits = b.bitcast(x, self.of(I32))
        exponent = b.ashr(b.sub(bits, self.whole(ROOT_HALF)), self.whole(23))
        mantissa = b.bitcast(b.sub(bits, b.shl(exponent, self.whole(23))), x.type)
        one = self.real(1.0)
        s = b.fdiv(b.fsub(mantissa, one), b.fadd(mantissa, one))
        series = self.polynomial(b.fmul(s, s), LOG2)
        return self.fma(s, series, b.sitofp(exponent, x.type))

    def load_slots(self, pointer: Value, scalar: Any = F32) -> Value:
        """SLOTS numbers from memory, whatever the width of a register."""
        return self.b.load(self.b.bitcast(pointer, ir.VectorType(scalar, SLOTS).as_pointer()), align=4)

    def sum_slots(self, value: Value) -> Value:
        """The sum over SLOTS float64 or integers, as a balanced tree."""
        b, size = self.b, SLOTS
        add = b.fadd if value.type.element == F64 else b.add
        while size > 1:
            size //= 2
            nothing, order = ir.Constant(value.type, ir.Undefined), ir.VectorType(I32, size)
            halves = (ir.Constant(order, list(range(start, start + size))) for start in (0, size))
            value = add(*(b.shuffle_vector(value, nothing, half) for half in halves))
        return b.extract_element(value, I32(0))
