"""`precsim scan`: a recorded step at every loss scale, or in every format.

Exit codes: 0 fine, 1 a finding (no loss scale gives a finite gradient), 2 bad usage or bad input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from math import log2
from typing import Annotated

import typer

from precsim.analyse.recorded import moment_at
from precsim.analyse.scan import Row, headroom, plateau, scan_formats, scan_scales
from precsim.cli_shared import Folder, Json, consoles, fail, print_line
from precsim.runs.lines import dump
from precsim.runs.run import open_run
from precsim.show.style import power, share
from precsim.show.terminal import Cells, Column, table

COLUMNS = (
    Column("backward\nflushed"),
    Column("sub-\nnormal", 2),
    Column("results that\noverflow", 1),
    Column("gradient's\nerror"),
)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    epilog = "Exits with 1 where no loss scale gives a finite gradient."
    app.command(rich_help_panel="One step, taken apart", epilog=epilog)(scan)


def scan(
    folder: Folder,
    step: Annotated[int, typer.Option("--step", metavar="K", help="The step to run again.")],
    formats: Annotated[
        bool, typer.Option("--formats", help="Try formats instead, at the step's own loss scale.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a step again at every loss scale, or in every format.

    Its gradient is measured against float64's.  With --formats it runs in other formats instead,
    each in the place of the run's low ones.
    """
    moment = moment_at(open_run(folder), step)
    rows = scan_formats(moment) if formats else scan_scales(moment)
    if as_json:
        print_line(dump([asdict(row) for row in rows]))
    else:
        out, _ = consoles()
        columns = [Column("format" if formats else "loss scale", justify="left"), *COLUMNS]
        out.print(table(columns, list(_lines(rows, moment.scale)), out.width))
        print_line("")
        for line in _refusals(rows) if formats else _sentences(rows, moment.scale):
            out.print(line)
    if all(row.error == float("inf") for row in rows):
        fail("every gradient has values that are not finite: a loss scale cannot mend that", 1)


def _lines(rows: list[Row], own: float) -> Iterator[Cells]:
    """Yield a line for each row; loss scales in a row that come to the same share one.

    Of the scales at the end that all overflow there are the first and the last.
    """
    finite = [i for i, row in enumerate(rows) if row.error < float("inf") or row.scale == own]
    first = max(finite, default=-1) + 1
    shown = [row for i, row in enumerate(rows) if row.format or i <= first or i == len(rows) - 1]
    for (*_, cells), group in groupby(
        shown, lambda row: (row.format, row.scale == own, _cells(row))
    ):
        same = list(group)
        if len(rows) > len(shown) and same == rows[-1:]:
            yield ["..", *[""] * len(cells)]
        yield [_name(same, own), *cells]


def _name(same: list[Row], own: float) -> str:
    if same[0].format:
        return same[0].format
    ends = [power(log2(row.scale)) for row in (same[0], same[-1])]
    mark = " *" if same[0].scale == own else ""
    return " to ".join(dict.fromkeys(ends)) + mark


def _cells(row: Row) -> list[str]:
    if row.refused:
        return ["", "", "", "impossible"]
    error = "not finite" if row.error == float("inf") else f"{row.error:.2g}"
    return [share(row.flushed), share(row.subnormal), f"{row.overflowed:,}", error]


def _refusals(rows: list[Row]) -> list[str]:
    return [f"{row.format}: {row.refused}" for row in rows if row.refused]


def _sentences(rows: list[Row], own: float) -> list[str]:
    """Say which loss scales are as good as the best, and where the run's own one is among them."""
    found, room = plateau(rows), headroom(rows, own)
    if found is None or room is None:
        return []
    low, high = found
    lines = [f"as good as the best: loss scales from {power(log2(low))} to {power(log2(high))}"]
    below, above = room
    if min(below, above) >= 0:
        lines.append(
            f"the run's own, {own:g} (*), may be halved {below:g} times and doubled {above:g}"
        )
    else:
        lines.append(f"the run's own, {own:g} (*), is too {'small' if below < 0 else 'large'}")
    return lines
