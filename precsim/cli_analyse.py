"""Verbs that look into one training step: show, diff, blame, search, whatif, step.

Exit codes: 0 fine, 1 a finding (an abnormal op, no set of ops that would do), 2 bad usage or bad
input.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from precsim.analyse.health import Health, complaint
from precsim.analyse.recorded import Op, ops_of
from precsim.cli_runs import consoles, fail, print_line
from precsim.observe.counters import OpCounts
from precsim.observe.trace import matches
from precsim.runs.lines import dump
from precsim.runs.run import open_run
from precsim.show import steps

WORST = 12
"""Ops that `precsim show` shows, if --op does not say which."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program.")]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Where a run was recorded.")]
Step = Annotated[int, typer.Option("--step", metavar="K", help="The step to look into.")]
Glob = Annotated[
    str | None,
    typer.Option("--op", metavar="GLOB", help="These only: 'gradients/*', 'blocks.0.*', gelu."),
]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb in (show,):
        app.command()(verb)


def show(
    folder: Folder,
    step: Step,
    op: Glob = None,
    sort: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Largest first: flushed, err_u, amax, n ..")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what rounding did to each op of a recorded step; of a single op, its exponents too."""
    ops = _chosen(ops_of(open_run(folder), step), op)
    if sort:
        ops.sort(key=lambda one: -_value(one, sort))
    worst = ops if op or sort else sorted(ops, key=_badness, reverse=True)[:WORST]
    if as_json:
        print_line(dump([_facts(one) for one in (ops if sort is None and op is None else worst)]))
    else:
        out, _ = consoles()
        shown = worst[: None if op else WORST]
        print_line(f"step {step} of {folder.name}: {_count(shown, ops)}")
        out.print(steps.ops_table(shown, out.width))
        if len({one.counts.path for one in shown}) == 1:
            out.print()
            out.print(steps.strip(_total(shown), out.width))
    _report(ops)


def _chosen(ops: list[Op], glob: str | None) -> list[Op]:
    """Return the ops that a glob names; exit with 2 where it names none."""
    chosen = [one for one in ops if glob is None or matches(one.counts.path, glob)]
    if not chosen:
        fail(f"no op of that step matches {glob!r}: try --op '*' to see their names", 2)
    return chosen


def _count(shown: list[Op], ops: list[Op]) -> str:
    if len(shown) == len(ops):
        return f"{len(ops)} op{'s' * (len(ops) > 1)}"
    return f"{len(shown)} of {len(ops)} ops, the worst first (--op '*' shows all)"


def _value(one: Op, column: str) -> float:
    """Return what to sort by: a kind of result, err_u, or a number of `OpCounts`."""
    places: tuple[Any, ...] = (Health.of(one.counts), one, one.counts)
    found = [getattr(place, column, None) for place in places]
    numbers = [value for value in found if isinstance(value, int | float)]
    if not numbers:
        known = "zero, flushed, subnormal, normal, overflow, nan, err_u, n, amax, amin, rms"
        fail(f"no column {column!r} to sort by: expected one of {known}", 2)
    return float(numbers[0])


def _badness(one: Op) -> tuple[float, ...]:
    row, health = one.counts, Health.of(one.counts)
    return (health.nan, health.overflow, round(row.flushed_share, 2), one.err_u)


def _facts(one: Op) -> dict[str, Any]:
    facts = one.counts.to_dict() | {"err_u": one.err_u, "complaint": complaint(one.counts)}
    return facts | {"health": asdict(Health.of(one.counts))}


def _total(ops: Iterable[Op]) -> OpCounts:
    """Return the runs of one op, added up."""
    rows = [one.counts for one in ops]
    sum_of = OpCounts(path=rows[0].path, format=rows[0].format)
    for row in rows:
        sum_of.add(row)
    return sum_of


def _report(ops: Iterable[Op]) -> None:
    """Exit with 1 where an op is in trouble, naming the first."""
    for one in ops:
        if what := complaint(one.counts):
            fail(f"first op in trouble: {one.counts.path}: {what}", 1)
