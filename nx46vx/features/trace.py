"""Arithmetic written for arrays, turned into machine code: values that write down what is done to them.

A ``Traced`` stands for a vector of neighbouring voxels. NumPy's operators and functions, applied to it, append the LLVM
instructions that do the same, one for one and without fast-math: no sum is regrouped, no product and sum contracted,
so the code gives the bits that NumPy gives for the same source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numpy.lib.mixins import NDArrayOperatorsMixin

F32, F64, I1, I32, I64 = ir.FloatType(), ir.DoubleType(), ir.IntType(1), ir.IntType(32), ir.IntType(64)
Value = Any

_ARITHMETIC = {np.add: "fadd", np.subtract: "fsub", np.multiply: "fmul", np.divide: "fdiv"}
_COMPARED = {np.less: "<", np.less_equal: "<=", np.greater: ">", np.greater_equal: ">=", np.equal: "=="}
_CALLED = {np.sqrt: "sqrt", np.floor: "floor"}


class Code:
    """One function, ``void name(addresses, numbers, scalars)``, whose vectors hold ``width`` numbers."""

    def __init__(self, name: str, width: int) -> None:
        self.module, self.name, self.width = ir.Module(name), name, width
        tables = [kind.as_pointer() for kind in (I64, I64, F64)]
        self.function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), tables), name)
        self.b = ir.IRBuilder(self.function.append_basic_block())

    def finish(self) -> str:
        """The whole as LLVM assembly."""
        self.b.ret_void()
        return str(self.module)

    def address(self, place: int) -> Value:
        """An entry of the table of addresses."""
        return self._entry(0, place)

    def number(self, place: int) -> Value:
        return self._entry(1, place)

    def scalar(self, place: int, kind: Any = F64) -> Traced:
        """An entry of the table of numbers, in every place of a vector."""
        value = self._entry(2, place)
        return self.spread(value if kind == F64 else self.b.fptrunc(value, kind))

    def _entry(self, table: int, place: int) -> Value:
        return self.b.load(self.b.gep(self.function.args[table], [I64(place)]))

    def vector(self, kind: Any) -> Any:
        return ir.VectorType(kind, self.width)

    def spread(self, value: Value) -> Traced:
        """A number in every place of a vector."""
        empty = ir.Constant(self.vector(value.type), ir.Undefined)
        first = self.b.insert_element(empty, value, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, self.width), [0] * self.width)
        return Traced(self, self.b.shuffle_vector(first, empty, zeros))

    def load(self, address: Value, kind: Any = F32) -> Traced:
        """A vector from an address (bytes, int64)."""
        return Traced(self, self.b.load(self.b.inttoptr(address, self.vector(kind).as_pointer()), align=4))

    def load_one(self, address: Value, kind: Any) -> Value:
        return self.b.load(self.b.inttoptr(address, kind.as_pointer()), align=4)

    def store(self, value: Traced, address: Value) -> None:
        self.b.store(value.value, self.b.inttoptr(address, value.value.type.as_pointer()), align=4)

    def add(self, *terms: Value | int) -> Value:
        total: Value = None
        for term in terms:
            term = I64(term) if isinstance(term, int) else term
            total = term if total is None else self.b.add(total, term)
        return total

    def mul(self, a: Value, b: Value | int) -> Value:
        return self.b.mul(a, I64(b) if isinstance(b, int) else b)

    def loop(
        self, start: Value | int, stop: Value | int, step: Value | int,
        body: Callable[..., Sequence[Value] | None], carried: Sequence[Value] = (),
    ) -> Sequence[Value]:  # fmt: skip
        """``for i in range(start, stop, step): carried = body(i, *carried)``."""
        b = self.b
        first, end, step = (I64(bound) if isinstance(bound, int) else bound for bound in (start, stop, step))
        before = b.block
        head, inside, after = (self.function.append_basic_block() for _ in range(3))
        b.branch(head)
        b.position_at_end(head)
        index = b.phi(I64)
        index.add_incoming(first, before)
        kept = [b.phi(value.type) for value in carried]
        for phi, value in zip(kept, carried, strict=True):
            phi.add_incoming(value, before)
        b.cbranch(b.icmp_signed("<", index, end), inside, after)
        b.position_at_end(inside)
        result = body(index, *kept) or ()
        index.add_incoming(b.add(index, step), b.block)
        for phi, value in zip(kept, result, strict=True):
            phi.add_incoming(value, b.block)
        b.branch(head)
        b.position_at_end(after)
        return kept

    def vectors(self, start: Value | int, count: Value, body: Callable[[Value], None]) -> None:
        """``body(i)`` for vectors that begin at i and cover ``range(start, count)``; the last one begins early enough
        not to go beyond it. ``count`` is at least the width."""
        last = self.b.sub(count, I64(self.width))

        def one(i: Value) -> None:
            body(self.b.select(self.b.icmp_signed("<", i, last), i, last))

        self.loop(start, count, self.width, one)

    def call(self, name: str, value: Value) -> Value:
        scalar = value.type.element if isinstance(value.type, ir.VectorType) else value.type
        kind = ("f32" if scalar == F32 else "f64") if scalar == value.type else (
            f"v{value.type.count}" + ("f32" if scalar == F32 else "f64"))  # fmt: skip
        full = f"llvm.{name}.{kind}"
        found = self.module.globals.get(full) or ir.Function(
            self.module, ir.FunctionType(value.type, [value.type]), full
        )
        return self.b.call(found, [value])


class Traced(NDArrayOperatorsMixin):
    """A vector of float32, float64 or truth values in the code that is being written."""

    def __init__(self, code: Code, value: Value) -> None:
        self.code, self.value = code, value

    @property
    def kind(self) -> Any:
        return self.value.type.element

    def astype(self, dtype: Any) -> Traced:
        kind, b = (F64 if np.dtype(dtype) == np.float64 else F32), self.code.b
        if kind == self.kind:
            return self
        change = b.fpext if kind == F64 else b.fptrunc
        return Traced(self.code, change(self.value, self.code.vector(kind)))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **_: Any) -> Traced:
        code, b = self.code, self.code.b
        kinds = {part.kind for part in inputs if isinstance(part, Traced)}
        if method != "__call__" or len(kinds) != 1:
            raise TypeError(f"{ufunc.__name__} of {kinds} cannot be traced")
        values = [self._like(part).value for part in inputs]
        if ufunc in _ARITHMETIC:
            return Traced(code, getattr(b, _ARITHMETIC[ufunc])(*values))
        if ufunc in _COMPARED:
            return Traced(code, b.fcmp_ordered(_COMPARED[ufunc], *values))
        if ufunc in _CALLED:
            return Traced(code, code.call(_CALLED[ufunc], *values))
        if ufunc is np.negative:
            return Traced(code, b.fneg(*values))
        raise TypeError(f"{ufunc.__name__} cannot be traced")

    def __array_function__(self, function: Any, types: Any, arguments: Any, keywords: Any) -> Traced:
        if function is not np.where:
            raise TypeError(f"{function.__name__} cannot be traced")
        condition, yes, no = arguments
        model = yes if isinstance(yes, Traced) else no
        yes, no = model._like(yes), model._like(no)
        return Traced(self.code, self.code.b.select(condition.value, yes.value, no.value))

    def _like(self, other: Any) -> Traced:
        """A constant as a vector of this one's kind; only numbers that NumPy would not widen this one for."""
        if isinstance(other, Traced):
            return other
        if isinstance(other, np.float64) and self.kind == F32:
            raise TypeError("a float64 number would widen a float32 vector")
        number = float(np.float32(other)) if self.kind == F32 else float(other)
        return Traced(self.code, ir.Constant(self.value.type, [number] * self.code.width))
