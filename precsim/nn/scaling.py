"""Loss scaling: multiply the loss by S, so that small gradients survive fp16, and divide afterwards.

Backpropagation is linear, so every gradient comes out S times too large and, in exact arithmetic,
nothing changes; in fp16, gradients below 2^-24 become numbers instead of zeros.  Too large an S
overflows instead.  Dynamic scaling searches the edge: it halves S and skips the update when a
gradient is not finite, and doubles S after `interval` clean steps (Micikevicius et al. 2018 for the
idea; the constants are PyTorch's GradScaler's).

The three classes are frozen and have the same two methods; `adjust` returns the next state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite

from precsim.formats.quantize import quantize


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


@dataclass(frozen=True)
class DynamicScale:
    """Halve on overflow and skip the update; double after `interval` clean steps in a row.

    The scale is a float32 number.  As in PyTorch 2.13's GradScaler there is no `minimum` unless one
    is given: the 166th overflow in a row takes 65536 to 0.  Growth to infinity does not happen.
    """

    scale: float = 65536.0
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000
    minimum: float = 0.0
    clean_steps: int = 0
    skips: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _single(self.scale))
        if self.scale != 0:
            _check_scale(self.scale)
        if not (self.growth >= 1 and 0 < self.backoff <= 1 and self.interval >= 1):
            msg = (
                "dynamic loss scale: expected growth >= 1, 0 < backoff <= 1 and interval >= 1; "
                f"got {self.growth}, {self.backoff} and {self.interval}"
            )
            raise ValueError(msg)

    def adjust(self, finite: bool) -> DynamicScale:
        """Return the state after a step whose gradients were all finite, or were not."""
        if not finite:
            return replace(self, scale=max(self.scale * self.backoff, self.minimum), clean_steps=0)
        if self.clean_steps + 1 < self.interval:
            return replace(self, clean_steps=self.clean_steps + 1)
        grown = _single(self.scale * self.growth)
        return replace(self, scale=grown if isfinite(grown) else self.scale, clean_steps=0)

    def __str__(self) -> str:
        return f"dynamic:{self.scale:.17g}:{self.interval}"


LossScale = NoScale | StaticScale | DynamicScale


def parse(text: str | LossScale) -> LossScale:
    """Read "none", "static:1024", "dynamic" or "dynamic:65536:200" (initial scale, interval).

    Raises `ValueError` for anything else.
    """
    if not isinstance(text, str):
        return text
    kind, *numbers = text.split(":")
    try:
        match kind, numbers:
            case "none", []:
                return NoScale()
            case "static", [scale]:
                return StaticScale(float(scale))
            case "dynamic", []:
                return DynamicScale()
            case "dynamic", [scale, *rest] if len(rest) < 2:
                _check_scale(float(scale))
                return DynamicScale(float(scale), interval=int(rest[0]) if rest else 2000)
    except ValueError as error:
        msg = f"loss scale {text!r}: {error}"
        raise ValueError(msg) from None
    msg = f"loss scale {text!r}: expected none, static:SCALE, dynamic or dynamic:SCALE:INTERVAL"
    raise ValueError(msg)


def _single(x: float) -> float:
    """Return the nearest float32 number."""
    return float(quantize(x, "fp32"))


def _check_scale(scale: float) -> None:
    if not (isfinite(scale) and scale > 0):
        msg = f"loss scale must be a positive number; got {scale}"
        raise ValueError(msg)
