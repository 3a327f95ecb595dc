"""Local error: what one op's output lacks against the same op, on the same inputs, in float64.

The shadow sees all that the op did to the numbers: the carrier's own rounding, a narrow
accumulator, and the format's.  It says nothing of errors that the inputs brought along.

With compiled kernels most ops are computed and compared in one loop (`precsim.observe.fused_rows`);
that adds up in another order, which changes the last bits of an error that is reported, and no more.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np

from precsim.backend import compiled
from precsim.engine.arithmetic import Arithmetic
from precsim.engine.context import current
from precsim.engine.dispatch import Event
from precsim.engine.tape import OPS
from precsim.formats.arrays import array_module

FLOAT64 = np.dtype(np.float64)

BLOCK = 1 << 15
"""Elements that are compared at a time, which a second-level cache holds."""


def reference(event: Event) -> Any:
    """Return the op's result in float64 with a float64 accumulator, rounded by nobody.

    Where the op was computed so, that is its `exact` result, and nothing is computed again.
    """
    if event.rounded.dtype == np.float64 and event.accumulator is None:
        return event.exact
    arithmetic = Arithmetic(array_module(event.rounded), FLOAT64, pool=current().pool)
    inputs = [_wide(arithmetic, x) for x in event.inputs]
    with np.errstate(all="ignore"):
        return OPS[event.op].forward(arithmetic, *inputs, **event.params)


def _wide(arithmetic: Arithmetic, x: Any) -> Any:
    """Return x in float64, in order by rows, or by columns where x is."""
    if x.ndim > 1 and x.strides[-1] > x.strides[-2]:
        return _wide(arithmetic, x.swapaxes(-1, -2)).swapaxes(-1, -2)
    wide = arithmetic.empty(x.shape)
    wide[...] = x
    return wide


def local_error(event: Event) -> float:
    """Return the norm of the output's error over the norm of the float64 result.

    Elements that are not finite in either are set aside; 0 where both norms are 0, infinity where
    only the result's is.  Divide by the format's u for the error in units of the format.
    """
    xp = array_module(event.rounded)
    fused = compiled.comparing(event.rounded.size) if xp is np else None
    squares = _in_one_pass(fused, event) if fused else None
    if squares is not None and isfinite(sum(squares)):
        return _ratio(*squares)
    rounded, truth = event.rounded.reshape(-1), reference(event).reshape(-1)
    with np.errstate(all="ignore"):
        squares = fused.compare(rounded, truth) if fused else _squares(xp, rounded, truth)
        if not isfinite(sum(squares)):
            both = xp.isfinite(truth) & xp.isfinite(rounded)
            squares = _squares(xp, xp.where(both, rounded, 0), xp.where(both, truth, 0))
    return _ratio(*squares)


def _in_one_pass(fused: Any, event: Event) -> tuple[float, float] | None:
    """Return what `_squares` does, where there is a compiled loop for the op; None: there is none."""
    found = fused.compute_and_compare(event.op, event.inputs, event.rounded)
    if found is None:
        from precsim.observe import fused_rows

        with np.errstate(all="ignore"):
            found = fused_rows.compute_and_compare(
                event.op, event.inputs, event.params, event.rounded
            )
    return found  # type: ignore[no-any-return]


def _squares(xp: Any, rounded: Any, truth: Any) -> tuple[float, float]:
    """Return the sums of the squares of rounded - truth and of truth, block by block."""
    error = size = 0.0
    block = BLOCK if xp is np else max(1, truth.size)
    scratch = xp.empty(min(block, truth.size), FLOAT64)
    for start in range(0, truth.size, block):
        part = truth[start : start + block]
        difference = scratch[: part.size]
        difference[...] = rounded[start : start + block]  # quicker than a mixed subtraction
        difference -= part
        error += float(difference @ difference)
        size += float(part @ part)
    return error, size


def _ratio(error: float, size: float) -> float:
    if size == 0:
        return 0.0 if error == 0 else float("inf")
    return float(np.sqrt(error / size))
