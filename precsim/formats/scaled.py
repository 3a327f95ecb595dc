"""Scaled formats: narrow elements times a scale that moves the data into their range.

int8 cannot hold a gradient of 1e-5, and e4m3 hardly can; ``x = scale * element`` can.  How many
values share a scale is the whole trade-off: one outlier takes the resolution away from everybody
in its block, and every scale has to be stored.  A `Scaled` says four things, all of them data:

    element   a `Format`: what is stored for every value
    block     which values share a scale: a tensor, a row, 32 values of a row, a tile of 128 x 128
    scale     the format of the scale: fp32, e8m0 (a power of two), e4m3
    rule      how the scale follows from amax, the largest magnitude of the block

This file has no arrays in it: `blocks.py` runs these rules on arrays, `exact_blocks.py` on
fractions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from fractions import Fraction

from precsim.formats.format import Format
from precsim.formats.modes import Choice

FP32 = Format("fp32", 8, 23, note="IEEE binary32")

ALL = 0
"""Stands in a block for "as long as the axis is"."""


class ScaleRule(Choice):
    """How a block's scale follows from its amax; the exponents are exact, never from log2.

    The powers of two, with ``e = floor(log2(amax))`` and `max`, `emax` those of the element:
    """

    MAX = "max"
    """amax / max, so that amax lands on the largest element.  Rounded to the scale's format."""
    SPAN = "span"
    """2 amax / (max - min): as MAX, but for -128..127 it is amax / 127.5 (PyTorch's "symmetric")."""
    FLOOR = "floor"
    """2^(e - emax) (OCP MX 1.0, section 6.3; torchao's default).  Clips amax where its significand
    is larger than max's: 452 becomes 448 in e4m3."""
    CEIL = "ceil"
    """2^(ceil(log2(amax)) - emax) (torchao).  Never clips, wastes a binade unless amax is 2^k."""
    EVEN = "even"
    """FLOOR after amax has been rounded to the element's significand (torchao, microxcaling)."""
    RCEIL = "rceil"
    """2^ceil(log2(amax / max)): the smallest power of two that does not clip (cuBLAS, Transformer
    Engine, torchao).  The same number as the reciprocal of max / amax rounded down to a power of
    two (DeepSeek-V3 and Float8BlockScaling spell it so): "pow2" is another name for it."""
    INVERSE = "inverse"
    """As MAX, by way of the factor max / amax: a float32 number that values are multiplied with, in
    float32; the scale that is stored is 1 / factor (Transformer Engine's and torchao's fp8).  It
    matters at midpoints, where bf16 data often lies.  A factor beyond float32 is its largest.  Where
    scales are of another format, they are as by MAX, and the factor is 1 / scale in float32 (torchao's
    int8).  Of two
    levels: the tensor's factor is element.max scale.max / amax, a block's scale is its amax times
    that times 1 / element.max, and its factor 1 / (scale / the tensor's factor), each in float32
    (NVFP4 in Transformer Engine)."""
    DELAYED = "delayed"
    """As INVERSE, but the factor comes from elsewhere, as a rule from earlier tensors in the same
    place (`precsim.engine.delayed`); 1 where nobody gives it.  An element may be beyond the largest:
    it saturates, infinities too, and a NaN stays alone."""

    @property
    def gives_powers(self) -> bool:
        """Whether every scale is a power of two."""
        return self in (ScaleRule.FLOOR, ScaleRule.CEIL, ScaleRule.EVEN, ScaleRule.RCEIL)

    @property
    def multiplies(self) -> bool:
        """Whether values are multiplied with a float32 factor, not divided by the scale."""
        return self in (ScaleRule.INVERSE, ScaleRule.DELAYED)


_BLOCK = re.compile(r"tensor|column|(?:row|([1-9]\d*)x([1-9]\d*))(?:@(-?\d+))?")


@dataclass(frozen=True)
class Block:
    """Which values share a scale: `height` x `width` of them.

    A width of `ALL` is the whole axis; both `ALL` is the whole tensor.  Blocks of height 1 run
    along `axis`, any axis; tiles lie on the last two axes.  The last block of an axis is short
    where the length is no multiple.  A vector has one axis, and its blocks run along that.

    Written tensor, row, column, 1x32, 32x1 (along the last axis but one), 128x128; @AXIS names
    another axis: 1x32@0, row@0.  Raises `ValueError` for a shape that is none of these.
    """

    height: int = ALL
    width: int = ALL
    axis: int = -1

    def __post_init__(self) -> None:
        if self.height > 1 and self.width == 1 and self.axis == -1:  # 32x1 is 1x32 the other way
            object.__setattr__(self, "width", self.height)
            object.__setattr__(self, "height", 1)
            object.__setattr__(self, "axis", -2)
        is_tensor = (self.height, self.width, self.axis) == (ALL, ALL, -1)
        is_tile = min(self.height, self.width) > 1 and self.axis == -1
        if not (is_tensor or is_tile or (self.height == 1 and self.width >= ALL)):
            msg = (
                f"block of height {self.height} and width {self.width} along axis {self.axis}: "
                "expected a tensor, a row or column, 1xN along any axis, or a tile such as 128x128"
            )
            raise ValueError(msg)

    @classmethod
    def parse(cls, text: str) -> Block | None:
        """Read what `str` wrote; None where the text is no block at all."""
        match = _BLOCK.fullmatch(text)
        if match is None:
            return None
        if text in ("tensor", "column"):
            return TENSOR if text == "tensor" else COLUMN
        height, width, axis = match.groups()
        along = -1 if axis is None else int(axis)
        return cls(int(height), int(width), along) if height else cls(1, ALL, along)

    def transposed(self) -> Block:
        """Return the block that a transposed matrix has: the last two axes change places."""
        if self.height != 1:
            return replace(self, height=self.width, width=self.height)
        return replace(self, axis={-1: -2, -2: -1}.get(self.axis, self.axis))

    def __str__(self) -> str:
        if self.height != 1:
            return f"{self.height}x{self.width}" if self.height else "tensor"
        if self.axis == -2 and self.width != 1:
            return f"{self.width}x1" if self.width else "column"
        along = "" if self.axis == -1 else f"@{self.axis}"
        return (f"1x{self.width}" if self.width else "row") + along


TENSOR, ROW, COLUMN = Block(), Block(1, ALL), Block(1, ALL, -2)


def usual_rule(scale: Format) -> ScaleRule:
    """Return the rule that a scale's format has unless another is named: OCP's where it is e8m0."""
    return ScaleRule.MAX if scale.man_bits else ScaleRule.FLOOR


@dataclass(frozen=True)
class Scaled:
    """Elements of a `Format` times a scale that a block of them shares.

    Edge cases.  A NaN or an infinity makes the scale of its block NaN, and with it every value of
    the block, which is what OCP MX has a NaN scale for: nothing is hidden, and no other block is
    touched (torchao 0.18 does the same for a NaN; an infinity it saturates).  A block of zeros has scale 1 in fp32, else the smallest scale.  An element beyond
    the element format's largest value saturates (OCP MX 1.0, section 6.3).  A scale below the
    smallest is raised to it (`scale_min`), and elements are divided by the scale that is stored; a
    scale too large saturates where the scale's format has no infinity (e8m0, e4m3), and is NaN in
    fp32.  Scales are rounded to nearest, whatever the rounding of the elements.  All scales and
    elements are those of exact arithmetic rounded once, on float32 and float64 arrays alike, but
    for two things: where a scale is no power of two, stochastic rounding takes the distance from
    the lower neighbour in float64, and max - min of an affine format is a float64.

    `tensor_scale` adds a second level, as NVFP4 has: one scale for the tensor, which is
    amax / (element.max * scale.max), and block scales relative to it.  `full_range` lets integers
    use their lowest two's complement code (-128..127 instead of -127..127).  `affine` gives each
    block a zero point z, so that its values are ``scale * (code - z)``, with the scale
    (max - min) / (largest - smallest code) of a range that includes 0 and
    z = smallest code - round(min / scale), to nearest even (PyTorch's quantization parameters).

    `amax_min`: amax counts as no less (DeepSeek-V3 1e-4, torchao 1e-12).  `scale_min`: the smallest
    block scale; None is the smallest positive value of its format, 0 lets scales underflow to zero
    and their blocks with them (Transformer Engine), 2^-6 is torchao 0.18's for NVFP4.

    Raises `ValueError` for fields that contradict each other.
    """

    element: Format
    block: Block = TENSOR
    scale: Format = FP32
    rule: ScaleRule = ScaleRule.MAX
    tensor_scale: Format | None = None
    full_range: bool = False
    affine: bool = False
    amax_min: float = 0.0
    scale_min: float | None = None
    label: str = field(default="", compare=False)
    note: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rule", ScaleRule(self.rule))
        for broken, wrong in self._rules():
            if broken:
                msg = f"scaled format {self.spelled!r}: {wrong}"
                raise ValueError(msg)

    def _rules(self) -> tuple[tuple[bool, str], ...]:
        """What the fields must obey together: (whether it is broken, how the rule reads)."""
        element, plain = self.element, self.rule is ScaleRule.MAX
        scales = [s for s in (self.scale, self.tensor_scale) if s is not None]
        integers = element.is_integer and element.quantum == 1
        least = self.scale_min
        plain_scale = self.scale == FP32 or self.rule is ScaleRule.INVERSE
        multiplied = least == 0 if self.tensor_scale is not None else plain_scale and least is None
        step = Fraction(self.scale.ulp(least or 0.0))
        on_grid = least is None or (
            (least >= self.scale.smallest_subnormal or (least == 0 and self.scale.has_zero))
            and least <= self.scale.max
            and (Fraction(least) / step).denominator == 1
        )
        return (
            (element.precision > 24, f"{element.name} has more than 24 significand bits"),
            (not element.signed, f"elements have a sign, {element.name} has none"),
            (not all(s.has_nan and FP32.contains(s) for s in scales),
             "a scale must have a NaN, for blocks without a scale, and fit into fp32"),
            (self.tensor_scale is not None and not plain and self.rule is not ScaleRule.INVERSE,
             "two levels need the rule 'max' or 'inverse'"),
            (self.full_range and not element.is_integer, "only integers have a full range"),
            (self.affine and not integers, "only whole numbers (int8, int4) have a zero point"),
            (self.affine and (not plain or self.tensor_scale is not None or self.amax_min > 0),
             "a zero point needs the rule 'max', one level, and no amax_min"),
            (self.rule.multiplies and (self.full_range or not multiplied),
             f"the rule '{self.rule}' has no full range, and scale_min=0 with two levels, else none"),
            (self.rule is ScaleRule.DELAYED and self.block != TENSOR, "'delayed' is per tensor"),
            (not 0 <= self.amax_min < FP32.max, "amax_min must be a finite number, 0 or more"),
            (not on_grid, f"scale_min must be a value of {self.scale.name}, 0 or more"),
        )  # fmt: skip

    @property
    def name(self) -> str:
        """Name that `precsim.format` accepts; that of a registered format where it is one."""
        return self.label or self.spelled

    @property
    def spelled(self) -> str:
        """Every choice spelled out: ELEMENT:BLOCK[:SCALE][:RULE][:full][:affine][:KEY=VALUE]."""
        words = [self.element.name, str(self.block)]
        if self.tensor_scale is not None:
            words.append(f"{self.scale.name}+{self.tensor_scale.name}")
        elif self.scale != FP32:
            words.append(self.scale.name)
        if self.rule is not usual_rule(self.scale):
            words.append(self.rule.value)
        words += [word for word in ("full", "affine") if word in self._switches]
        words += [f"amax_min={self.amax_min!r}"] if self.amax_min else []
        words += [f"scale_min={self.scale_min!r}"] if self.scale_min is not None else []
        return ":".join(words)

    @property
    def _switches(self) -> tuple[str, ...]:
        return ("full",) * self.full_range + ("affine",) * self.affine

    @property
    def bits(self) -> int:
        """Width of one element's code; the scales come on top."""
        return self.element.bits

    @property
    def precision(self) -> int:
        """Significand bits of the elements."""
        return self.element.precision

    @property
    def max(self) -> float:
        """Largest element (before the scale)."""
        return self.element.max

    @property
    def min(self) -> float:
        """Smallest element (before the scale): -max, or one step below it in the full range."""
        return -self.element.max - self.element.quantum * self.full_range

    @property
    def u(self) -> float:
        """Unit roundoff of the elements, relative to the block's amax for integers."""
        return self.element.u

    @property
    def has_powers(self) -> bool:
        """Whether every scale is a power of two, so that dividing by it rounds nothing."""
        free = self.scale.has_inf and self.tensor_scale is None and self.scale_min is None
        return self.scale.man_bits == 0 or (
            self.rule is not None and self.rule.gives_powers and free
        )

    @property
    def smallest_scale(self) -> float:
        """The smallest block scale (0 where scales may underflow)."""
        return self.scale.smallest_subnormal if self.scale_min is None else self.scale_min

    def transposed(self) -> Scaled:
        """Return the format that a transposed matrix has; blocks along a row run along a column."""
        return replace(self, block=self.block.transposed(), label="", note="")

    def __repr__(self) -> str:
        scale = f"{self.scale.name} scale ({self.rule.value}) per {self.block}"
        if self.tensor_scale is not None:
            scale += f" and {self.tensor_scale.name} scale per tensor"
        extra = "".join(f", {word}" for word in self._switches)
        return f"{self.name} ({scale}{extra}, element {self.element!r})"
