"""`precsim scale`: the loss scale over a recorded run, and the op behind every skipped step.

Exit codes: 0 fine, 1 a finding (the scale collapsed), 2 bad usage or bad input.
"""

from __future__ import annotations

from itertools import groupby

import numpy as np
import typer

from precsim.analyse.timeline import Skip, Timeline, timeline
from precsim.cli_shared import Folder, Json, consoles, fail, print_line
from precsim.runs.lines import dump, plain
from precsim.runs.run import open_run
from precsim.show.style import share
from precsim.show.terminal import Cells, Column, table

COLUMNS = (
    Column("steps", justify="left"),
    Column("loss scale"),
    Column("backward\nflushed", 1),
    Column("bits of\nheadroom", 2),
    Column("what happened", justify="left", folds=True),
)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    epilog = "Exits with 1 where the scale collapsed."
    app.command(rich_help_panel="A whole run", epilog=epilog)(scale)


def scale(folder: Folder, as_json: Json = False) -> None:
    """Show the loss scale over a run, and why steps were skipped.

    Headroom: bits between the largest backward result and the largest value of its format.
    """
    found = timeline(open_run(folder))
    if as_json:
        print_line(dump(plain(found.to_dict())))
    else:
        out, _ = consoles()
        out.print(table(COLUMNS, _rows(found), out.width))
    if found.alarm:
        fail(found.alarm, 1)


def _rows(found: Timeline) -> list[Cells]:
    """Return a row for each skipped step, and one for each run of clean ones at one scale."""
    skips = {skip.step: skip for skip in found.skips}
    rows: list[Cells] = []

    def stretch(i: int) -> tuple[float, int]:
        return (float(found.scale[i]), int(found.steps[i]) if found.skipped[i] else -1)

    for (value, _), group in groupby(range(len(found.steps)), stretch):
        i = np.array(list(group))
        first, last = int(found.steps[i[0]]), int(found.steps[i[-1]])
        headroom, flushed = found.headroom[i], found.flushed[i]
        known = bool(np.isfinite(headroom).any())
        rows.append(
            [
                f"{first}" if first == last else f"{first}-{last}",
                f"{value:g}",
                share(float(np.nanmax(flushed))) if np.isfinite(flushed).any() else "-",
                f"{round(float(np.nanmin(headroom)), 1) + 0.0:.1f}" if known else "-",
                _told(skips[first]) if first in skips else "",
            ]
        )
    return rows


def _told(skip: Skip) -> str:
    if not skip.path:
        return "skipped; run again, no op has a result that is not finite"
    help_ = "" if skip.helps else "; in the forward pass, where no loss scale helps"
    calm = " (finding its scale)" if skip.calibration and skip.helps else ""
    return f"skipped{calm}: {skip.path}, {skip.count} of {skip.n} not finite{help_}"
