"""Recipes in the terminal: the table of what is in which format, and what two of them do differently."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from math import frexp, isfinite, log2
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from precsim.engine.precision import Precision
from precsim.formats.registry import is_scale_word
from precsim.formats.scaled import Block
from precsim.recipes import RECIPES
from precsim.recipes.table import Difference, Row
from precsim.runs.summary import Summary
from precsim.show.style import power, share
from precsim.show.terminal import Cells, Column, brief, ink, left_out, table

if TYPE_CHECKING:
    from precsim.analyse.memory import Memory

ROW_COLUMNS = (
    Column("recipe", justify="left"),
    Column("weights", 1, "left"),
    Column("master", 3, "left"),
    Column("operands", 1, "left"),
    Column("matmuls", 4, "left"),
    Column("softmax", 6, "left"),
    Column("norm", 7, "left"),
    Column("residual", 7, "left"),
    Column("loss", 9, "left"),
    Column("backward", 5, "left"),
    Column("weight\ngradients", 9, "left"),
    Column("handed\nover", 8, "left"),
    Column("update", 9, "left"),
    Column("state", 8, "left"),
    Column("loss scale", 2, "left"),
    Column("casts", 10),
    Column("about", 11, "left", folds=True),
)
"""The first to stay tell recipes apart: the weights, what is multiplied, the loss scale, the master."""

MEANINGS = {
    "weights": "as they are stored",
    "master": "the copy that is updated",
    "operands": "of the linear layers, forward and backward",
    "loss scale": "its kind, and where it starts",
    "matmuls": "what their products are rounded to",
    "backward": "gradients of activations",
}
"""What headings mean that could be taken for something else."""

LINE = 15
"""Characters of a line of precisions, so that five columns fit into a terminal of 80."""


def rows_table(rows: Iterable[Row], width: int) -> RenderableType:
    """Return the table of recipes: in which format a step of each has what.

    Of weights, operands and state it names the blocks that share a scale, and of weights how values
    are rounded into the format; `precsim recipes diff` and --json have the rest.
    """
    cells: list[Cells] = []
    for row in rows:
        computed = (row.matmuls, row.softmax, row.norm, row.residual, row.loss, row.backward,
                    row.weight_gradients, row.grad, row.update)  # fmt: skip
        cells.append(
            [
                Text(row.name, style=ink(RECIPES[row.name].format)),
                _lines(_short(row.weights)), _short(row.master), _lines(_short(row.operands)),
                *map(_formats, computed), _lines(_short(row.state)), _start(row.scaling),
                str(row.casts), row.about,
            ]
        )  # fmt: skip
    drawn = table(ROW_COLUMNS, cells, width)
    shown = {column.header for column in drawn.columns}
    key = "; ".join(f"{name}: {what}" for name, what in MEANINGS.items() if name in shown)
    rest = [left_out(drawn, ROW_COLUMNS), "`precsim recipes diff A B` shows all that differs"]
    return Group(drawn, Text(), Text("\n".join([key, *filter(None, rest)]), style="dim"))


def _short(precisions: str) -> str:
    """Return precisions, each once, without what they say of their scales but the blocks."""

    def without(one: str) -> str:
        name, *words = one.split(":")
        kept = [w for w in words if not is_scale_word(w) or Block.parse(w) or w == "delayed"]
        return ":".join([name, *kept])

    return "/".join(dict.fromkeys(map(without, precisions.split("/"))))


def _lines(precisions: str) -> str:
    """Return precisions in lines of `LINE` characters: "int8:row/bf16/", "int8:column:", "stochastic".

    A line ends behind a precision, and within one only if that alone is longer.
    """
    lines = [""]
    for one in re.findall("[^/]+/?", precisions):
        parts = [one] if len(one) <= LINE else re.findall("[^:]+:?", one)
        for part in parts:
            whole = len(parts) == 1 or part != parts[0]
            if lines[-1] and (len(lines[-1] + part) > LINE or not whole):
                lines.append("")
            lines[-1] += part
    return "\n".join(lines)


def _start(scaling: str) -> str:
    """Return "dynamic 2^16" for "dynamic from 65536"."""
    kind, _, start = scaling.partition(" from ")
    if not start:
        return kind
    exponent = log2(float(start))
    return f"{kind} {power(exponent) if exponent.is_integer() else start}"


def _formats(precisions: str) -> str:
    """Return the formats alone of "int8:row:stochastic/fp32"."""
    return "/".join(Precision.parse(one).format for one in precisions.split("/"))


def differences(a: str, b: str, found: Iterable[Difference], width: int) -> RenderableType:
    """Return what two recipes do differently, below what each says of itself."""
    said = [Text(f"{name}: {RECIPES[name].about}") for name in (a, b)]
    columns = [Column(h, justify="left", folds=True) for h in ("where", "what", a, b)]
    cells: list[Cells] = [[d.where, d.what.replace("_", " "), _constant(d.a), _constant(d.b)]
                          for d in found]  # fmt: skip
    if not cells:
        return Group(*said, Text("They do the same."))
    return Group(*said, Text(""), table(columns, cells, width))


def _constant(text: str) -> str:
    """Return a number in few letters, 2^16 or 3.4028e38; words as they are."""
    try:
        value = float(text)
    except ValueError:
        return text
    significand, exponent = frexp(value)
    return power(exponent - 1) if significand == 0.5 and exponent > 10 else brief(value)


MEASURED_COLUMNS = (
    Column("recipe", justify="left"),
    Column("valid.\nloss"),
    Column("gradient\nerror", 1),
    Column("gradients\nflushed"),
    Column("updates\nlost"),
    Column("steps\nskipped", 1),
    Column("weights", 4),
    Column("copies", 5),
    Column("gradients", 4),
    Column("state", 4),
    Column("bytes a\nparameter", 1),
    Column("activations\n(KiB)", 2),
    Column("of these", 6, "left"),
)


class Measured(NamedTuple):
    """What a recipe came to: the format of its hue, its run, what it takes, its gradient's error."""

    format: str
    run: Summary
    taken: Memory
    error: float


def measured_table(rows: Mapping[str, Measured], width: int) -> RenderableType:
    """Return the table of what each recipe came to and takes."""
    cells: list[Cells] = []
    for name, (fmt, run, taken, error) in rows.items():
        kinds = (taken.weights, taken.copies, taken.gradients, taken.state)
        cells.append(
            [
                Text(name, style=ink(fmt)),
                f"{run.valid_loss:.3f}",
                share(error) if isfinite(error) else "inf/nan",
                share(run.flushed),
                share(run.lost_updates),
                str(run.skipped),
                *(f"{kind.total() / taken.parameters:.2f}" for kind in kinds),
                f"{taken.per_parameter:.2f}",
                f"{taken.activations.total() / 1024:.0f}",
                _shares(taken.activations),
            ]
        )
    key = (
        "Losses of the same training on the same text; gradient error: of the first step's, beside "
        "float64 at the same weights; flushed: of the backward results that were "
        "not zero; lost: of the weight updates that were not zero.  Memory is a model, not a "
        "measurement: bytes a parameter of the weights that are updated, of their copies in other "
        "formats, of gradients and of optimizer state, were each stored in its format; activations "
        "are those that the backward pass reads again."
    )
    drawn = table(MEASURED_COLUMNS, cells, width)
    lines = filter(None, [key, left_out(drawn, MEASURED_COLUMNS)])
    return Group(drawn, Text(), Text("\n".join(lines), style="dim"))


def _shares(by_format: Counter[str]) -> str:
    """Return "fp16 55%, fp32 45%"; one format alone is only named."""
    parts = by_format.most_common()
    if len(parts) == 1:
        return parts[0][0]
    return ", ".join(f"{name} {share(count / by_format.total())}" for name, count in parts)
