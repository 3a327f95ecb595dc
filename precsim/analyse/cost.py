"""What a training step would cost on hardware that has its formats: a model, not a measurement.

`precsim.analyse.work` counts what the step computes and moves; a table of prices
(`precsim.analyse.prices`) says what that would take.  Each operand is read, and each result written,
once for each op, from and to the memory that is named: reuse between ops and reading again within
one are not modelled, nor is time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from precsim.analyse.prices import Prices, read_prices
from precsim.analyse.work import Arithmetic, Names, Work, work
from precsim.recipes import Recipe
from precsim.recipes import recipe as recipe_called
from precsim.runs import data
from precsim.runs.config import TrainConfig
from precsim.runs.data import Corpus

LABEL = "model, not measurement"
"""Stands in every table and figure of costs."""

GROUPS = ("op", "format", "phase")
"""What costs can be listed by."""


@dataclass
class Line:
    """Part of a step's cost: MACs, all operations (MACs count as two), bytes, and picojoules."""

    macs: float = 0.0
    operations: float = 0.0
    moved: float = 0.0
    arithmetic: float = 0.0


@dataclass(frozen=True, repr=False)
class Cost:
    """What one step does, by phase and op, and what that costs by a table of prices.

    Energies are in picojoules: `arithmetic` of all operations, `traffic(memory)` of all bytes.
    A model, not a measurement.
    """

    work: tuple[Work, ...] = field(repr=False)
    prices: Prices = field(repr=False)

    @cached_property
    def macs(self) -> Counter[Names]:
        """Multiply-accumulates by the formats of their two operands, the wider one first."""
        return sum((one.macs for one in self.work), Counter())

    @cached_property
    def read(self) -> Counter[str]:
        """Bytes that ops read, by format."""
        return sum((one.read for one in self.work), Counter())

    @cached_property
    def written(self) -> Counter[str]:
        """Bytes that ops write, by format."""
        return sum((one.written for one in self.work), Counter())

    @property
    def moved(self) -> int:
        """All bytes that are read or written."""
        return self.read.total() + self.written.total()

    @property
    def effective_bits(self) -> float:
        """Mean width of an operand of a MAC, scales included; NaN for a step without matmuls."""
        macs = self.macs.total()
        return sum(one.operand_bits for one in self.work) / macs if macs else float("nan")

    @cached_property
    def arithmetic(self) -> float:
        """Picojoules of the arithmetic."""
        return sum(self._pj(a) * times for one in self.work for a, times in one.arithmetic.items())

    def traffic(self, memory: str) -> float:
        """Return the picojoules of moving all bytes; `memory` is one of the table's."""
        return self.prices.traffic(self.moved, memory)

    @cached_property
    def estimated(self) -> dict[str, str]:
        """The formats whose prices are estimated -> from which of the table's they are."""
        used = {name for one in self.work for a in one.arithmetic for name in a.at}
        prices = {name: self.prices.of(name) for name in sorted(used)}
        return {name: price.source for name, price in prices.items() if price.estimated}

    @property
    def alone(self) -> float:
        """The share of MACs whose products have a scale each, and are brought to fp32 one by one."""
        macs = self.macs.total()
        return sum(one.alone for one in self.work) / macs if macs else 0.0

    def check(self) -> None:
        """Raise `ValueError` where the table has no price for what the step computes in."""
        for name in {name for one in self.work for a in one.arithmetic for name in a.at}:
            self.prices.of(name)

    def by(self, group: str) -> dict[str, Line]:
        """Return the cost by "op", "format" or "phase", which add up to the whole.

        By format, half of each MAC belongs to either operand's.  Raises `ValueError` for another
        group.
        """
        if group not in GROUPS:
            msg = f"costs are listed by {', '.join(GROUPS)}; got {group!r}"
            raise ValueError(msg)
        found: dict[str, Line] = {}
        for one in self.work:
            for name, line in self._parts(one, group):
                total = found.setdefault(name, Line())
                total.macs += line.macs
                total.operations += line.operations
                total.moved += line.moved
                total.arithmetic += line.arithmetic
        return found

    def _parts(self, one: Work, group: str) -> Iterator[tuple[str, Line]]:
        named = one.op if group == "op" else one.phase
        for of, times in one.macs.items():
            for name in of:
                yield name if group == "format" else named, Line(macs=times / 2)
        for kind, times in one.arithmetic.items():
            for name in kind.of:
                share = times / len(kind.of)
                line = Line(operations=share, arithmetic=share * self._pj(kind))
                yield name if group == "format" else named, line
        for fmt, size in (one.read + one.written).items():
            yield fmt if group == "format" else named, Line(moved=size)

    def _pj(self, kind: Arithmetic) -> float:
        if kind.does == "multiply":
            return self.prices.multiply(kind.at)
        return self.prices.of(kind.at[0]).add

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "model": LABEL,
            "macs": {label(of): n for of, n in self.macs.items()},
            "bytes_read": dict(self.read),
            "bytes_written": dict(self.written),
            "effective_bits": self.effective_bits,
            "arithmetic_pj": self.arithmetic,
            "traffic_pj": {memory: self.traffic(memory) for memory in self.prices.memory},
            "scaled_one_by_one": self.alone,
            "estimated": self.estimated,
            "prices": self.prices.to_dict(),
        }

    def __repr__(self) -> str:
        traffic = ", ".join(f"{energy(self.traffic(m))} from {m}" for m in self.prices.memory)
        estimated = f"; estimated: {', '.join(self.estimated)}" if self.estimated else ""
        return (
            f"Cost ({LABEL}): {self.macs.total():,} MACs of {self.effective_bits:.3g} bits, "
            f"{energy(self.arithmetic)} of arithmetic; {self.moved:,} bytes moved, {traffic}"
            f"{estimated}"
        )


def cost(
    recipe: str | Recipe | None = None,
    config: TrainConfig | None = None,
    *,
    prices: str | Path | Prices | None = None,
    corpus: Corpus | None = None,
) -> Cost:
    """Return what one training step would cost on hardware that has its formats.

    A model, not a measurement: one step is run and counted, and priced by a small table.

        low, high = ps.cost("te_mxfp8"), ps.cost("fp32")
        low.arithmetic / high.arithmetic, low.effective_bits, low.by("op")

    `config` has the sizes of the model and the batch (None: a `TrainConfig` as it comes), and the
    formats, too, where no recipe is named.  `prices` is a TOML file instead of the package's.
    Raises `ValueError` for an unknown recipe or a malformed table, and what `precsim.train` raises.
    """
    settings = config or TrainConfig()
    if recipe is not None:
        one = recipe_called(recipe) if isinstance(recipe, str) else recipe
        settings = settings.change(**one.settings())
    table = prices if isinstance(prices, Prices) else read_prices(prices)
    text = data.load(settings.data) if corpus is None else corpus
    found = Cost(tuple(work(settings, text)), table)
    found.check()
    return found


def label(of: Names) -> str:
    """Return how a product's formats are written: "e4m3", "e5m2 x e4m3"."""
    return " x ".join(dict.fromkeys(of))


def energy(pj: float) -> str:
    """Return picojoules in the unit that keeps them short: "4.6 pJ", "1.7 mJ"."""
    for unit in ("pJ", "nJ", "uJ", "mJ"):
        if abs(pj) < 999.5:
            return f"{pj:.3g} {unit}"
        pj /= 1000
    return f"{pj:.3g} J"
