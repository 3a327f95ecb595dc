"""Comparing results with those in float64 in one pass, compiled by Numba (`precsim.backend.fused`).

`precsim.observe.shadow` says what the sums are for, and has NumPy's way to them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from precsim.backend.fused import compiled
from precsim.backend.fused_bits import part, summing
from precsim.formats.arrays import Array

Sums = tuple[float, float]
"""Of the squares of result - truth, and of truth; not finite where one of these is not."""

ADD, SUBTRACT, MULTIPLY = range(3)
KINDS = {
    "accumulate": ADD, "add": ADD, "apply_update": ADD, "sub": SUBTRACT, "mul": MULTIPLY,
}  # fmt: skip
"""Ops of two operands that take less time than to write and to read their results in float64."""

BLOCK = 1 << 11
"""Elements whose results in float64 stay in a first-level cache."""


def compare(rounded: Array, truth: Array) -> Sums:
    """Compare arrays, flat, of which the second is float64."""
    sums: Sums = _compare(rounded, truth)
    return sums


def compute_and_compare(op: str, inputs: tuple[Array, ...], rounded: Array) -> Sums | None:
    """Compare a result with the op on these operands in float64; None: there is no kernel for it.

    There is one for two operands of the result's shape, of which one may be a single number.
    """
    if op not in KINDS:
        return None
    a, b = inputs
    if KINDS[op] != SUBTRACT and a.size == 1:
        a, b = b, a
    alone = b.size == 1
    if a.shape != rounded.shape or not (alone or b.shape == a.shape):
        return None
    if not (a.flags.c_contiguous and b.flags.c_contiguous and rounded.flags.c_contiguous):
        return None
    run = _kernel(KINDS[op], alone=alone)
    return run(a.reshape(-1), b.reshape(-1), rounded.reshape(-1))


@summing
def sums(rounded: Any, truth: Any) -> Any:
    """Return `Sums`; for other loops, that compute `truth`, float64."""
    error = size = 0.0
    for i in range(truth.size):
        difference = np.float64(rounded[i]) - truth[i]
        error += difference * difference
        size += truth[i] * truth[i]
    return error, size


@compiled
def _compare(rounded: Any, truth: Any) -> Any:
    return sums(rounded, truth)


@part
def _compute(kind: Any, a: Any, b: Any, out: Any) -> None:
    """Write a block of results; in float64 and as written, where `sums` may take liberties."""
    for i in range(out.size):
        left, right = np.float64(a[i]), np.float64(b[i])
        if kind == ADD:
            out[i] = left + right
        elif kind == SUBTRACT:
            out[i] = left - right
        else:
            out[i] = left * right


@part
def _compute_alone(kind: Any, a: Any, b: Any, out: Any) -> None:
    """Write a block of results of which one operand is a single number."""
    right = np.float64(b)
    for i in range(out.size):
        left = np.float64(a[i])
        if kind == ADD:
            out[i] = left + right
        elif kind == SUBTRACT:
            out[i] = left - right
        else:
            out[i] = left * right


@cache
def _kernel(kind: int, *, alone: bool) -> Callable[..., Sums]:
    """Return ``run(a, b, rounded)``, of flat arrays."""

    @compiled
    def run(a: Any, b: Any, rounded: Any) -> Any:
        error = size = 0.0
        room = np.empty(BLOCK)
        for start in range(0, a.size, BLOCK):
            left, result = a[start : start + BLOCK], rounded[start : start + BLOCK]
            truth = room[: left.size]
            if alone:
                _compute_alone(kind, left, b[0], truth)
            else:
                _compute(kind, left, b[start : start + BLOCK], truth)
            more_error, more_size = sums(result, truth)
            error += more_error
            size += more_size
        return error, size

    return run  # type: ignore[no-any-return]
