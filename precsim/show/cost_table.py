"""Costs as tables: a row for each recipe, and what a recipe's cost is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from precsim.analyse.cost import Cost, Line, energy, label
from precsim.analyse.prices import RULE
from precsim.show.style import share
from precsim.show.terminal import Cells, Column, heading, ink, table


@dataclass(frozen=True)
class Priced:
    """A recipe's cost, the same step's in fp32, and the format whose hue it has."""

    cost: Cost
    reference: Cost
    format: str

    def together(self, memory: str) -> tuple[float, float]:
        """Return the energy of arithmetic and traffic, and the share of it that fp32's is."""
        own, other = (one.arithmetic + one.traffic(memory) for one in (self.cost, self.reference))
        return own, ratio(own, other)


def costs_table(rows: Mapping[str, Priced], memory: str, width: int) -> RenderableType:
    """Return a row for each recipe: MACs, bits, energies, and each beside fp32's.

    `memory` is the one whose traffic is added to the arithmetic.
    """
    prices = next(iter(rows.values())).cost.prices
    others = [name for name in prices.memory if name != memory]
    columns = [
        Column("recipe", justify="left"),
        Column("multiply-\naccumulates in", 3, "left", folds=True),
        Column("bits of an\noperand"),
        Column("arithmetic"),
        Column("of\nfp32's"),
        Column("bytes\nmoved", 1),
        Column("moved in", 6, "left", folds=True),
        Column(f"moving,\n{memory}"),
        Column("of\nfp32's"),
        Column("both", 2),
        Column("of\nfp32's", 2),
        *(Column(f"moving,\n{name}", 4 + (name != "dram")) for name in others),
    ]
    cells: list[Cells] = []
    for name, row in rows.items():
        cost, reference = row.cost, row.reference
        whole, part = row.together(memory)
        cells.append(
            [
                Text(name, style=ink(row.format)),
                shares(Counter({label(of): n for of, n in cost.macs.items()})),
                f"{cost.effective_bits:.3g}",
                energy(cost.arithmetic),
                times(ratio(cost.arithmetic, reference.arithmetic)),
                size(cost.moved),
                shares(cost.read + cost.written),
                energy(cost.traffic(memory)),
                times(ratio(cost.moved, reference.moved)),
                energy(whole),
                times(part),
                *(energy(cost.traffic(other)) for other in others),
            ]
        )  # fmt: skip
    return Group(table(columns, cells, width), Text(), *notes(rows))


def parts_table(rows: Mapping[str, Priced], group: str, memory: str, width: int) -> RenderableType:
    """Return what each recipe's cost is made of, by "op", "format" or "phase"."""
    columns = [
        Column(group, justify="left"),
        Column("MACs", 1),
        Column("operations", 3),
        Column("bytes\nmoved", 2),
        Column("arithmetic"),
        Column(f"moving,\n{memory}"),
        Column("of the\nwhole"),
    ]
    shown: list[RenderableType] = []
    for name, row in rows.items():
        whole, _ = row.together(memory)

        def total(line: Line, of: Cost = row.cost) -> float:
            return line.arithmetic + of.prices.traffic(line.moved, memory)

        parts = list(row.cost.by(group).items())
        if group != "phase":
            parts.sort(key=lambda part: -total(part[1]))
        cells: list[Cells] = [
            [
                Text(part, style=ink(part) if group == "format" else ""),
                count(line.macs),
                count(line.operations),
                size(line.moved),
                energy(line.arithmetic),
                energy(row.cost.prices.traffic(line.moved, memory)),
                share(ratio(total(line), whole)),
            ]
            for part, line in parts
        ]
        shown += [*heading(name)] if shown else [heading(name)[1]]
        shown.append(table(columns, cells, width))
    return Group(*shown, Text(), *notes(rows))


def notes(rows: Mapping[str, Priced]) -> Iterator[Text]:
    """Yield what has to be said below every table: that it is a model, and of what."""
    costs = [row.cost for row in rows.values()]
    prices = costs[0].prices
    yield Text(
        f"A model, not a measurement.  Prices: {prices.name} ({prices.source}).  Each op reads every operand and "
        "writes its result once, from and to the memory that is named; a cast is an op, so kernels "
        "that fuse it move less.  How ops are counted: precsim/analyse/work.py.",
        style="dim",
    )
    estimated = sorted({name for cost in costs for name in cost.estimated})
    if estimated:
        yield Text(f"Estimated: {', '.join(estimated)} ({RULE}).  {prices.trial()}", style="dim")
    for name, row in rows.items():
        if row.cost.alone:
            yield Text(
                f"{name}: {share(row.cost.alone)} of its products have a scale each (one for each "
                "row, and rows are what is summed over): they are multiplied with it one by one, "
                "and added, in fp32.  Scales along the sum, or of a tensor, would not need that.",
                style="dim",
            )


def shares(parts: Counter[str]) -> str:
    """Return "e4m3 55%, bf16 45%", the largest first; one alone is only named."""
    whole = parts.total()
    named = [(name, part) for name, part in parts.most_common() if part]
    if len(named) < 2:
        return "".join(name for name, _ in named) or "-"
    return ", ".join(f"{name} {share(part / whole)}" for name, part in named)


def ratio(own: float, other: float) -> float:
    """Return own / other; NaN where there is nothing to compare with."""
    return own / other if other else float("nan")


def times(value: float) -> str:
    """Return a ratio to two digits: 0.32, 1.1, 17."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.3g}"


def count(number: float) -> str:
    """Return a count in thousands, millions or billions: 1.53 M; nothing is "-"."""
    if not number:
        return "-"
    for unit in ("", " k", " M"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.4g} G"


def size(number: float) -> str:
    """Return bytes: 812 B, 64.7 MB."""
    return f"{count(number)}B" if number >= 999.5 else f"{number:.0f} B"
