"""Formulas in one pass, compiled by Numba (`precsim.backend.formula`).

A formula is compiled as it stands, without leave to add in another order or to round once where it
rounds twice: each of its steps is one instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from precsim.backend.fused import compiled
from precsim.formats.arrays import Array

_intrinsic: Any = intrinsic
INSTRUCTIONS = {"+": "fadd", "-": "fsub", "*": "fmul", "/": "fdiv"}
ALL, ROW, COLUMN, OUT = "all", "row", "column", "out"
"""What an operand has: a number for every element, for a row, for a column; or it is the result."""


def run(steps: tuple[Any, ...], operands: Sequence[Array], out: Array) -> bool:
    """Write a formula to `out`; False: there is no loop for these arrays."""
    if out.ndim == 0 or out.size == 0 or not out.flags.c_contiguous:
        return False
    kinds = [_kind(x, out) for x in operands]
    if None in kinds:
        return False
    flat = tuple([x.reshape(-1) for x in operands])
    kernel(_spelled(tuple(kinds), steps))(flat, out.reshape(-1), out.shape[-1])
    return True


def _kind(x: Any, out: Array) -> str | None:
    """Return what an operand has; None where no loop goes over it."""
    if x is out:
        return OUT
    if x.dtype != out.dtype or not x.flags.c_contiguous:
        return None
    if x.shape == out.shape:
        return ALL
    if x.shape == (*out.shape[:-1], 1):
        return ROW
    return COLUMN if x.shape == out.shape[-1:] else None


@cache
def _spelled(kinds: tuple[str, ...], steps: tuple[Any, ...]) -> str:
    """Return the formula in a line, which Numba can keep a loop under, and read back (`_evaluate`)."""
    lines = [f"{step.sign} {step.left!r} {step.right!r}" for step in steps]
    return ";".join([" ".join(kinds), *lines])


@cache
def kernel(text: str) -> Callable[..., None]:
    """Return ``run(operands, out, columns)`` for flat arrays."""

    @compiled
    def run(operands: Any, out: Any, columns: Any) -> None:
        for row in range(out.size // columns):
            for column in range(columns):
                i = row * columns + column
                out[i] = _evaluate(text, operands, out, i, row, column)

    return run  # type: ignore[no-any-return]


@_intrinsic(prefer_literal=True)
def _evaluate(
    typing: Any, text: Any, operands: Any, out: Any, place: Any, row: Any, column: Any
) -> Any:
    """Return the formula at a place."""
    kinds, *steps = (line.split() for line in text.literal_value.split(";"))

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, arrays, whole, *where = arguments
        index = dict(zip((ALL, ROW, COLUMN), where, strict=True))
        number = context.get_value_type(out.dtype)

        def load(kind: str, position: int) -> Any:
            array = whole if kind == OUT else builder.extract_value(arrays, position)
            data = context.make_array(out)(context, builder, array).data
            return builder.load(builder.gep(data, [index[ALL if kind == OUT else kind]]))

        values = [load(kind, position) for position, kind in enumerate(kinds)]

        def term(spelled: str) -> Any:
            if spelled.isdecimal():
                return values[int(spelled)]
            return ir.Constant(number, float(np.dtype(out.dtype.name).type(spelled)))

        for sign, left, right in steps:
            values.append(getattr(builder, INSTRUCTIONS[sign])(term(left), term(right)))
        return values[-1]

    return out.dtype(text, operands, out, place, row, column), code
