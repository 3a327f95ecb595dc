"""Rules of a policy: what holds for some ops, roles and scopes, and not for the others."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

from precsim.engine.precision import Accumulator, Precision

PHASES = {
    "activations": "forward",
    "loss": "forward",
    "gradients": "backward",
    "weight_gradients": "backward",
    "update": "update",
    "optimizer_state": "update",
    "master_weights": "update",
    "weights": "update",
}
"""Role of a tensor -> phase of the training step in which it is made."""

_PATTERN = re.compile(r"[^\s,]+")

PRECISIONS = ("inputs", "weight_inputs", "gradient_inputs", "output")
"""Fields of a rule that are precisions."""


class Origin(StrEnum):
    """What an operand of an op is, as far as rules tell operands apart."""

    INPUT = "input"
    WEIGHT = "weight"
    """A parameter, or what was only cast or moved from one."""
    GRADIENT = "gradient"
    """Made in the backward pass; a weight that is transposed there stays a weight."""


MADE_AS = {
    role: Origin.GRADIENT if phase == "backward" else Origin.INPUT for role, phase in PHASES.items()
}
"""Role of a tensor -> what it is to rules when an op has made it."""


class Saved(StrEnum):
    """Which operands of an op the backward pass sees."""

    CAST = "cast"
    """Those that the op computed with: a tensor is quantized once, as under PyTorch's autocast."""
    ORIGINAL = "original"
    """Those that arrived: each matmul of the backward pass quantizes them anew, by its own rule."""


@dataclass(frozen=True)
class Rule:
    """An exception to the roles' formats, for the ops, roles and scopes that match (globs).

    `op` matches an op's name or its kind ("elementwise", "matmul", "reduction", "kernel").
    `inputs` casts the operands first, `weight_inputs` and `gradient_inputs` those that are weights
    or gradients (None: as the others), each in an op of its own, visible in a trace; `output` and
    `accumulator` replace the role's.
    In a matmul with shared scales these run along the contraction (`Precision.for_operand`):
    ``inputs=e4m3:1x128,weight_inputs=e4m3:128x128`` is right for activations times weights, for
    gradients times transposed weights, and for transposed activations times gradients.
    `hadamard` (0: none) first rotates both operands of a matmul, in blocks of that length along the
    contraction, which leaves their product as it is and spreads outliers (`ops.hadamard`).
    `saved` says what the backward pass of the op works with, see `Saved`.  A rule for one of the
    roles weights, master_weights and optimizer_state says how those in its scope are kept
    (`Policy.stored`): ``role=weights,scope=*.bias,output=bf16``.
    Raises `ValueError` for a role that there is not, patterns with spaces or commas, and a length
    that is no power of two.
    """

    op: str = "*"
    role: str = "*"
    scope: str = "*"
    inputs: Precision | None = None
    weight_inputs: Precision | None = None
    gradient_inputs: Precision | None = None
    output: Precision | None = None
    accumulator: Accumulator | None = None
    hadamard: int = 0
    saved: Saved = Saved.CAST

    def __post_init__(self) -> None:
        for name in ("op", "role", "scope"):
            if not _PATTERN.fullmatch(getattr(self, name)):
                msg = f"rule {name}={getattr(self, name)!r}: expected no spaces and no commas"
                raise ValueError(msg)
        if not any(fnmatchcase(role, self.role) for role in PHASES):
            msg = f"rule role={self.role}: expected a pattern for one of {', '.join(PHASES)}"
            raise ValueError(msg)
        for name in PRECISIONS:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, present(name, Precision.parse(value)))
        if self.accumulator is not None:
            object.__setattr__(self, "accumulator", Accumulator.parse(self.accumulator))
        object.__setattr__(self, "hadamard", _block_length(self.hadamard))
        if self.saved not in set(Saved):
            msg = f"unknown rule saved={self.saved!r}: expected {' or '.join(Saved)}"
            raise ValueError(msg)
        object.__setattr__(self, "saved", Saved(self.saved))

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Every precision that it names, for operands and for the output."""
        named = (getattr(self, name) for name in PRECISIONS)
        return tuple(p for p in named if p is not None)

    def with_precisions(self, change: Callable[[Precision], Precision]) -> Rule:
        """Return the rule with every precision that it names replaced by ``change(precision)``."""
        named = {name: getattr(self, name) for name in PRECISIONS}
        changed: dict[str, Any] = {n: change(p) for n, p in named.items() if p is not None}
        return replace(self, **changed)

    def cast_of(self, origin: Origin) -> Precision | None:
        """Return what an operand is cast to first; None: it stays as it is."""
        special = {Origin.WEIGHT: self.weight_inputs, Origin.GRADIENT: self.gradient_inputs}
        return special.get(origin) or self.inputs

    def matches(self, op: str, kind: str, role: str, scope: str) -> bool:
        """Return whether the rule speaks about this op."""
        return (
            (fnmatchcase(op, self.op) or fnmatchcase(kind, self.op))
            and fnmatchcase(role, self.role)
            and fnmatchcase(scope, self.scope)
        )

    def __str__(self) -> str:
        set_fields = ((f.name, getattr(self, f.name), f.default) for f in fields(self))
        words = [f"{name}={value}" for name, value, default in set_fields if value != default]
        return ",".join(words) or "op=*"

    @classmethod
    def parse(cls, text: str | Rule) -> Rule:
        """Read what `str` wrote: "op=matmul,inputs=e4m3:tensor,output=bf16"."""
        if isinstance(text, Rule):
            return text
        return cls(**read_fields(text.split(","), cls, "rule"))


def read_fields(pairs: list[str], cls: type, what: str) -> dict[str, Any]:
    """Split "key=value" words; raise `ValueError` for a key that is no field of `cls`."""
    known = [f.name for f in fields(cls)]
    read: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key not in known:
            msg = f"unknown {what} entry {pair!r}: expected key=value with a key of {', '.join(known)}"
            raise ValueError(msg)
        if key in read:
            msg = f"{what} entry {key!r} came twice, as {read[key]!r} and {value!r}: expected once"
            raise ValueError(msg)
        read[key] = value
    return read


def _block_length(value: int | str) -> int:
    """Return the length of a Hadamard block: 0, or a power of two."""
    length = int(value) if str(value).isdecimal() else -1
    if length < 0 or length & (length - 1):
        msg = f"rule hadamard={value}: expected 0 or a power of two, such as 16"
        raise ValueError(msg)
    return length


def present(name: str, precision: Precision) -> Precision:
    """Return a precision that must be one; raise `ValueError` for "none"."""
    if precision.format == "none":
        msg = f"{name}=none: only master_weights can be absent; expected a format"
        raise ValueError(msg)
    return precision
