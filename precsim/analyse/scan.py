"""Scan: this very step at every loss scale, and in every format; each is run, none is guessed.

`precsim whatif` moves recorded exponents; here the step runs again from the same weights on the same
batch, so that what is lost in one op is missing in the next.  Errors are those of the whole
gradient, unscaled, relative to float64.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import log2
from typing import Any

from precsim.analyse.moment import Moment, Values, relative_error
from precsim.engine.policy import Policy
from precsim.engine.precision import FOLLOWING, Precision
from precsim.engine.rule import PHASES
from precsim.formats.registry import element_of, format
from precsim.observe.counters import Counters

EXPONENTS = range(-8, 33)
"""Powers of two that are tried as loss scales, if nobody says which."""

FORMATS = ("fp32", "tf32", "fp16", "bf16", "e5m2", "e4m3", "e3m4", "e3m2", "e2m3", "e2m1", "int8:row",
           "mxfp8_e5m2", "mxfp8_e4m3", "mxfp4", "nvfp4")  # fmt: skip
"""Formats that are tried, if nobody says which."""

CLOSE = 1.25
"""Loss scales whose error is at most this many times the least are called as good: where much is
subnormal, errors fall one way or the other by chance."""


@dataclass(frozen=True)
class Row:
    """What the step does at a loss scale, in a format ("" where it is the policy's own).

    `flushed` and `subnormal` are shares of the nonzero results of backward ops, `overflowed` is the
    number of results, forward and backward, that overflowed, and `error` the relative error of the
    gradient: infinite where it has a NaN or an infinity, 1 where all of it is zero.  `refused` says
    why there are no numbers, where the policy has no answer in that format.
    """

    format: str
    scale: float
    flushed: float
    subnormal: float
    overflowed: int
    error: float
    refused: str = ""


def scan_scales(moment: Moment, exponents: Iterable[int] = EXPONENTS) -> list[Row]:
    """Return a row for each loss scale 2^k, whatever the moment's own is."""
    truth = moment.reference()
    return [_row(moment.at(scale=2.0**k), truth) for k in exponents]


def scan_formats(moment: Moment, formats: Iterable[str] = FORMATS) -> list[Row]:
    """Return a row for each format in the place of the policy's low one, at the moment's loss scale.

    Raises `ValueError` for an unknown format.
    """
    truth = moment.reference()
    names = [format(name).name for name in formats]
    return [_row(moment.at(policy=in_format(moment.policy, n)), truth, n) for n in names]


def _row(moment: Moment, truth: Values, name: str = "") -> Row:
    counters = Counters(histograms=False)
    try:
        error = relative_error(moment.gradients(observers=[counters]), truth)
    except ValueError as reason:  # "widest" among formats with shared scales
        nan = float("nan")
        return Row(name, moment.scale, nan, nan, 0, nan, str(reason))
    backward = counters.total(phase="backward")
    overflowed = counters.total().overflowed
    return Row(
        name, moment.scale, backward.flushed_share, backward.subnormal_share, overflowed, error
    )


def in_format(policy: Policy, name: str) -> Policy:
    """Return a policy with one format wherever it has one that is coarser than fp32.

    Where nothing is, activations and both kinds of gradients get it.  Rounding modes stay as they
    are; a rule for overflow goes with the format that it was for.
    """

    def changed(precision: Precision) -> Precision:
        if not is_low(precision):
            return precision
        return Precision(format(name).name, precision.rounding)

    roles: dict[str, Any] = {role: getattr(policy, role) for role in PHASES}
    named = [*roles.values(), *(p for r in policy.rules for p in r.precisions)]
    if not any(map(is_low, named)):
        wanted = Precision(format(name).name)
        return replace(policy, activations=wanted, gradients=wanted, weight_gradients=wanted)
    rules = tuple(rule.with_precisions(changed) for rule in policy.rules)
    roles = {role: changed(precision) for role, precision in roles.items()}
    return replace(policy, rules=rules, **roles)


def is_low(precision: Precision) -> bool:
    """Return whether a precision is of a format with fewer significand bits than fp32's 24."""
    if precision.format in FOLLOWING:
        return False
    return element_of(format(precision.format)).precision < 24


def plateau(rows: Iterable[Row]) -> tuple[float, float] | None:
    """Return the smallest and the largest loss scale of the best run of rows; None if none is finite.

    It is the run around the row with the least error, as long as errors stay within `CLOSE` times.
    """
    ordered = sorted(rows, key=lambda row: row.scale)
    least = min((row.error for row in ordered), default=float("inf"))
    if least == float("inf"):
        return None
    good = [row.error <= CLOSE * least for row in ordered]
    at = next(i for i, row in enumerate(ordered) if row.error == least)
    first = last = at
    while first and good[first - 1]:
        first -= 1
    while last + 1 < len(ordered) and good[last + 1]:
        last += 1
    return ordered[first].scale, ordered[last].scale


def headroom(rows: Iterable[Row], scale: float) -> tuple[float, float] | None:
    """Return how many times a loss scale may be halved, and doubled, and still be as good.

    Negative where it is outside the plateau already; None where there is none.
    """
    if (found := plateau(rows)) is None:
        return None
    low, high = found
    return log2(scale / low), log2(high / scale)
