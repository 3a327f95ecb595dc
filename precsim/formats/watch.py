"""What rounding shows to whoever wants to count what it does."""

from __future__ import annotations

from typing import Protocol

from precsim.formats.arrays import Array
from precsim.formats.format import Format
from precsim.formats.modes import Mode, Overflow


class Watch(Protocol):
    """Who wants to see numbers before and after they are rounded, while both are in a cache."""

    def __call__(self, x: Array, rounded: Array, /) -> None:
        """See a block."""

    def in_one_pass(
        self,
        x: Array,
        out: Array,
        fmt: Format,
        rounding: Mode,
        overflow: Overflow,
        words: Array | None,
    ) -> bool:
        """Round and see x in one pass, if that can be done here; False: it was not."""
