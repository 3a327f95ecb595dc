"""The funnel: the one function through which every op of every phase passes.

Compute in the carrier, round once to the format that the policy names, tell whoever listens, write
it on the tape.  Forward, backward and optimizer all come through here, so nothing rounds, or
escapes rounding, in secret.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from precsim.backend.random import key, words
from precsim.engine.arithmetic import Arithmetic, Array
from precsim.engine.context import Context, current
from precsim.engine.policy import Decision
from precsim.engine.precision import Precision
from precsim.engine.tape import OPS, Node, Primitive, Vjp
from precsim.engine.tensor import Tensor, as_tensor
from precsim.formats.arrays import array_module
from precsim.formats.kernels import round_into
from precsim.formats.modes import Overflow, Rounding
from precsim.formats.quantize import quantize
from precsim.formats.registry import AnyFormat
from precsim.formats.scaled import Scaled


@dataclass(frozen=True, slots=True)
class Event:
    """One op as it happened, for observers; the arrays are the run's own and must not be written.

    `exact` is the result in the carrier, on operands that were rounded before; `rounded` what the
    format made of it.  `path` names the site: role/scope/op, and `call` counts its runs in a step.
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
    exact: Array
    rounded: Array


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
    inputs = tuple(as_tensor(x) for x in operands)
    if op.name != "carry":
        inputs = tuple(_in_carrier(x) for x in inputs)
    xp = array_module(inputs[0].data)
    if op.kind == "movement":
        moved = op.forward(
            Arithmetic(xp, context.policy.carrier), *(t.data for t in inputs), **params
        )
        return _wrap(op, inputs, params, context, moved, inputs[0].format)
    decision = _decide(op, inputs, params, context)
    if op.kind == "cast" and decision.format == inputs[0].format:
        return inputs[0]
    if any(decision.casts):
        pairs = zip(inputs, decision.casts, strict=True)
        inputs = tuple(OPS["cast"].call(x, to=c) if c else x for x, c in pairs)
    path = f"{context.role}/{context.scope}/{op.name}"
    call = context.calls[path]
    context.calls[path] = call + 1

    def draw(shape: tuple[int, ...], start: int, use: str = "/accumulate") -> Array:
        return words(key(context.seed, path + use, context.step, call), shape, start, xp)

    arrays = tuple(t.data for t in inputs)
    with np.errstate(all="ignore"):  # overflow is the subject here, not an accident
        arithmetic = Arithmetic(xp, context.policy.carrier, decision.accumulator, draw)
        exact = op.forward(arithmetic, *arrays, **params)
    exact = xp.asarray(exact, order="C")
    watched = bool(context.observers)
    rounded = xp.empty_like(exact) if watched or op.kind == "cast" else exact
    stochastic = decision.output.rounding is Rounding.STOCHASTIC
    _round(exact, rounded, decision, draw(exact.shape, 0, "") if stochastic else None)
    if watched:
        event = Event(
            op.name, op.kind, context.phase, context.role, context.scope, context.step, path, call,
            decision.format, decision.output, arrays, exact, rounded,
        )  # fmt: skip
        for observe in context.observers:
            observe(event)
    return _wrap(op, inputs, params, context, rounded, decision.format)


def _decide(
    op: Primitive, inputs: tuple[Tensor, ...], params: dict[str, Any], context: Context
) -> Decision:
    """Ask the policy; a cast brings its own target, a gradient's cast the format to go back to."""
    formats = tuple(t.format for t in inputs)
    if op.kind == "cast":
        target = params.get("to")
        if target is not None:
            return Decision((None,), target, target.resolve(formats), None)
        formats = (params["like"],)
    gradients = tuple(t.is_gradient for t in inputs)
    return context.policy.decide(op.name, op.kind, context.role, context.scope, formats, gradients)


def _round(exact: Array, rounded: Array, decision: Decision, random: Array | None) -> None:
    """Round into `rounded`, which may be `exact` itself."""
    fmt, precision = decision.format, decision.output
    if isinstance(fmt, Scaled):
        quantize(exact, fmt, precision.rounding, precision.overflow, random, out=rounded)
        return
    overflow = precision.overflow
    if overflow is None or not fmt.has_nan:
        overflow = Overflow.IEEE if fmt.has_nan else Overflow.SATURATE
    round_into(exact, rounded, fmt, precision.rounding, overflow, random)


def _in_carrier(tensor: Tensor) -> Tensor:
    """Bring a tensor made under another arithmetic into this one, on the tape where it matters."""
    if tensor.data.dtype == current().policy.carrier:
        return tensor
    return OPS["carry"].call(tensor)


def _wrap(
    op: Primitive,
    inputs: tuple[Tensor, ...],
    params: dict[str, Any],
    context: Context,
    data: Array,
    fmt: AnyFormat | None,
) -> Tensor:
    """Make the result a tensor, with a node on the tape if a gradient must come back through it."""
    taped = context.taping and any(t.requires_grad for t in inputs[: len(op.vjps)])
    return Tensor(
        data,
        fmt,
        requires_grad=taped,
        node=Node(op, inputs, params, context.scope) if taped else None,
        is_weight=op.kind in ("movement", "cast") and inputs[0].is_weight,
        is_gradient=context.phase == "backward",
    )
