"""How a value gets into a format (`Precision`), and how a sum is kept on the way (`Accumulator`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from precsim.formats.format import Format
from precsim.formats.modes import (
    SPELLINGS,
    Mode,
    Overflow,
    Rounding,
    is_rounding,
    rounding_mode,
    stochastic,
)
from precsim.formats.registry import AnyFormat, element_of, format, is_scale_word
from precsim.formats.scaled import Scaled

FOLLOWING = ("widest", "none")
"""Words that stand where a format's name could: follow the operands; keep no such tensor."""


def _name_of(fmt: str | AnyFormat) -> str:
    """Return a format's name; raise `ValueError` for one that its name does not lead to."""
    name = format(fmt).name
    if not isinstance(fmt, str):
        try:
            same = format(name) == fmt
        except ValueError:
            same = False
        if not same:
            msg = f"a policy knows formats by name, and {name!r} is not this one: expected a name that "
            msg += "`precsim.format` reads (e5m10, e4m3_ftz, int8:row, ..), or a format that it returned"
            raise ValueError(msg)
    return name


@dataclass(frozen=True)
class Precision:
    """A format with the rounding and overflow rule by which values enter it.

    Written "fp16", "bf16:stochastic", "bf16:stochastic_c8", "e5m2:saturate", "int8:row:stochastic".
    "widest" follows the operands.  `overflow=None` is the format's own rule (see
    `precsim.quantize`).  Raises `ValueError` for an unknown format, rounding or overflow.
    """

    format: str
    rounding: Mode = Rounding.NEAREST
    overflow: Overflow | None = None

    def __post_init__(self) -> None:
        if self.format not in FOLLOWING:
            object.__setattr__(self, "format", _name_of(self.format))
        object.__setattr__(self, "rounding", rounding_mode(self.rounding))
        if self.overflow is not None:
            object.__setattr__(self, "overflow", Overflow(self.overflow))

    @classmethod
    def parse(cls, text: str | AnyFormat | Precision) -> Precision:
        """Read "format[:rounding][:overflow]"; raise `ValueError` for a word that is neither.

        A format stands for its name, and must be what `precsim.format` finds under it.
        """
        if isinstance(text, Precision):
            return text
        if not isinstance(text, str):
            return cls(_name_of(text))
        words = [w for w in text.strip().split(":") if w]
        rounding = [w for w in words[1:] if is_rounding(w)]
        overflow = [w for w in words[1:] if w in set(Overflow)]
        name = [w for w in words if w not in rounding + overflow]
        spelled = ":".join(name)
        if len(rounding) > 1 or len(overflow) > 1:
            msg = f"{text!r} names two rounding modes or two overflow rules: expected one of each"
            raise ValueError(msg)
        wrong = [w for w in name[1:] if not is_scale_word(w)]
        if wrong:
            known = ", ".join([SPELLINGS, *Overflow, "what `precsim.format` reads"])
            msg = f"unknown word {wrong[0]!r} in {text!r}: after a format, expected one of {known}"
            raise ValueError(msg)
        return cls(
            spelled,
            rounding_mode(rounding[0]) if rounding else Rounding.NEAREST,
            Overflow(overflow[0]) if overflow else None,
        )

    def resolve(self, formats: tuple[AnyFormat | None, ...]) -> AnyFormat:
        """Return the format meant, given those of the operands."""
        return widest(formats) if self.format == "widest" else format(self.format)

    @property
    def by_chance(self) -> bool:
        """Whether rounding draws random numbers, so that what it loses comes back on average."""
        return stochastic(self.rounding) is not None

    def for_operand(self, position: int) -> Precision | None:
        """Return what this means for an operand of a matmul: left 0, right 1, bias 2.

        Blocks that share a scale run along the contraction: what is 1x32 for the left operand,
        along its last axis, is 32x1 for the right one, along its last but one; 128x128 is 128x128.
        A bias is added to the product, outside the scales, so it gets none.
        """
        fmt = None if self.format in FOLLOWING else format(self.format)
        if not isinstance(fmt, Scaled) or position == 0:
            return self
        if position > 1:
            return None
        name = format(fmt.transposed().spelled).name
        return Precision(name, self.rounding, self.overflow)

    def check(self, carrier: np.dtype[Any]) -> None:
        """Raise `ValueError` if values of the format do not fit the carrier's dtype."""
        if self.format in FOLLOWING:
            return
        element, limits = element_of(format(self.format)), np.finfo(carrier)
        if element.man_bits > limits.nmant or element.max > float(limits.max):
            msg = (
                f"format {self.format} does not fit {carrier}, the carrier of arithmetic='fast': "
                "use arithmetic='exact'"
            )
            raise ValueError(msg)

    def __str__(self) -> str:
        words = [self.format]
        if self.rounding is not Rounding.NEAREST:
            words.append(str(self.rounding))
        if self.overflow is not None:
            words.append(self.overflow.value)
        return ":".join(words)


_ACCUMULATOR = re.compile(
    r"(?P<format>[a-z0-9_]+)(:(?P<rounding>[a-z0-9_]+))?(/(?P<every>\d+))?"
    r"(>(?P<outer>[a-z0-9_]+)@(?P<chunk>\d+))?"
)


@dataclass(frozen=True)
class Accumulator:
    """The register in which a matmul or a sum keeps its running total.

    `format` and `rounding`: what the total is rounded to after every `every` products (1: as a
    sequential loop; 4, 16 or 32: as the adders of tensor cores take several at once).
    `chunk > 0`: after that many products the total is added to a second one in format `outer` and
    starts again from zero (Wang et al. 2018, section 3.1; DeepSeek-V3, section 3.3.2:
    "e8m13:toward_zero>fp32@128").

    Written "fp16", "bf16:toward_zero", "e8m13:toward_zero/4>fp32@128".
    """

    format: str
    rounding: Mode = Rounding.NEAREST
    every: int = 1
    outer: str = "fp32"
    chunk: int = 0

    def __post_init__(self) -> None:
        if self.every < 1 or self.chunk < 0 or (self.chunk and self.chunk % self.every):
            msg = (
                f"accumulator: expected every >= 1 and a chunk that is a multiple of it; "
                f"got every={self.every}, chunk={self.chunk}"
            )
            raise ValueError(msg)
        for name in ("format", "outer"):
            fmt = format(_name_of(getattr(self, name)))
            if not isinstance(fmt, Format):
                msg = f"accumulator format {fmt.name!r} has a shared scale: expected a plain format"
                raise ValueError(msg)  # noqa: TRY004  (a format of the wrong sort, not type)
            object.__setattr__(self, name, fmt.name)
        if not self.chunk and self.outer != "fp32":
            msg = f"accumulator: outer={self.outer} needs a chunk; expected chunk > 0"
            raise ValueError(msg)
        object.__setattr__(self, "rounding", rounding_mode(self.rounding))

    @classmethod
    def parse(cls, text: str | Accumulator) -> Accumulator:
        """Read what `str` wrote; raise `ValueError` with the grammar if it does not fit."""
        if isinstance(text, Accumulator):
            return text
        match = _ACCUMULATOR.fullmatch(text.strip().lower())
        if match is None:
            msg = (
                f"accumulator {text!r}: expected FORMAT[:ROUNDING][/EVERY][>OUTER@CHUNK], "
                "e.g. fp16 or e8m13:toward_zero/4>fp32@128"
            )
            raise ValueError(msg)
        return cls(
            match["format"],
            rounding_mode(match["rounding"] or Rounding.NEAREST),
            int(match["every"] or 1),
            match["outer"] or "fp32",
            int(match["chunk"] or 0),
        )

    def __str__(self) -> str:
        text = self.format
        if self.rounding is not Rounding.NEAREST:
            text += f":{self.rounding}"
        if self.every != 1:
            text += f"/{self.every}"
        return text + (f">{self.outer}@{self.chunk}" if self.chunk else "")


def widest(formats: tuple[AnyFormat | None, ...]) -> AnyFormat:
    """Return the one format of `formats` that holds every value of the others (None: a constant).

    Raises `ValueError` where there is no such format (e4m3 and e5m2: neither holds the other).
    """
    known = [f for f in dict.fromkeys(formats) if f is not None]
    if not known:
        return format("fp64")
    for wide in known:
        if all(wide == f or _holds(wide, f) for f in known):
            return wide
    names = ", ".join(f.name for f in known)
    msg = f"no format among {names} holds all values of the others: name the output's format"
    raise ValueError(msg)


def _holds(wide: AnyFormat, narrow: AnyFormat) -> bool:
    return isinstance(wide, Format) and isinstance(narrow, Format) and wide.contains(narrow)
