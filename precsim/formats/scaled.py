"""Scaled formats: a narrow element format plus a scale that moves the data into its range.

int8 cannot hold a gradient of 1e-5, and e4m3 hardly can; ``x = scale * element`` can.  The scale
is chosen from the largest magnitude (*amax*) of the values that share it, so that amax lands on
the element format's largest value: ``scale = amax / element.max``, rounded to float32.

How many values share one scale is the whole trade-off: one outlier takes the resolution away
from everybody in its group.  "tensor" is one scale for all, "row" one for each vector along the
last axis, "column" one for each vector along the last axis but one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from precsim.formats.format import Format


class Sharing(StrEnum):
    """Which values share a scale."""

    TENSOR = "tensor"
    ROW = "row"
    COLUMN = "column"


@dataclass(frozen=True)
class Scaled:
    """Elements of a `Format` times a scale shared by a tensor, a row or a column.

    Edge cases: a group of zeros has scale 1; where amax is so small that the scale would be a
    float32 zero, the smallest float32 is used.  A NaN or infinity in a group makes its scale, and
    with it every value of the group, NaN (as OCP MX and torchao do): nothing is hidden.  So does
    a float64 amax too large for a float32 scale.
    Values beyond ``scale * max``, which only the rounding of the scale can produce, saturate.
    """

    element: Format
    sharing: Sharing

    def __post_init__(self) -> None:
        object.__setattr__(self, "sharing", Sharing(self.sharing))

    @property
    def name(self) -> str:
        """Name that `precsim.format` accepts; integers are per tensor unless they say more."""
        if self.element.is_integer and self.sharing is Sharing.TENSOR:
            return self.element.name
        return f"{self.element.name}:{self.sharing.value}"

    @property
    def axis(self) -> int | None:
        """Axis along which amax is taken; None means over the whole tensor."""
        return {Sharing.TENSOR: None, Sharing.ROW: -1, Sharing.COLUMN: -2}[self.sharing]

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
    def u(self) -> float:
        """Unit roundoff of the elements, relative to the group's amax for integers."""
        return self.element.u

    def __repr__(self) -> str:
        return f"{self.name} (one float32 scale per {self.sharing.value}, element {self.element!r})"
