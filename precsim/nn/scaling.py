"""Loss scaling: multiply the loss by S, so that small gradients survive fp16, and divide afterwards.

Backpropagation is linear, so every gradient comes out S times too large and, in exact arithmetic,
nothing changes; in fp16, gradients below 2^-24 become numbers instead of zeros.  Too large an S
overflows instead.  Dynamic scaling searches the edge: it halves S and skips the update when a
gradient is not finite, and doubles S after `interval` clean steps (Micikevicius et al. 2018).

The frameworks agree on the idea and differ in everything else: one class holds what they differ in,
and `PRESETS` says what each chose.  All classes here are frozen; `adjust` returns the next state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from math import inf, isfinite, isnan
from typing import Any

import numpy as np

from precsim.engine import ops
from precsim.formats.quantize import quantize
from precsim.nn import optim
from precsim.nn.optim import Tensors

LARGEST = float(np.finfo(np.float32).max)


class LossScaleError(ArithmeticError):
    """The scaler gives up, as the framework that it is taken from does; the message says why."""


def _single(x: float) -> float:
    """Return the nearest float32 number."""
    return float(quantize(x, "fp32"))


def _check_scale(scale: float) -> None:
    if not (isfinite(scale) and scale > 0):
        msg = f"loss scale must be a positive number; got {scale}"
        raise ValueError(msg)


@dataclass(frozen=True)
class NoScale:
    """The loss as it is; an update with a gradient that is not finite is not skipped."""

    scale: float = 1.0
    skips: bool = False

    def adjust(self, finite: bool) -> NoScale:
        """Return the same."""
        return self

    def __str__(self) -> str:
        return "none"


@dataclass(frozen=True)
class StaticScale:
    """A constant scale; an update with a gradient that is not finite is not skipped."""

    scale: float = 1024.0
    skips: bool = False

    def __post_init__(self) -> None:
        _check_scale(self.scale)

    def adjust(self, finite: bool) -> StaticScale:
        """Return the same."""
        return self

    def __str__(self) -> str:
        return f"static:{self.scale:.17g}"


CHOICES = {
    "at_minimum": ("clamp", "raise", "raise_below"),
    "at_maximum": ("keep", "clamp"),
    "refill": ("growth", "clean"),
    "check": ("elements", "sum", "norm"),
    "when": ("scaled", "unscaled"),
    "unscale": ("multiply", "divide"),
    "arithmetic": ("fp32", "fp64"),
}


@dataclass(frozen=True)
class DynamicScale:
    """Halve on overflow and skip the update; double after `interval` clean steps in a row.

    The defaults are PyTorch 2.13's GradScaler: no floor, so the 166th overflow in a row takes 65536
    to 0, and growth to infinity does not happen.  What others do otherwise has a field each:

    - `minimum`, `at_minimum`: the scale stops there ("clamp"), an overflow there raises
      `LossScaleError` ("raise"), or coming down to it does ("raise_below").
    - `maximum`, `at_maximum`: growth beyond it does not happen ("keep"), or ends there ("clamp").
    - `settle`: clean steps, at the start and after each overflow, that do not count.
    - `hysteresis`: the overflow that is the first to halve, counted from the last `refill`, which is
      when the scale grows ("growth") or also whenever a step is clean ("clean").
    - `check`: what must be finite: every element, the sum of each gradient, or the norm of all.
    - `when`: whether the gradients are looked at before ("scaled") or after unscaling ("unscaled").
    - `unscale`: times fp32(1 / scale), which is infinite from 2^-128 down, or a division.
    - `arithmetic`: the scale is a float32 number, or a Python float (fp64).

    `clean_steps` and `tolerated` (overflows passed over since the last refill) are the state.
    """

    scale: float = 65536.0
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000
    minimum: float = 0.0
    clean_steps: int = 0
    skips: bool = True
    at_minimum: str = "clamp"
    maximum: float = LARGEST
    at_maximum: str = "keep"
    settle: int = 0
    hysteresis: int = 1
    refill: str = "growth"
    check: str = "elements"
    when: str = "scaled"
    unscale: str = "multiply"
    arithmetic: str = "fp32"
    tolerated: int = 0

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                msg = f"{name} of a loss scale: expected one of {allowed}; got {getattr(self, name)!r}"
                raise ValueError(msg)
        object.__setattr__(self, "scale", self._number(self.scale))
        if self.scale not in (0, self.maximum):
            _check_scale(self.scale)
        if not (self.growth >= 1 and 0 < self.backoff <= 1 and self.interval >= 1):
            msg = (
                "dynamic loss scale: expected growth >= 1, 0 < backoff <= 1 and interval >= 1; "
                f"got {self.growth}, {self.backoff} and {self.interval}"
            )
            raise ValueError(msg)
        if isnan(self.minimum) or not 0 <= self.minimum <= self.maximum:
            msg = (
                "dynamic loss scale: expected 0 <= minimum <= maximum; "
                f"got {self.minimum} and {self.maximum}"
            )
            raise ValueError(msg)
        if self.settle < 0 or self.hysteresis < 1:
            msg = (
                "dynamic loss scale: expected settle >= 0 and hysteresis >= 1; "
                f"got {self.settle} and {self.hysteresis}"
            )
            raise ValueError(msg)

    def adjust(self, finite: bool) -> DynamicScale:
        """Return the state after a step whose gradients were all finite, or were not.

        Raises `LossScaleError` at the floor where the scaler is one that does.
        """
        return self._after_clean_step() if finite else self._after_overflow()

    @property
    def inverse(self) -> float:
        """What unscaling multiplies by: the float32 number nearest to 1 / scale.

        Infinite for a scale of 0 or at most 2^-128.  Where the scale is a Python float, dividing by
        0 raises, here a `LossScaleError`.
        """
        if self.scale == 0 and self.arithmetic == "fp64":
            msg = (
                "the loss scale has come down to 0, and 1 / 0 raises ZeroDivisionError here: no "
                "scale cures an overflow in the forward pass; look for its first op, or set minimum=1"
            )
            raise LossScaleError(msg)
        return _single(1 / self.scale) if self.scale else inf

    def _after_overflow(self) -> DynamicScale:
        restarted = replace(self, clean_steps=-self.settle)
        if self.tolerated + 1 < self.hysteresis:
            return replace(restarted, tolerated=self.tolerated + 1)
        if self.at_minimum == "raise" and self.scale == self.minimum:
            msg = (
                f"overflow at the smallest loss scale, {self.minimum:g}: a smaller one would not "
                "help if the forward pass overflows; look for the first op that is not finite"
            )
            raise LossScaleError(msg)
        lower = self._number(self.scale * self.backoff)
        if self.at_minimum == "raise_below" and lower <= self.minimum:
            msg = (
                f"the loss scale would come down to {lower:g}, and {self.minimum:g} is the limit: "
                "the loss is probably exploding; try a lower learning rate or clipping"
            )
            raise LossScaleError(msg)
        return replace(restarted, scale=max(lower, self.minimum))

    def _after_clean_step(self) -> DynamicScale:
        tolerated = 0 if self.refill == "clean" else self.tolerated
        if self.clean_steps + 1 < self.interval:
            return replace(self, clean_steps=self.clean_steps + 1, tolerated=tolerated)
        grown = self._number(self.scale * self.growth)
        if grown > self.maximum:
            grown = self.scale if self.at_maximum == "keep" else self.maximum
        return replace(self, scale=grown, clean_steps=0, tolerated=0)

    def _number(self, x: float) -> float:
        return _single(x) if self.arithmetic == "fp32" else float(x)

    def __str__(self) -> str:
        text = f"dynamic:{self.scale:.17g}:{self.interval}"
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name not in _POSITIONAL + _STATE and value != f.default:
                text += f":{f.name}={value:.17g}" if f.type == "float" else f":{f.name}={value}"
        return text


_POSITIONAL = ("scale", "interval")
_STATE = ("clean_steps", "tolerated", "skips")

LossScale = NoScale | StaticScale | DynamicScale

PRESETS: dict[str, DynamicScale] = {
    "dynamic": DynamicScale(),
    # torch/amp/grad_scaler.py and AmpGradScalerKernels.cpp, PyTorch 2.13.
    "torch": DynamicScale(),
    # apex/amp/scaler.py, last in NVIDIA/apex before cb65b8ed (May 2025).  With the fused kernel;
    # the Python fallback looks at sums (check=sum).
    "apex": DynamicScale(maximum=2.0**24, at_maximum="clamp", arithmetic="fp64"),
    # keras/src/optimizers/loss_scale_optimizer.py, 3422977a: no ceiling either, so it can be inf.
    "keras": DynamicScale(2.0**15, maximum=inf, unscale="divide"),
    # flax/training/dynamic_scale.py, 18f8f311: compares before it counts, so step 2001 grows.
    "flax": DynamicScale(
        interval=2001, minimum=2.0**-126, at_maximum="clamp", when="unscaled", unscale="divide"
    ),
    # jmp/_src/loss_scale.py, 9c1cdbbf; the initial scale is the user's, 2^15 in its documentation.
    "jmp": DynamicScale(2.0**15, minimum=1.0, when="unscaled"),
    # deepspeed/runtime/fp16/loss_scaler.py, 18fd4c97, with the defaults of its fp16 configuration:
    # the first clean step after an overflow does not count; one overflow is passed over.
    "deepspeed": DynamicScale(
        interval=1000, minimum=1.0, at_minimum="raise", maximum=inf, settle=1, clean_steps=-1,
        hysteresis=2, check="sum", arithmetic="fp64",
    ),
    # fairseq/optim/dynamic_loss_scaler.py, 0d77035e; the norm is that of the scaled gradients, whose
    # multiplication by 1 / scale waits until the update.
    "fairseq": DynamicScale(
        2.0**15, minimum=1e-4, at_minimum="raise_below", maximum=inf, check="norm",
        arithmetic="fp64",
    ),
}  # fmt: skip
"""The loss scalers of the field; "dynamic" is PyTorch's."""


def unscale(scaler: LossScale, gradients: Tensors, times: float = 1.0) -> tuple[Tensors, bool]:
    """Return the gradients divided by the scale, times `times`, and whether the scaler calls them
    finite: it may look at them before unscaling, and then not see what unscaling does to them.

    Each is an op of the funnel, in the policy's `update` format; times 1 costs none.
    """
    if not isinstance(scaler, DynamicScale):
        gradients = optim.multiply(gradients, times / scaler.scale)
        return gradients, optim.all_finite(gradients)
    finite = _is_finite(scaler.check, gradients) if scaler.when == "scaled" else True
    if scaler.unscale == "divide":
        gradients = optim.multiply(_divide(gradients, scaler.scale), times)
    else:
        gradients = optim.multiply(gradients, scaler.inverse * times)
    if scaler.when == "unscaled":
        finite = _is_finite(scaler.check, gradients)
    return gradients, finite


def parse(text: str | LossScale) -> LossScale:
    """Read "none", "static:1024", or a dynamic scale: a name of `PRESETS`, then perhaps its initial
    scale, interval, and fields of `DynamicScale`: "torch", "keras:32768:100", "torch:minimum=1".

    Raises `ValueError` for anything else.
    """
    if not isinstance(text, str):
        return text
    kind, *words = text.split(":")
    try:
        match kind, words:
            case "none", []:
                return NoScale()
            case "static", [scale]:
                return StaticScale(float(scale))
            case _ if kind in PRESETS:
                changes = _read_fields(words)
                preset = replace(PRESETS[kind], **changes)
                return replace(preset, clean_steps=-preset.settle)
    except ValueError as error:
        msg = f"loss scale {text!r}: {error}"
        raise ValueError(msg) from None
    msg = f"loss scale {text!r}: {_EXPECTED}"
    raise ValueError(msg)


_EXPECTED = (
    "expected none, static:SCALE, dynamic or dynamic:SCALE:INTERVAL; "
    f"{', '.join(list(PRESETS)[1:])} may stand in dynamic's place, field=value may follow"
)


def _read_fields(words: list[str]) -> dict[str, Any]:
    """Read "SCALE", "INTERVAL", then "field=value"."""
    changes: dict[str, Any] = {}
    types = {f.name: str(f.type) for f in fields(DynamicScale) if f.name not in _STATE}
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        if not equals:
            if position >= len(_POSITIONAL):
                raise ValueError(_EXPECTED)
            name, value = _POSITIONAL[position], word
        if name not in types:
            msg = f"unknown field {name!r}: expected one of {', '.join(types)}"
            raise ValueError(msg)
        read: dict[str, Callable[[str], Any]] = {"float": float, "int": int, "str": str}
        changes[name] = read[types[name]](value)
    if "scale" in changes:
        _check_scale(changes["scale"])
    return changes


def _divide(gradients: Tensors, scale: float) -> Tensors:
    divided = {}
    for name, gradient in gradients.items():
        with optim.update_of(f"unscale.{name}"):
            divided[name] = ops.div(gradient, scale)
    return divided


def _is_finite(check: str, gradients: Tensors) -> bool:
    """Judge by elements, by the float32 sum of each gradient, or by the float32 norm of all."""
    if check == "elements":
        return optim.all_finite(gradients)
    with np.errstate(all="ignore"):
        single = [g.data.astype(np.float32) for g in gradients.values()]
        if check == "sum":
            return all(isfinite(float(g.sum())) for g in single)
        return isfinite(float(np.sqrt(sum((g * g).sum() for g in single))))
