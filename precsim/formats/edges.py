"""What a rounded value must still go through to be in a format: flushing, overflow, specials, the sign.

It is what differs between formats that round alike; most values need none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from precsim.formats.arrays import Array, array_module
from precsim.formats.modes import Mode, Overflow, Rounding

if TYPE_CHECKING:
    from precsim.formats.kernels import Plan


def finish(
    x: Array,
    rounded: Array,
    out: Array,
    plan: Plan,
    rounding: Mode,
    overflow: Overflow,
    *,
    high: bool = True,
) -> None:
    """Apply the format's edges to `rounded` (flushing, overflow, specials, sign) and store it.

    Two reductions, whose comparisons a NaN fails too, tell whether any value is beyond the edge;
    with `high` false it is known that none is.
    """
    xp, fmt = array_module(x), plan.fmt
    if plan.flush_below:
        rounded *= xp.abs(rounded) >= plan.flush_below
    if high and not (rounded.max() <= plan.largest and rounded.min() >= -plan.largest):
        _treat_overflow(x, rounded, plan, rounding, overflow)
        if not fmt.has_nan and xp.isnan(rounded.max()):
            xp.copyto(rounded, 0, where=xp.isnan(rounded))
    if not fmt.has_negative_zero:
        rounded += 0  # -0 + 0 is +0
    if fmt.signed:
        out[...] = rounded
    else:
        negative = x < 0
        xp.maximum(rounded, x.dtype.type(fmt.min), out=out)  # a scale has no zero
        xp.copyto(out, x.dtype.type("nan" if fmt.has_nan else 0), where=negative)


def _treat_overflow(
    x: Array, rounded: Array, plan: Plan, rounding: Mode, overflow: Overflow
) -> None:
    """Replace what is beyond the largest value by that, an infinity or NaN.

    A directed mode rounds a finite overflow back to the largest finite value on one side or both.
    """
    xp, saturate = array_module(x), overflow is Overflow.SATURATE
    inward = saturate or rounding in (Rounding.TOWARD_ZERO, Rounding.TO_ODD)
    infinity = x.dtype.type("inf")
    low = plan.largest if inward or rounding is Rounding.UP else infinity
    high = plan.largest if inward or rounding is Rounding.DOWN else infinity
    xp.clip(rounded, -low, high, out=rounded)
    if saturate:
        return
    beyond = xp.abs(rounded) > plan.largest
    beyond |= xp.isinf(x)
    rounded /= ~beyond  # by 1, or by 0, which gives an infinity of the same sign
    if not plan.fmt.has_inf:
        bits = rounded.view(plan.uint)
        bits |= beyond.astype(plan.uint) << plan.quiet
