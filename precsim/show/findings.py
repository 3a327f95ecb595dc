"""What the analysis of one step found, on the terminal: differences, blame, the smallest remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil, log2, log10

from rich.console import RenderableType
from rich.text import Text

from precsim.analyse.blame import Blame, Share
from precsim.analyse.diff import Diff, Row, Verdict
from precsim.analyse.scales import Outlook
from precsim.analyse.search import Found
from precsim.observe.whatif import Loss
from precsim.show.style import power, rough, share
from precsim.show.terminal import Cells, Column, ink, table

BAR = 10
"""Letters of the longest bar."""

LARGE = 100.0
"""An error in u that a reader would not call ok, were it not the optimizer's."""

VERDICTS = {Verdict.OK: "", Verdict.GENERATED: "bold red", Verdict.LOST: "bold red",
            Verdict.AMPLIFIED: "bold yellow",
            Verdict.PROPAGATED: "magenta"}  # fmt: skip

DIFF_COLUMNS = (
    Column("#", 5),
    Column("op", justify="left"),
    Column("format", 4, "left"),
    Column("error\nin u"),
    Column("", 3, "left"),
    Column("expected", 2),
    Column("its own", 6),
    Column("flushed", 7),
    Column("over-\nflow", 8),
    Column("verdict", 0, "left"),
)


def diff_table(rows: Iterable[Row], width: int) -> RenderableType:
    """Return a row for each op."""
    return table(DIFF_COLUMNS, map(_diff_cells, rows), width)


def _diff_cells(row: Row) -> Cells:
    style = VERDICTS[row.verdict]
    bar = "#" * min(BAR, ceil(3 * log10(max(row.total, 1.0)))) if row.total < float("inf") else ""
    return [
        str(row.index),
        Text(row.path + (f" #{row.call}" if row.call else ""), style=style),
        Text(row.format, style=ink(row.format)),
        _measured(row.total, row),
        Text(bar or "^" * (row.broken > 0), style=style),
        _measured(row.expected, row),
        rough(row.local),
        share(row.flushed),
        str(row.overflowed),
        Text(_told(row), style=style),
    ]


def _measured(error: float, row: Row) -> str:
    return "-" if _undefined(row) and error == float("inf") else rough(error)


def _undefined(row: Row) -> bool:
    """Whether the first run's result is 0 or not finite, so that no error is relative to it."""
    return row.total == float("inf") and not row.broken


def _told(row: Row) -> str:
    lost = row.verdict is Verdict.LOST
    return f"{share(row.swamped)} of the updates lost" if lost else row.verdict


def diff_sentences(found: Diff, shown: Sequence[Row]) -> list[str]:
    """Return what a diff comes to: the first abnormal op, and the first whose bits differ.

    And, of those in the table, what their verdicts rest on, where that is not their error.
    """
    abnormal, differs = found.first_abnormal(), found.first_difference()
    counts = {v: sum(row.verdict is v for row in found.rows) for v in Verdict}
    said = ", ".join(f"{n} {verdict}" for verdict, n in counts.items() if n)
    lines = [f"{len(found.rows)} ops: {said}"]
    if differs:
        lines.append(f"first bit difference: op {differs.index} {differs.path}")
    else:
        lines.append("no bit differs")
    if undefined := sum(map(_undefined, found.rows)):
        who, their = ("ops have", "their") if undefined > 1 else ("op has", "its")
        lines.append(f"{undefined} {who} no error in u (-): {their} reference is 0 or not finite")
    large = (r for r in shown if r.verdict is Verdict.OK and LARGE < r.total < float("inf"))
    if any(row.of_optimizer for row in large):
        lines.append("ops of the optimizer are judged by what they lose, not by their error")
    if abnormal:
        lines.append(f"first abnormal op: {abnormal.index} {abnormal.path}")
    if broken := found.first_broken():
        lines.append(f"first not finite: op {broken.index} {broken.path}, {broken.broken} values")
    return lines


BLAME_COLUMNS = (
    Column("site", justify="left"),
    Column("format", 2, "left"),
    Column("alone"),
    Column("share", 1),
    Column("", 3, "left"),
    Column("without"),
    Column("removes"),
)


def blame_table(shares: Sequence[Share], width: int) -> RenderableType:
    """Return a row for each site: its error alone, its share of it, the error without it."""
    return table(BLAME_COLUMNS, map(_blame_cells, shares), width)


def _blame_cells(one: Share) -> Cells:
    site = one.site
    return [
        site.title,
        Text(site.format, style=_ink(site.format)),
        f"{one.alone:.2g}",
        share(one.share),
        "#" * round(BAR * min(1.0, one.share)),
        f"{one.without:.2g}",
        f"{one.removes:.1%}",
    ]


def _ink(precision: str) -> str:
    return ink(precision) if precision else ""


def blame_sentences(found: Blame, of: str = "gradient", *, sites: int) -> list[str]:
    """Return the total error, and how far the shares can be trusted; `sites`: all that there are."""
    lines = [f"the {of}'s error is {found.total:.3g} = {found.total / found.u:.3g} u"]
    if found.accounted and found.total < float("inf"):
        adds_up = 0.8 <= found.accounted <= 1.25
        trust = ": errors add up" if adds_up else ": errors interact, so read 'removes'"
        if (asked := len(found.shares)) < sites:  # what is left out is no interaction
            trust = f", for {asked} of {sites} sites (share: among these)"
        lines.append(f"alone^2 adds up to {found.accounted:.0%} of total^2{trust}")
    key = "alone: error with only this site low; without: with only this site in fp64"
    return [*lines, key]


def search_sentences(found: Found) -> list[str]:
    """Return the gates' errors, the sites to keep, and the policy; or why there is none."""
    gates = f"{found.all_low:.3g} with all sites low, {found.all_high:.3g} with all high"
    lines = [f"error {gates}; tolerance {found.tolerance:g}"]
    if found.reason:
        return [*lines, found.reason]
    lines.append(f"keep {len(found.keep)} high: error {found.error:.3g}, dropping any one breaks "
                 f"it ({found.evaluations} steps run)")  # fmt: skip
    lines += [f"  {site.title}" for site in found.keep]
    return [*lines, "", f'policy = "{found.policy}"']


def forward_table(found: Sequence[Outlook], scale: float, width: int) -> RenderableType:
    """Return what each format would lose of values that no loss scale moves."""
    columns = (Column("format", justify="left"), Column("flushed"), Column("subnormal", 1),
               Column("overflow"))  # fmt: skip
    rows: list[Cells] = []
    for one in found:
        loss = one.losses[scale]
        shares = [share(part) for part in (loss.flushed, loss.subnormal, loss.overflowed)]
        rows.append([Text(one.format, style=ink(one.format)), *shares])
    return table(columns, rows, width)


def scales_table(found: Sequence[Outlook], scale: float, width: int) -> RenderableType:
    """Return what each format would flush, and ^ overflow, at each loss scale.

    The scale that was recorded has a star; where there is no room the largest go first.
    """
    scales = list(found[0].losses)
    order = sorted(scales, key=lambda s: abs(log2(s / scale)))
    columns = [Column("format", justify="left"), Column("best\nscale")]
    columns += [Column(_scale(s) + "*" * (s == scale), order.index(s)) for s in scales]
    rows: list[Cells] = [
        [
            Text(one.format, style=ink(one.format)),
            "-" if one.best is None else _scale(one.best),
            *(_loss(loss) for loss in one.losses.values()),
        ]
        for one in found
    ]
    return table(columns, rows, width)


def _scale(scale: float) -> str:
    exponent = log2(scale)
    return power(exponent) if exponent.is_integer() else f"{scale:.4g}"


def _loss(loss: Loss) -> Text:
    if loss.overflowed:
        return Text(f"{share(loss.flushed)} ^{share(loss.overflowed)}", style="red")
    return Text(share(loss.flushed), style="yellow" if loss.flushed > 0.05 else "")
