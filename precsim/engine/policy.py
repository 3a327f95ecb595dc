"""A policy says in which format every tensor lives: weights, activations, gradients, states.

It is a frozen value: print it, compare it, change one field with `dataclasses.replace`, parse it
back from its string.  Every tensor that an op makes plays one *role* (below), and each role has a
field here of the same name.  Rules refine that by op, role and scope, which is how op lists in the
manner of PyTorch's autocast are written.

    Policy.parse("activations=fp16 gradients=fp16 weights=fp16 master_weights=fp32")
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from precsim.engine.delayed import Delayed
from precsim.engine.precision import FOLLOWING, Accumulator, Precision
from precsim.engine.rule import PHASES, Origin, Rule, Saved, present, read_fields
from precsim.formats.modes import Overflow
from precsim.formats.registry import AnyFormat, element_of, format

if TYPE_CHECKING:
    from precsim.engine.tensor import Tensor

CARRIERS: dict[str, np.dtype[Any]] = {"exact": np.dtype(np.float64), "fast": np.dtype(np.float32)}


class Granularity(StrEnum):
    """Where softmax, layer norm, GELU, cross-entropy and a linear layer's bias round."""

    KERNEL = "kernel"
    """Once, at the output, as a fused kernel does that is wide inside."""
    PRIMITIVE = "primitive"
    """After every elementary step, as the formula in a textbook would be run."""
    TORCH = "torch"
    """As "kernel", but cross-entropy is two, log_softmax and nll_loss, as in PyTorch."""


@dataclass(frozen=True)
class Decision:
    """What `Policy.decide` says about one op: operand casts, output format, accumulator.

    `hadamard` and `saved` are a rule's (`Rule`).
    """

    casts: tuple[Precision | None, ...]
    output: Precision
    format: AnyFormat
    accumulator: Accumulator | None
    hadamard: int = 0
    saved: Saved = Saved.CAST

    @cached_property
    def prepares(self) -> bool:
        """Whether anything is done to the operands first."""
        return bool(self.hadamard) or any(self.casts)

    @cached_property
    def draws(self) -> bool:
        """Whether rounding the output needs random words."""
        return self.output.by_chance

    @cached_property
    def overflow(self) -> Overflow:
        """What becomes of values beyond the output format's largest."""
        has_nan = element_of(self.format).has_nan
        return (self.output.overflow or Overflow.IEEE) if has_nan else Overflow.SATURATE


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The formats of one training run, by role; strings are accepted and parsed.

    ``Policy(weights="bf16")`` is fp32 but for the weights; all in one format is ``uniform("bf16")``.

    A value is a `Precision`: "fp16", "e5m2:saturate", "int8:row:stochastic", or "widest": the
    widest format among the inputs, so that ops follow their operands as in PyTorch; a gradient then
    gets the format of its tensor (shared scales apart).
    `weights` is the copy that the forward pass reads; `master_weights` the copy that the optimizer
    updates ("none": it updates `weights` itself); `loss` the loss after scaling; `update` the
    arithmetic of the optimizer.  `initial_weights` is a format that a model's weights pass through
    before they are stored: a master copy made after `model.half()` starts from rounded weights.
    `delayed` says how the factors of "e4m3:delayed" follow from earlier steps (`Delayed`).
    `accumulator` (None: as wide as the carrier) narrows the running sum inside matmuls and sums.

    `arithmetic="exact"` computes in float64 and rounds once: right for every format up to fp32, in
    every rounding mode, but for one case: of two addends more than 2^53 apart (possible from 8
    exponent bits on) the smaller is lost before a directed mode can see its sign.  "fast" computes
    in float32: for + - * / sqrt still right for rounding to nearest with at most 11 significand
    bits (Figueroa 1995: 2p + 2 <= 24); directed and stochastic modes and tf32's subnormal products
    then see an operand that was rounded once already.

    Raises `ValueError` for unknown formats, roles, arithmetic or granularity, and for fp64 in
    "fast" arithmetic.
    """

    weights: Precision = field(default=Precision("fp32"))
    activations: Precision = field(default=Precision("fp32"))
    loss: Precision = field(default=Precision("fp32"))
    gradients: Precision = field(default=Precision("fp32"))
    weight_gradients: Precision = field(default=Precision("fp32"))
    update: Precision = field(default=Precision("fp32"))
    optimizer_state: Precision = field(default=Precision("fp32"))
    master_weights: Precision = field(default=Precision("none"))
    initial_weights: Precision | None = None
    accumulator: Accumulator | None = None
    rules: tuple[Rule, ...] = ()
    arithmetic: str = "exact"
    granularity: Granularity = Granularity.KERNEL
    delayed: Delayed = field(default=Delayed())

    def __new__(cls, *formats: object, **fields: object) -> Self:
        """Say which of the two a format without a name may have meant."""
        if formats:
            msg = (
                f"Policy takes named fields, such as activations={formats[0]!r}; got {formats[0]!r} "
                "alone: Policy.uniform has one format for all, Policy.parse reads a policy's text"
            )
            raise TypeError(msg)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for role in PHASES:
            precision = Precision.parse(getattr(self, role))
            if role != "master_weights":
                present(role, precision)
            object.__setattr__(self, role, precision)
        if self.initial_weights is not None:
            initial = Precision.parse(self.initial_weights)
            if initial.format in FOLLOWING:
                msg = f"initial_weights={initial}: expected a format"
                raise ValueError(msg)
            object.__setattr__(self, "initial_weights", initial)
        if self.accumulator is not None:
            object.__setattr__(self, "accumulator", Accumulator.parse(self.accumulator))
        object.__setattr__(self, "rules", tuple(Rule.parse(r) for r in self.rules))
        if self.arithmetic not in CARRIERS:
            msg = f"unknown arithmetic {self.arithmetic!r}: expected 'exact' or 'fast'"
            raise ValueError(msg)
        if self.granularity not in set(Granularity):
            known = ", ".join(Granularity)
            msg = f"unknown granularity {self.granularity!r}: expected one of {known}"
            raise ValueError(msg)
        object.__setattr__(self, "granularity", Granularity(self.granularity))
        object.__setattr__(self, "delayed", Delayed.parse(self.delayed))
        for precision in self._precisions():
            precision.check(self.carrier)
        object.__setattr__(self, "_decided", {})  # of `decide`: the same few ops, step after step

    @classmethod
    def uniform(cls, fmt: str, **changes: object) -> Policy:
        """Everything in one format: weights, activations, gradients, updates, states, no master.

        `changes` are fields of `Policy` that differ, e.g. ``master_weights="fp32"``.
        """
        roles = dict.fromkeys(PHASES, fmt) | {"master_weights": "none"}
        return cls(**(roles | changes))  # type: ignore[arg-type]

    @cached_property
    def carrier(self) -> np.dtype[Any]:
        """Dtype in which ops are computed before they are rounded: float64 or float32."""
        return CARRIERS[self.arithmetic]

    @property
    def has_master(self) -> bool:
        """Whether the optimizer keeps a copy of the weights of its own."""
        return self.master_weights.format != "none"

    def stored(self, role: str, scope: str) -> Precision:
        """Return how a weight, a master copy or a state called `scope` is kept.

        That is the output of the first rule which names the role ("weights", not "*") and matches
        the scope: ``rule=role=weights,scope=*.bias,output=bf16``; else the role's own.
        """
        for rule in self.rules:
            if rule.output and rule.role != "*" and rule.matches("cast", "cast", role, scope):
                return rule.output
        return getattr(self, role)  # type: ignore[no-any-return]

    def follows(self, role: str) -> bool:
        """Return whether tensors in this role take their format from others ("widest")."""
        precision: Precision = getattr(self, role)
        return precision.format == "widest"

    def decide(
        self,
        op: str,
        kind: str,
        role: str,
        scope: str,
        operands: tuple[Tensor, ...],
    ) -> Decision:
        """Return what to do about one op, given the formats and origins of its operands.

        Raises `ValueError` where "widest" has no answer (e4m3 and e5m2: neither holds the other).
        """
        key: tuple[object, ...] = (op, role, scope)
        for x in operands:
            key += (x.format and x.format.name, x.origin)
        decided: dict[object, Decision] = self._decided  # type: ignore[attr-defined]
        found = decided.get(key)
        if found is None:
            formats, origins = tuple(x.format for x in operands), tuple(x.origin for x in operands)
            found = decided[key] = self._decide(op, kind, role, scope, formats, origins)
        return found

    def _decide(
        self,
        op: str,
        kind: str,
        role: str,
        scope: str,
        formats: tuple[AnyFormat | None, ...],
        origins: tuple[Origin, ...],
    ) -> Decision:
        rule = next((r for r in self.rules if r.matches(op, kind, role, scope)), Rule())
        casts: list[Precision | None] = []
        hadamard = rule.hadamard if kind == "matmul" else 0
        for position, (fmt, origin) in enumerate(zip(formats, origins, strict=True)):
            wanted = rule.cast_of(origin)
            if wanted is not None and kind == "matmul":
                wanted = wanted.for_operand(position)
            differs = wanted is not None and fmt is not None and wanted.resolve(formats) != fmt
            casts.append(wanted if differs or (hadamard and position < 2) else None)
        arriving = tuple(
            cast.resolve(formats) if cast else fmt for cast, fmt in zip(casts, formats, strict=True)
        )
        output = rule.output or getattr(self, role)
        accumulator = rule.accumulator or self.accumulator
        fmt = self.resolve(output, arriving)
        return Decision(tuple(casts), output, fmt, accumulator, hadamard, rule.saved)

    def resolve(self, precision: Precision, formats: tuple[AnyFormat | None, ...]) -> AnyFormat:
        """Return the format that a precision means; the widest of constants is the carrier's own."""
        if precision.format == "widest" and not any(formats):
            return format("fp32" if self.arithmetic == "fast" else "fp64")
        return precision.resolve(formats)

    def _precisions(self) -> list[Precision]:
        listed: list[Precision | None] = [getattr(self, role) for role in PHASES]
        listed.append(self.initial_weights)
        for rule in self.rules:
            listed += rule.precisions
        for unit in (self.accumulator, *(rule.accumulator for rule in self.rules)):
            if unit is not None:
                listed += [Precision(unit.format), Precision(unit.outer) if unit.chunk else None]
        return [p for p in listed if p is not None]

    def __repr__(self) -> str:
        return f"Policy.parse({str(self)!r})"

    def __str__(self) -> str:
        default = Policy()
        parts = [f"{role}={getattr(self, role)}" for role in PHASES]
        parts += [f"rule={rule}" for rule in self.rules]
        for name in ("initial_weights", "accumulator", "arithmetic", "granularity", "delayed"):
            if getattr(self, name) != getattr(default, name):
                parts.append(f"{name}={getattr(self, name)}")
        return " ".join(parts)

    @classmethod
    def parse(cls, text: str | Policy) -> Policy:
        """Read a policy from "role=format ..." pairs, or from one format name (`uniform`).

        Raises `ValueError` for an unknown key or value; `Policy.parse(str(p)) == p` for all p.
        """
        if isinstance(text, Policy):
            return text
        words = text.split()
        if len(words) == 1 and "=" not in words[0]:
            return cls.uniform(words[0])
        rules = tuple(Rule.parse(w.removeprefix("rule=")) for w in words if w.startswith("rule="))
        pairs = [w for w in words if not w.startswith("rule=")]
        return replace(cls(**read_fields(pairs, cls, "policy")), rules=rules)
