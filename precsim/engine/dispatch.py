"""The funnel: the one function through which every op of every phase passes.

Compute in the carrier, round once to the format that the policy names, tell whoever listens, write
it on the tape.  Forward, backward and optimizer all come through here, so nothing rounds, or
escapes rounding, in secret.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from precsim.backend.random import key, words
from precsim.engine.arithmetic import Arithmetic, Array
from precsim.engine.context import Context, current
from precsim.engine.policy import Decision
from precsim.engine.precision import Accumulator, Precision
from precsim.engine.rule import MADE_AS, Saved
from precsim.engine.tally import Tally
from precsim.engine.tape import OPS, Node, Primitive, Vjp
from precsim.engine.tensor import Tensor, as_tensor
from precsim.formats.arrays import array_module
from precsim.formats.blocks import quantize_into
from precsim.formats.format import Format
from precsim.formats.kernels import round_quietly
from precsim.formats.quantize import quantize
from precsim.formats.registry import AnyFormat, format
from precsim.formats.scaled import Scaled, ScaleRule


class Event(NamedTuple):
    """One op as it happened, for observers; the arrays are the run's own and must not be written.

    `exact` is the result in the carrier, on operands that were rounded before; `rounded` what the
    format made of it.  `tally` is what was counted of that, if an observer asked for it; where all
    make do with it (see `Observer`), there need not be an `exact`: it may be None.  `path` names the
    site: role/scope/op, and `call` counts its runs in a step.  `input_formats` are those that the
    operands lie on (None: a constant); `factor` is what delayed scaling multiplied with, in a
    format that has it.  With `params` an observer can run the op again on `inputs`, in another
    arithmetic.
    """

    op: str
    kind: str
    phase: str
    role: str
    scope: str
    step: int
    path: str
    call: int
    format: AnyFormat
    precision: Precision
    inputs: tuple[Array, ...]
    exact: Any
    rounded: Array
    params: dict[str, Any]
    accumulator: Accumulator | None = None
    input_formats: tuple[AnyFormat | None, ...] = ()
    factor: float | None = None
    tally: Tally | None = None


def primitive(
    kind: str = "elementwise", vjps: tuple[Vjp, ...] = ()
) -> Callable[[Callable[..., Array]], Callable[..., Tensor]]:
    """Register a forward, ``f(arithmetic, *arrays, **params) -> new array``, with its backward rules.

    `vjps` has one rule per differentiable operand: ``(g, out, *operands, **params) -> gradient``.
    The forward of an op that is not a movement must return memory of its own (it is rounded in
    place).  Raises `ValueError` if the name is taken.
    """

    def register(forward: Callable[..., Array]) -> Callable[..., Tensor]:
        name = forward.__name__.rstrip("_")
        if name in OPS:
            msg = f"op {name!r} is registered already"
            raise ValueError(msg)

        def call(*operands: Any, **params: Any) -> Tensor:
            return dispatch(op, operands, params)

        call.__name__ = call.__qualname__ = name
        call.__doc__, call.__module__ = forward.__doc__, forward.__module__
        op = OPS[name] = Primitive(name, kind, forward, vjps, call)
        return call

    return register


def dispatch(op: Primitive, operands: tuple[Any, ...], params: dict[str, Any]) -> Tensor:
    """Run one op: cast operands, compute in the carrier, round once, tell observers, tape it."""
    context = current()
    inputs = _in_carrier(op, operands, context)
    if op.kind == "movement":
        xp = array_module(inputs[0].data)
        m = Arithmetic(xp, context.policy.carrier, pool=context.pool)
        there = params if xp is np else _moved_to(xp, params)
        moved = op.forward(m, *_arrays(inputs), **there)
        return _wrap(op, inputs, params, context, moved, _moved_format(op, inputs[0], params))
    decision: Decision | None
    if op.kind == "cast":
        decision = _decide_cast(inputs[0], params, context)
        if decision is None:
            return inputs[0]
    else:
        decision = context.policy.decide(op.name, op.kind, context.role, context.scope, inputs)
    arrived = inputs
    if decision.prepares:
        inputs = _cast(_rotated(inputs, decision), decision)
    rounded, event = _run(op, inputs, params, context, decision)
    if event is not None:
        for observe in context.observers:
            observe(event)
    saved = arrived if decision.saved is Saved.ORIGINAL else inputs
    return _wrap(op, saved, params, context, rounded, decision.format)


def _in_carrier(op: Primitive, operands: tuple[Any, ...], context: Context) -> tuple[Tensor, ...]:
    """Return the operands as tensors of the policy's carrier; those of another are carried over."""
    carrier = context.policy.carrier
    for x in operands:
        if type(x) is not Tensor or x.data.dtype != carrier:
            break
    else:
        return operands
    inputs = [as_tensor(x) for x in operands]
    if op.name != "carry":
        inputs = [x if x.data.dtype == carrier else _carried(x, carrier) for x in inputs]
    return tuple(inputs)


def _carried(x: Tensor, carrier: np.dtype[Any]) -> Tensor:
    """Carry a tensor over; one whose format the carrier cannot hold would be rounded unseen."""
    if x.format is not None:
        Precision(x.format.name).check(carrier)
    return OPS["carry"].call(x)


def _decide_cast(x: Tensor, params: dict[str, Any], context: Context) -> Decision | None:
    """A cast brings its own target; a gradient's the format to go back to if the policy lets it.

    None: x is in that format.
    """
    target, policy = params.get("to"), context.policy
    if target is None:
        if "like" not in params:
            msg = "cast: expected to=, a precision such as 'e5m2:saturate', or like=, a format"
            raise TypeError(msg)
        as_before = Tensor(x.data, params["like"], origin=x.origin)
        decision = policy.decide("cast", "cast", context.role, context.scope, (as_before,))
        return None if decision.format == x.format else decision
    wanted = Precision.parse(target)
    fmt = policy.resolve(wanted, (x.format,))
    return None if fmt is x.format or fmt == x.format else Decision((None,), wanted, fmt, None)


def _cast(inputs: tuple[Tensor, ...], decision: Decision) -> tuple[Tensor, ...]:
    """Cast the operands for which the policy wants another format, each in an op of its own."""
    pairs = zip(inputs, decision.casts, strict=True)
    return tuple(OPS["cast"].call(x, to=c) if c else x for x, c in pairs)


def _rotated(inputs: tuple[Tensor, ...], decision: Decision) -> tuple[Tensor, ...]:
    """Rotate both operands of a matmul along the contraction, where a rule asks for it."""
    if not decision.hadamard:
        return inputs
    left, right, *others = inputs
    rotate, size = OPS["hadamard"].call, decision.hadamard
    return (rotate(left, size=size, axis=-1), rotate(right, size=size, axis=-2), *others)


def _moved_format(op: Primitive, x: Tensor, params: dict[str, Any]) -> AnyFormat | None:
    """Return the format of moved values: blocks along a row run along a column after a transpose."""
    fmt = x.format
    if op.name != "swapaxes" or not isinstance(fmt, Scaled):
        return fmt
    exchanged = {params["first"] % x.ndim, params["second"] % x.ndim}
    return _transposed(fmt) if exchanged == {x.ndim - 2, x.ndim - 1} else fmt


@lru_cache(maxsize=64)
def _transposed(fmt: Scaled) -> AnyFormat:
    return format(fmt.transposed().spelled)


@np.errstate(all="ignore")  # overflow is the subject here, not an accident
def _run(
    op: Primitive,
    inputs: tuple[Tensor, ...],
    params: dict[str, Any],
    context: Context,
    decision: Decision,
) -> tuple[Array, Event | None]:
    """Compute in the carrier and round; say what happened if anybody observes."""
    path = f"{context.role}/{context.scope}/{op.name}"
    call = context.calls.get(path, 0)  # where it has none, a Counter would ask Python for 0
    context.calls[path] = call + 1
    arrays, draw = _arrays(inputs), None
    xp = array_module(arrays[0])
    if decision.draws or decision.accumulator is not None:
        draw = partial(_draw, context, path, call, xp)
    m = Arithmetic(xp, context.policy.carrier, decision.accumulator, draw, context.pool)
    there = params if xp is np else _moved_to(xp, params)
    exact = xp.asarray(op.forward(m, *arrays, **there), order="C")
    if not context.observers:
        return _round(op, exact, decision, context, m, inputs), None
    rounded, kept, factor, tally = _round_watched(op, exact, decision, context, m, inputs)
    formats: tuple[AnyFormat | None, ...] = ()
    for x in inputs:
        formats += (x.format,)
    return rounded, Event(
        op.name, op.kind, context.phase, context.role, context.scope, context.step, path, call,
        decision.format, decision.output, arrays, kept, rounded, params, decision.accumulator,
        formats, factor, tally,
    )  # fmt: skip


def _draw(
    context: Context, path: str, call: int, xp: Any, shape: tuple[int, ...], start: int,
    use: str = "/accumulate",
) -> Array:  # fmt: skip
    """Return random words `start`, `start` + 1, ... of one run of an op, keyed by its place."""
    return words(key(context.seed, path + use, context.step, call), shape, start, xp)


def _arrays(inputs: tuple[Tensor, ...]) -> tuple[Array, ...]:
    arrays: tuple[Array, ...] = ()
    for x in inputs:  # there are few: a comprehension takes longer to begin
        arrays += (x.data,)
    return arrays


def _moved_to(xp: Any, params: dict[str, Any]) -> dict[str, Any]:
    """Move arrays among the parameters to a device: tokens and masks are made on the host."""
    return {n: xp.asarray(p) if isinstance(p, np.ndarray) else p for n, p in params.items()}


def _round(
    op: Primitive,
    exact: Array,
    decision: Decision,
    context: Context,
    m: Arithmetic,
    inputs: tuple[Tensor, ...],
    *,
    keep: bool = False,
    tally: Tally | None = None,
) -> Array:
    """Round the result: in place, unless it is to be kept, or is the operand."""
    rounded = exact
    if keep or op.kind == "cast":
        rounded = Arithmetic(m.xp, exact.dtype, pool=m.pool).empty(exact.shape)
    fmt, rounding = decision.format, decision.output.rounding
    random = m.draw(exact.shape, 0, "") if decision.draws and m.draw else None
    if isinstance(fmt, Format):
        round_quietly(exact, rounded, fmt, rounding, decision.overflow, random, tally)
    elif fmt.rule is ScaleRule.DELAYED:
        place = _place(context, inputs)
        context.delays.see(place, exact, fmt.max)
        quantize_into(exact, rounded, fmt, rounding, random, context.delays.factor(place))
    else:
        quantize(exact, fmt, rounding, decision.output.overflow, random, out=rounded)
    return rounded


def _place(context: Context, inputs: tuple[Tensor, ...]) -> str:
    """Return where a tensor's factor of delayed scaling is kept: its scope, and what it is there."""
    return f"{context.scope}/{inputs[0].origin}"


def _round_watched(
    op: Primitive,
    exact: Array,
    decision: Decision,
    context: Context,
    m: Arithmetic,
    inputs: tuple[Tensor, ...],
) -> tuple[Array, Array | None, float | None, Tally | None]:
    """Round the result; return also the result as it was, if that is kept, and what was counted.

    What observers need decides whether it is kept, and whether it is counted on the way.  Between
    the two comes the factor of delayed scaling.
    """
    fmt, keep, counted, histogram = decision.format, False, False, False
    for observe in context.observers:
        needs = getattr(observe, "needs", "exact")
        keep, counted = keep or needs == "exact", counted or needs != "exact"
        histogram = histogram or needs == "hist"
    plain = isinstance(fmt, Format)
    tally = Tally(fmt, exact.dtype, histogram=histogram) if counted and plain else None
    keep = keep or tally is None
    rounded = _round(op, exact, decision, context, m, inputs, keep=keep, tally=tally)
    delayed = isinstance(fmt, Scaled) and fmt.rule is ScaleRule.DELAYED
    factor = context.delays.factor(_place(context, inputs)) if delayed else None
    if counted and tally is None and exact.size:
        tally = Tally.of(exact, rounded, fmt, histogram=histogram, factor=factor)
    return rounded, exact if keep else None, factor, tally


def _wrap(
    op: Primitive,
    inputs: tuple[Tensor, ...],
    params: dict[str, Any],
    context: Context,
    data: Array,
    fmt: AnyFormat | None,
) -> Tensor:
    """Make the result a tensor, with a node on the tape if a gradient must come back through it."""
    moved = op.kind in ("movement", "cast")
    origin = inputs[0].origin if moved else MADE_AS[context.role]
    if context.taping and _needs_gradient(op, inputs):
        node = Node(op, inputs, params, context.scope)
        return Tensor(data, fmt, requires_grad=True, node=node, origin=origin)
    return Tensor(data, fmt, origin=origin)


def _needs_gradient(op: Primitive, inputs: tuple[Tensor, ...]) -> bool:
    """Whether a gradient comes back to any operand that the op has a rule for."""
    for x, _ in zip(inputs, op.vjps, strict=False):  # noqa: SIM110  (`any` takes as long as the op)
        if x.requires_grad:
            return True
    return False
