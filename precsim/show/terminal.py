"""What the terminal shows: tables of formats and runs, and sentences about runs.

Functions return rich renderables and print nothing.  Where a table does not fit, columns that
say least go first.  No text here needs more than ASCII: rich draws its lines with what the
terminal's encoding has, and colour only repeats what words say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal, cast

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from precsim.engine.policy import Policy
from precsim.formats.registry import AnyFormat, element_of
from precsim.formats.scaled import Scaled
from precsim.runs.config import TrainConfig
from precsim.runs.summary import Summary
from precsim.show.style import BLACK, look, power, share

Justify = Literal["left", "right"]
Cells = Sequence[Text | str]

PIPE_WIDTH = 120
"""Columns of a table that goes to a file or a pipe, unless the environment says COLUMNS."""


class _Output(Console):
    """A console whose reader may leave (precsim formats | head), as of any other program."""

    def on_broken_pipe(self) -> None:
        """Let the error through to the command line, which ends in peace; rich would exit with 1."""
        raise  # noqa: PLE0704 - called while the error is handled


class _Trimmed:
    """A file or a pipe that gets no spaces at the ends of lines, with which rich fills its tables."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write whole lines, as rich does."""
        self._stream.write(re.sub(r" +$", "", text, flags=re.MULTILINE))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def console(stream: IO[str], environ: Mapping[str, str]) -> Console:
    """Return a console on a stream; as wide as the terminal, or `PIPE_WIDTH` where there is none."""
    wide = None if stream.isatty() or environ.get("COLUMNS") else PIPE_WIDTH
    to = stream if stream.isatty() else cast("IO[str]", _Trimmed(stream))
    return _Output(file=to, width=wide, highlight=False, markup=False, emoji=False)


def ink(fmt: str | AnyFormat) -> str:
    """Return a format's hue as a rich style; black is the terminal's own ink, dark or light."""
    hue = look(fmt).hue
    return "" if hue == BLACK else hue


def format_of(config: TrainConfig) -> str:
    """Return the format whose colour a run without a recipe gets: that of its activations."""
    name = Policy.parse(config.policy).activations.format
    return "fp32" if name == "widest" else name


@dataclass(frozen=True)
class Column:
    """A column of a table: it is left out first where `rank` is highest; 0 always stays.

    `folds`: long cells may be broken into several lines of `FOLDED` characters or more.
    `optional`: there is none where no row has anything in it.
    """

    heading: str
    rank: int = 0
    justify: Justify = "right"
    folds: bool = False
    optional: bool = False


FOLDED = 24
INDENT = "  "


def table(columns: Sequence[Column], rows: Iterable[Cells], width: int) -> Table:
    """Return a table of the columns that fit into `width`."""
    cells = [[Text(c) if isinstance(c, str) else c for c in row] for row in rows]
    shown = [i for i, column in enumerate(columns)
             if not column.optional or any(row[i] for row in cells)]  # fmt: skip
    while sum(_room(columns[i], [row[i] for row in cells]) + 2 for i in shown) - 2 > width:
        last = max(shown, key=lambda i: columns[i].rank)
        if columns[last].rank == 0:
            break  # the least that says something
        shown.remove(last)
    needs = {i: _room(columns[i], [row[i] for row in cells]) for i in shown}
    spare = width - sum(needs.values()) - 2 * (len(shown) - 1)
    if spare < 0:
        for row in cells:
            row[shown[0]] = _in_lines(row[shown[0]], max(FOLDED, needs[shown[0]] + spare))
    for i in (i for i in shown if columns[i].folds):
        for row in cells:
            row[i] = _breakable(row[i], needs[i] + max(spare, 0))
    drawn = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for i in shown:
        column = columns[i]
        drawn.add_column(column.heading, justify=column.justify, overflow="fold",
                         no_wrap=not column.folds and columns[i].rank > 0)  # fmt: skip
    for row in cells:
        drawn.add_row(*(row[i] for i in shown))
    return drawn


def _in_lines(name: Text, room: int) -> Text:
    """Return a long name in lines of at most `room` letters."""
    return Text(f"\n{INDENT}".join(_pieces(name.plain, room, len(INDENT))), style=name.style)


def _breakable(text: Text, room: int) -> Text:
    """Return text that rich breaks between pieces of a long name, not within them."""
    if all(len(word) <= room for word in text.plain.split()):
        return text
    words = (piece for word in text.plain.split(" ") for piece in _pieces(word, room))
    return Text(" ".join(words), style=text.style)


def _pieces(name: str, room: int, indent: int = 0) -> Iterator[str]:
    """Yield pieces of at most `room` letters, the later ones less `indent`, up to a / or a dot."""
    while len(name) > room:
        cut = max(name.rfind(mark, 0, room) for mark in "/. ") + 1 or room
        yield name[:cut]
        name, room, indent = name[cut:], room - indent, 0
    yield name


def left_out(drawn: Table, columns: Iterable[Column]) -> str:
    """Return a sentence with the columns that a table has no room for; "" if it has all."""
    shown = {column.header for column in drawn.columns}
    names = [c.heading.replace("\n", " ") for c in columns if c.heading not in shown]
    return f"a wider terminal shows more: {', '.join(names)}" if names else ""


def _room(column: Column, cells: Sequence[Text]) -> int:
    """Return how wide a column must be; headings and cells may have several lines."""
    heading = max(map(len, column.heading.split("\n")))
    widest = max((line.cell_len for cell in cells for line in cell.split("\n")), default=0)
    return max(heading, min(widest, FOLDED) if column.folds else widest)


FORMAT_COLUMNS = (
    Column("format", justify="left"),
    Column("bits"),
    Column("E", 2),
    Column("M", 2),
    Column("bias", 5),
    Column("p", 3),
    Column("max"),
    Column("min\nnormal", 1),
    Column("min\nsubnormal", 4),
    Column("u"),
    Column("specials", 6, "left"),
    Column("scale", 7, "left"),
    Column("note", 8, "left", folds=True),
)


def formats_table(formats: Iterable[AnyFormat], width: int) -> RenderableType:
    """Return the table of formats: fields, largest and smallest values, u, special values."""
    drawn = table(FORMAT_COLUMNS, map(_format_cells, formats), width)
    key = (
        "E and M: bits of the exponent and of the fraction; p: bits of the significand; "
        "u: the largest relative error of rounding to nearest."
    )
    return Group(drawn, Text(), Text(key, style="dim"))


def _format_cells(named: AnyFormat) -> Cells:
    fmt = element_of(named)
    specials = {"inf": fmt.has_inf, "nan": fmt.has_nan, "-0": fmt.has_negative_zero}
    subnormals = not fmt.is_integer and fmt.smallest_subnormal < fmt.smallest_normal
    return [
        Text(named.name, style=ink(named)),
        str(fmt.bits),
        "-" if fmt.is_integer else str(fmt.exp_bits),
        str(fmt.man_bits),
        "-" if fmt.is_integer else str(fmt.bias),
        str(fmt.precision),
        brief(fmt.max),
        f"{_power_of(fmt.quantum)} (step)" if fmt.is_integer else power(fmt.emin),
        _power_of(fmt.smallest_subnormal) if subnormals else "-",
        _power_of(fmt.u),
        " ".join(name for name, has in specials.items() if has) or "-",
        f"{named.scale.name} / {named.block}" if isinstance(named, Scaled) else "-",
        named.note,
    ]


def format_facts(fmt: AnyFormat) -> dict[str, Any]:
    """Return what the table says about a format, in numbers, for `--json`."""
    element = element_of(fmt)
    names = ("bits", "exp_bits", "man_bits", "bias", "precision", "max", "smallest_normal",
             "smallest_subnormal", "u", "has_inf", "has_nan", "has_negative_zero")  # fmt: skip
    facts = {"name": fmt.name} | {name: getattr(element, name) for name in names}
    scale = None
    if isinstance(fmt, Scaled):
        scale = {"format": fmt.scale.name, "block": str(fmt.block), "rule": fmt.rule.value}
    return facts | {"note": fmt.note, "scale": scale}


def brief(value: float) -> str:
    """Return five digits of a number: 65504, 3.4028e38."""
    return f"{value:.5g}".replace("e+", "e")


def _power_of(value: float) -> str:
    return power(math.frexp(value)[1] - 1)


RUN_COLUMNS = (
    Column("run", justify="left"),
    Column("loss"),
    Column("valid.\nloss"),
    Column("gradients\nflushed", 1),
    Column("updates\nlost", 1),
    Column("steps\nskipped", 2),
    Column("first op in trouble", 3, "left", folds=True),
)


PASSED_OVER = "passed over: ops that make less than 1% of their role's values, if finite"
"""What `precsim.runs.results.first_trouble` leaves out, and a table of all ops has."""


def runs_table(runs: Mapping[str, tuple[str, Summary]], width: int) -> RenderableType:
    """Return the table of runs, title -> (format, summary).

    Where it is too narrow for them, the first ops in trouble are listed below it.
    """
    rows: list[Cells] = [
        [
            Text(title, style=ink(fmt)),
            f"{run.loss:.3f}",
            f"{run.valid_loss:.3f}",
            share(run.flushed),
            share(run.lost_updates),
            str(run.skipped),
            str(run.trouble or "-"),
        ]
        for title, (fmt, run) in runs.items()
    ]
    drawn = table(RUN_COLUMNS, rows, width)
    troubles = [(t, f, str(run.trouble)) for t, (f, run) in runs.items() if run.trouble]
    if not troubles:
        return drawn
    key = Text(PASSED_OVER, style="dim")
    if len(drawn.columns) == len(RUN_COLUMNS):
        return Group(drawn, Text(), key)
    return Group(drawn, *heading("First op in trouble"), sentences(troubles), Text(), key)


def heading(text: str) -> tuple[Text, Text]:
    """Return a heading and the empty line before it."""
    return Text(), Text(text, style="bold underline")


def sentences(rows: Iterable[tuple[str, str, str]]) -> Table:
    """Return (title, format, sentence) rows: what is said about each run, beside its name."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for title, fmt, sentence in rows:
        grid.add_row(Text(title, style=f"bold {ink(fmt)}"), Text(sentence))
    return grid


def printable(text: str) -> str:
    """Return text on one line, runs of white space as one space, control characters as "?"."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
