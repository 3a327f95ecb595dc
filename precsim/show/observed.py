"""``ps.observe``: a block that is watched, with tables to look at.

A table shows itself as text where it is printed, in colour where rich prints it, and as HTML in a
notebook.
"""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO
from math import isnan
from shutil import get_terminal_size
from typing import TYPE_CHECKING, SupportsIndex, overload

from precsim.observe.block import Observation, Seen

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from precsim.analyse.recorded import Op

SHOWN = 40
"""Rows that a table shows, from the first on; the list has them all."""


class Ops(list[Seen]):
    """A list of ops that were seen (`Seen`), which shows itself as a table."""

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> Seen: ...
    @overload
    def __getitem__(self, index: slice, /) -> Ops: ...
    def __getitem__(self, index: SupportsIndex | slice, /) -> Seen | Ops:
        """Return an op, or several as a table of their own."""
        found = super().__getitem__(index)
        return Ops(found) if isinstance(found, list) else found

    def __repr__(self) -> str:
        from rich.console import Console

        page = StringIO()
        width = get_terminal_size((100, 24)).columns
        Console(file=page, width=width, color_system=None).print(self._table(width))
        return page.getvalue().rstrip()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Give rich the columns that there is room for."""
        yield self._table(options.max_width)

    def _repr_html_(self) -> str:
        from precsim.show.html import ops_table

        return ops_table(_ops(self[:SHOWN])) + _more(len(self))

    def _table(self, width: int) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        from precsim.show.steps import ops_table

        rest = [Text(_more(len(self)))] if len(self) > SHOWN else []
        return Group(ops_table(_ops(self[:SHOWN]), width), *rest)


class observe(Observation):
    """Watch the ops of a block: ``with ps.observe("shadow", op="gradients/*") as obs: ...``.

    What it takes and what it does is said at `Observation`; `ops` and `worst` are tables here.
    """

    @property
    def ops(self) -> Ops:
        """The ops in the order in which they ran."""
        return Ops(self._seen)

    def worst(self, k: int = 5, by: str = "flushed_share") -> Ops:
        """Return the k ops where `by` is largest; see `Observation.worst`."""
        return Ops(super().worst(k, by))

    def __repr__(self) -> str:
        missed = f", {self.missed} before them not kept" if self.missed else ""
        stop = f", stopped at {self.stopped.op.path}" if self.stopped else ""
        return f"observe({str(self.level)!r}): {len(self._seen)} ops{missed}{stop}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Give rich a line about the block, and the table of its ops."""
        yield f"{self!r}"
        yield self.ops

    def _repr_html_(self) -> str:
        from html import escape

        return f"<p>{escape(repr(self))}</p>{self.ops._repr_html_()}"


def _more(count: int) -> str:
    return f"and {count - SHOWN} more" if count > SHOWN else ""


def _ops(rows: Iterable[Seen]) -> list[Op]:
    """Return rows as tables take them: without a shadow the error is that of rounding alone."""
    from precsim.analyse.recorded import Op

    return [Op(row, row.relative_error / row.u if isnan(row.err_u) and row.u else row.err_u)
            for row in rows]  # fmt: skip
