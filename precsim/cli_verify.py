"""`precsim verify`: the proofs on the command line.  Results go to stdout, progress to stderr.

Exit codes: 0 everything agrees, 1 a mismatch (or a difference from a library that nobody can
explain), 2 bad usage, 130 interrupted, and resumable where a sweep was running.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from precsim.cli_shared import Json, fail, print_line, reading_input, tell
from precsim.formats.format import Format
from precsim.formats.modes import Rounding
from precsim.formats.registry import element_of
from precsim.formats.registry import format as resolve
from precsim.proofs import exhaustive, peers, verify
from precsim.proofs.exhaustive import CHUNKS, Case
from precsim.proofs.peers import Comparison, Disagreement
from precsim.proofs.state import State, load
from precsim.proofs.verify import Row
from precsim.runs.lines import dump

LINE = "{:<12} {:<12} {:<13} {:<9} {:>14} {:>10} {:>9}"
"""A row of the table: what, format, mode, overflow rule, inputs, mismatches, seconds."""


def verify_command(
    formats: Annotated[
        list[str] | None, typer.Option("--format", metavar="F", help="A format; repeatable.")
    ] = None,
    modes: Annotated[
        list[str] | None,
        typer.Option("--mode", metavar="R", help=f"One of {', '.join(Rounding)}; repeatable."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only what takes a minute: codes, edges, arithmetic.")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--peers", help="Instead: who disagrees with whom, and why.")
    ] = False,
    threads: Annotated[int, typer.Option(help="Threads of the sweep.", min=1)] = 1,
    state: Annotated[
        Path, typer.Option(metavar="FILE", help="Where the sweep writes how far it has come.")
    ] = Path("precsim-verify.json"),
    as_json: Json = False,
) -> None:
    """Prove the formats right: every code, edge and float32 input.

    The sweep of all float32 inputs takes hours for all formats and modes; it can be interrupted,
    and goes on where it stopped.  By default it covers the formats of up to 16 bits.
    """
    if compare:
        _compare(as_json)
        return
    with reading_input():
        chosen = [element_of(resolve(name)) for name in formats or ()]
        roundings = [Rounding(name) for name in modes or ()]
        todo = [] if quick else exhaustive.cases(chosen, roundings)
        for case in todo:
            exhaustive.check_supported(case.format)
        progress = load(None if quick else state)
        if todo:
            progress.save()  # now, not after the first sweep, one hears that it cannot be kept
    found = _proofs(chosen, roundings, todo, progress, threads, as_json)
    if found:
        fail(f"mismatch: {found}", 1)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    epilog = "Exits with 1 where something does not agree, and names it."
    app.command(name="verify", rich_help_panel="Formats and recipes", epilog=epilog)(verify_command)


def _proofs(
    formats: Sequence[Format],
    roundings: Sequence[Rounding],
    todo: Sequence[Case],
    state: State,
    threads: int,
    as_json: bool,
) -> str | None:
    """Run the proofs, print their rows, and return the first mismatch."""
    rows: list[Row] = []
    if not as_json:
        header = ("proof", "format", "mode", "overflow", "inputs", "mismatches", "seconds")
        print_line(LINE.format(*header))
    try:
        for row in _all(formats, roundings, todo, state, threads, as_json):
            rows.append(row)
            if not as_json:
                print_line(_line(row))
            if row.found:
                break
    except KeyboardInterrupt:
        if state.path and state.done:
            tell(f"the sweep is kept in {state.path}: the same command goes on from there")
        raise
    if as_json:
        print_line(dump({"numpy": np.__version__, "rows": [row.to_dict() for row in rows]}))
    else:
        inputs, seconds = sum(r.inputs for r in rows), sum(r.seconds for r in rows)
        wrong = sum(r.mismatches for r in rows)
        print_line(LINE.format("total", "", "", "", f"{inputs:,}", wrong, f"{seconds:.1f}"))
    return rows[-1].found if rows else None


def _all(
    formats: Sequence[Format],
    roundings: Sequence[Rounding],
    todo: Sequence[Case],
    state: State,
    threads: int,
    quiet: bool,
) -> Iterator[Row]:
    """Yield the rows of the quick proofs and then of the sweep, up to the first mismatch."""
    for row in verify.quick(formats, roundings):
        yield row
        if row.found:
            return
    if todo:
        if state.restarted and not quiet:
            tell(f"{state.path} is about other code: starting again")
        if not quiet:
            left = sum(1 - state.of(case).chunks / CHUNKS for case in todo)
            seconds = exhaustive.estimate(todo, threads) * left / len(todo)
            tell(
                f"all 2^32 float32 inputs, {len(todo)} times: about {_span(seconds)} on {threads} "
                f"thread(s); Ctrl-C keeps what is done in {state.path}"
            )
        with _bar(len(todo), quiet) as tick:
            yield from verify.sweep(todo, state, threads, tick)


@contextmanager
def _bar(cases: int, quiet: bool) -> Iterator[Any]:
    """Show how far the sweep is, on a terminal; nothing where there is none."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    if quiet or not console.is_terminal or console.is_dumb_terminal:
        yield lambda case, chunks: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=None),
               TextColumn("{task.percentage:>5.1f}%"), TimeRemainingColumn(compact=True))  # fmt: skip
    with Progress(*columns, console=console, expand=True, transient=True) as progress:
        whole = progress.add_task("sweep", total=cases * CHUNKS)
        done: dict[str, int] = {}

        def tick(case: Case, chunks: int) -> None:
            done[str(case)] = chunks
            progress.update(whole, completed=sum(done.values()), description=str(case))

        yield tick


def _compare(as_json: bool) -> None:
    """Print who disagrees with precsim; exit with 1 where nobody knows why."""
    if missing := peers.missing():
        tell(f"left out, not installed: {', '.join(missing)}; try `pip install 'precsim[peers]'`")
    compared = list(peers.compare())
    found = peers.disagreements(compared)
    unexplained = [d for d in found if d.why is None]
    if as_json:
        disagreements = [d.to_dict() for d in found]
        print_line(dump({"compared": _totals(compared), "disagreements": disagreements}))
    else:
        for line in _peer_lines(compared, found):
            print_line(line)
    if unexplained:
        first = unexplained[0]
        fail(f"{first.peer} differs on {first.differ:,} inputs for no known reason", 1)


def _totals(compared: Iterable[Comparison]) -> list[dict[str, Any]]:
    """Return for each library: formats, modes, inputs tried, inputs that differ."""
    totals: dict[str, dict[str, Any]] = {}
    for one in compared:
        total = totals.setdefault(
            one.peer, {"peer": one.peer, "formats": [], "modes": [], "tried": 0, "differ": 0}
        )
        total["formats"] = list(dict.fromkeys([*total["formats"], one.format]))
        total["modes"] = list(dict.fromkeys([*total["modes"], one.rounding]))
        total["tried"] += one.tried
        total["differ"] += sum(d.differ for d in one.differences)
    return list(totals.values())


def _peer_lines(compared: Sequence[Comparison], found: Sequence[Disagreement]) -> Iterator[str]:
    yield "{:<18} {:>8} {:>6} {:>12} {:>10}".format(
        "library", "formats", "modes", "inputs", "differ"
    )
    for total in _totals(compared):
        yield "{:<18} {:>8} {:>6} {:>12,} {:>10,}".format(
            total["peer"], len(total["formats"]), len(total["modes"]), total["tried"],
            total["differ"],
        )  # fmt: skip
    for one in found:
        example = one.example
        yield ""
        yield f"{one.peer} {one.why or 'differs, and NOBODY KNOWS WHY'}"
        yield f"    formats  {', '.join(one.formats)}"
        yield f"    inputs   {', '.join(one.inputs)}"
        yield f"    differ   {one.differ:,} of {one.tried:,} tried"
        if one.roundings != (Rounding.NEAREST.value,):
            yield f"    modes    {', '.join(one.roundings)}"
        yield (
            f"    example  {example.example!r} in {example.format}: {example.theirs!r}; "
            f"precsim {example.ours!r}"
        )


def _line(row: Row) -> str:
    inputs, seconds = f"{row.inputs:,}", f"{row.seconds:.1f}"
    return LINE.format(
        row.proof, row.format, row.rounding, row.overflow, inputs, row.mismatches, seconds
    )


def _span(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
