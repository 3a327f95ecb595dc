"""Local error: what one op's output lacks against the same op, on the same inputs, in float64.

The shadow sees all that the op did to the numbers: the carrier's own rounding, a narrow
accumulator, and the format's.  It says nothing of errors that the inputs brought along.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np

from precsim.engine.arithmetic import Arithmetic
from precsim.engine.dispatch import Event
from precsim.engine.tape import OPS
from precsim.formats.arrays import array_module


def reference(event: Event) -> Any:
    """Return the op's result in float64 with a float64 accumulator, rounded by nobody.

    Where the op was computed so, that is its `exact` result, and nothing is computed again.
    """
    if event.exact.dtype == np.float64 and event.accumulator is None:
        return event.exact
    xp = array_module(event.exact)
    inputs = (x.astype(np.float64) for x in event.inputs)
    with np.errstate(all="ignore"):
        arithmetic = Arithmetic(xp, np.dtype(np.float64))
        return OPS[event.op].forward(arithmetic, *inputs, **event.params)


def local_error(event: Event) -> float:
    """Return the norm of the output's error over the norm of the float64 result.

    Elements that are not finite in either are set aside; 0 where both norms are 0, infinity where
    only the result's is.  Divide by the format's u for the error in units of the format.
    """
    xp = array_module(event.exact)
    truth = reference(event)
    with np.errstate(all="ignore"):
        error, size = (event.rounded - truth).ravel(), truth.ravel()
        squares = float(error @ error), float(size @ size)
        if not all(isfinite(square) for square in squares):
            both = xp.isfinite(truth) & xp.isfinite(event.rounded)
            error, size = (xp.where(both.ravel(), x, 0) for x in (error, size))
            squares = float(error @ error), float(size @ size)
    return _ratio(*squares)


def _ratio(error: float, size: float) -> float:
    if size == 0:
        return 0.0 if error == 0 else float("inf")
    return float(np.sqrt(error / size))
