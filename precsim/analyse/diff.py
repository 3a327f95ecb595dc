"""Diff: one step under two policies, op by op, in units of the format's own roundoff.

The order of ops does not depend on the values, so the two runs' ops pair up one to one.  The first
run (a float64 reference, usually) is the truth; every op of the second is judged:

- *local* error: what this op's rounding did to its own exact result, a narrow accumulator's included;
- *total* error: how far its result is from the other run's, in units of u of its format;
- in the optimizer, the share of its *updates* that change nothing.

An op that rounds its inputs' errors through is "propagated"; one whose own rounding takes the error
well above what its inputs and one rounding explain is "generated here", and so is one that makes NaN
or infinities of finite inputs, where the first run has numbers; one that takes it there by
arithmetic alone is "amplified": by cancellation, to more than the policy's coarsest format explains,
or in the optimizer by dividing by what was flushed, to a multiple of the right result.  Weight
gradients are sums over a batch, which cancel the more the better a model is, in any format: they are
"amplified" where nothing is left of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from precsim.analyse.moment import REFERENCE, Moment, finest_unit, typical_error
from precsim.engine.dispatch import Event
from precsim.engine.policy import Policy
from precsim.engine.rule import PHASES
from precsim.formats.registry import element_of
from precsim.observe.counters import OpCounts, count
from precsim.observe.shadow import reference

Array = npt.NDArray[np.float64]


class Verdict(StrEnum):
    """What is wrong with an op, if anything."""

    OK = "ok"
    GENERATED = "generated here"
    LOST = "updates lost"
    AMPLIFIED = "amplified"
    PROPAGATED = "propagated"


@dataclass(frozen=True)
class Row:
    """One op of the second run beside the same op of the first; errors in units of `u`.

    `u` is the unit roundoff of the coarser of the op's two formats, or of the policy's finest where
    that is coarser still.

    `swamped` is the share of its nonzero updates that change nothing.  `local`: of its own
    rounding; `inputs`: largest total error among its operands; `expected`: what these and one
    rounding explain; `total`: what it is.  inf where a value is not finite.  `broken` counts values
    that are not finite where the first run's are.
    """

    index: int
    path: str
    call: int
    format: str
    u: float
    local: float
    inputs: float
    expected: float
    total: float
    flushed: float
    overflowed: int
    broken: int
    swamped: float
    same_bits: bool
    verdict: Verdict

    @property
    def of_optimizer(self) -> bool:
        """Whether it is an op of the optimizer, which is judged by what it loses."""
        return PHASES[self.path.partition("/")[0]] == "update"


@dataclass(frozen=True)
class Diff:
    """All ops in order; see `Row`."""

    rows: tuple[Row, ...]

    def __repr__(self) -> str:
        first = self.first_abnormal()
        told = f"the first abnormal one is {first.path}, {first.verdict}" if first else "all ok"
        return f"Diff({len(self.rows)} ops: {told})"

    def first_abnormal(self) -> Row | None:
        """Return the first op that is not ok."""
        return next((r for r in self.rows if r.verdict is not Verdict.OK), None)

    def first_difference(self) -> Row | None:
        """Return the first op whose bits differ."""
        return next((r for r in self.rows if not r.same_bits), None)

    def first_broken(self) -> Row | None:
        """Return the first op that has NaN or infinities where the first run has numbers."""
        return next((r for r in self.rows if r.broken), None)


LIMIT = 3.0
"""How many times the expected error an op may have before it is abnormal."""

NOTHING_LEFT = 1.0
"""Error, relative to the right result, above which nothing is left of a weight gradient."""

BLOWN_UP = 3.0
"""Error, relative to the right result, above which the optimizer's arithmetic blew something up.

Dividing gradients by their own size makes signs of them, and if all are wrong they are off by 2.
"""

LOST_LIMIT = 0.5
"""Share of an op's updates that may change nothing, unless rounding is by chance."""

LOCAL_LIMIT = 2.0
"""Own rounding error, in what one rounding explains (u, and of integers `_fitting`), above which an op
rounds worse than its format can."""


def diff(moment: Moment, low: Policy | str | None = None, high: Policy | str = REFERENCE) -> Diff:
    """Compare a moment's step under `low` (None: its own policy) with the same under `high`.

    An update of the weights is one, whichever of the two keeps a master copy to make it in.
    Raises `ValueError` where the two policies do not run the same ops (granularity, or casts that
    only one of them makes are left out of the comparison).
    """
    truth: dict[tuple[str, int], Event] = {}
    moment.gradients(high, observers=[lambda e: truth.update({_place(e): e})])
    rows: list[Row] = []
    judged = moment.policy if low is None else Policy.parse(low)
    finest, coarsest = finest_unit(judged), typical_error(judged)

    def judge(event: Event) -> None:
        other = truth.get(_place(event))
        if other is not None and other.rounded.shape == event.rounded.shape:
            healthy = all(r.verdict is Verdict.OK for r in rows)
            u = max(element_of(event.format).u, element_of(other.format).u, finest)
            rows.append(_row(len(rows), event, other, u, coarsest / u, healthy=healthy))

    moment.gradients(low, observers=[judge])
    if not rows:
        msg = "the two policies have no op in common: compare runs of the same granularity"
        raise ValueError(msg)
    return Diff(tuple(rows))


def _place(event: Event) -> tuple[str, int]:
    """Return what the same op of another policy has in common: a master copy is the weights."""
    master = event.role == "master_weights" and event.kind != "cast"
    return f"weights/{event.scope}/{event.op}" if master else event.path, event.call


def _row(
    index: int, event: Event, other: Event, u: float, coarsest: float, *, healthy: bool
) -> Row:
    exact, rounded = event.exact, event.rounded
    local = _error(rounded, exact) / u
    total = _error(rounded, other.rounded) / u
    pairs = zip(event.inputs, other.inputs, strict=False)
    inputs = max((_error(a, b) / u for a, b in pairs if a.shape == b.shape), default=0.0)
    rounding = max(1.0, _fitting(event) / u)
    expected = inputs + rounding
    if event.accumulator is not None:  # it rounds here as well, and float64's sum does not
        local, rounding = _error(rounded, reference(event)) / u, max(rounding, coarsest)
    nonzero = int(np.count_nonzero(exact))
    lost = nonzero - int(np.count_nonzero(rounded[exact != 0])) if nonzero else 0
    overflowed = int(np.count_nonzero(np.isfinite(exact) & ~np.isfinite(rounded)))
    broken = int(np.count_nonzero(np.isfinite(other.rounded) & ~np.isfinite(rounded)))
    counts = count(event, histogram=False) if event.op == "apply_update" else OpCounts()
    bearable = LIMIT * max(expected, LIMIT * coarsest)
    if event.role == "weight_gradients":
        bearable = max(bearable, NOTHING_LEFT / u)
    verdict = _verdict(local / rounding, total, bearable, overflowed, healthy=healthy)
    if event.phase == "update" and not (event.role == "weights" and event.kind == "cast"):
        verdict = _verdict_on_update(event, counts.swamped_share, overflowed)
        blown_up = np.isfinite(total) and total * u > BLOWN_UP and total > LIMIT * expected
        if verdict is Verdict.OK and event.role == "update" and blown_up:
            verdict = Verdict.AMPLIFIED
    if broken and not overflowed:
        came_in = not all(np.isfinite(array).all() for array in event.inputs)
        verdict = Verdict.PROPAGATED if came_in else Verdict.GENERATED
    return Row(
        index=index,
        path=event.path,
        call=event.call,
        format=event.format.name,
        u=u,
        local=local,
        inputs=inputs,
        expected=expected,
        total=total,
        flushed=lost / nonzero if nonzero else 0.0,
        overflowed=overflowed,
        broken=broken,
        swamped=counts.swamped_share,
        same_bits=bool(np.array_equal(rounded, other.rounded, equal_nan=True)),
        verdict=verdict,
    )


def _fitting(event: Event) -> float:
    """Return the relative error of half a step everywhere, with a scale that fits; 0 but for integers.

    An integer format's u is that of its largest value: steps are even, so the smaller values are
    beside that, the coarser is their rounding, and no scale can help.
    """
    fmt = element_of(event.format)
    if not fmt.is_integer:
        return 0.0
    size = np.abs(event.exact[np.isfinite(event.exact)])
    norm = float(np.linalg.norm(size))
    step = float(size.max(initial=0.0)) * fmt.quantum / fmt.max
    return 0.5 * step * float(np.sqrt(size.size)) / norm if norm else 0.0


def _verdict(
    local: float, total: float, bearable: float, overflowed: int, *, healthy: bool
) -> Verdict:
    """Judge one op; while all before it were ok (`healthy`), there is nothing to propagate.

    `local` in what one rounding explains, `total` in u, as `bearable` is, which arithmetic explains.
    """
    if overflowed or (local > LOCAL_LIMIT and total > LOCAL_LIMIT):
        return Verdict.GENERATED
    if np.isfinite(total) and total > bearable:
        return Verdict.AMPLIFIED
    if not healthy and not total <= LIMIT * LIMIT:
        return Verdict.PROPAGATED
    return Verdict.OK


def _verdict_on_update(event: Event, swamped: float, overflowed: int) -> Verdict:
    """Judge an op of the optimizer by what it loses.

    Not by its distance, short of `BLOWN_UP`: dividing a gradient by its own size makes any error as
    large as itself.
    """
    if overflowed:
        return Verdict.GENERATED
    by_chance = event.precision.by_chance
    return Verdict.LOST if swamped > LOST_LIMIT and not by_chance else Verdict.OK


def _error(measured: Array, truth: Array) -> float:
    """Return the relative error in the 2-norm; inf for NaN or infinities that the truth has not."""
    with np.errstate(all="ignore"):
        if np.array_equal(measured, truth, equal_nan=True):
            return 0.0
        e = float(np.linalg.norm((measured - truth).ravel()))
        size = float(np.linalg.norm(truth.ravel()))
    if not np.isfinite(e):
        return float("inf")
    return e / size if size else float("inf")
