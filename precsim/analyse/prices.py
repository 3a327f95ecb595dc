"""The prices of operations and bytes: a small table in TOML, and a rule for what it does not list.

The table is energy.toml beside this file, which says where its numbers are from, or one like it.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from precsim.formats.registry import element_of, format
from precsim.runs.config import ConfigError

FILE = Path(__file__).with_name("energy.toml")
"""The table that the package brings."""

WORD_BYTES = 8
"""Bytes for which the table has the price of memory."""

FIELDS = ("multiply", "add")
RULE = (
    "not in the table; from the listed format with the nearest significand, multiplications by the "
    "square of its bits, additions by their number"
)

_INTEGER = re.compile(r"int(\d+)")


@dataclass(frozen=True)
class Price:
    """Picojoules of a multiplication and of an addition; `estimated`: by the rule, from `source`."""

    multiply: float
    add: float
    source: str = ""
    estimated: bool = False


@dataclass(frozen=True)
class Prices:
    """A table: what it is called, where it is from, prices by format, pJ a byte by memory."""

    name: str
    source: str
    formats: Mapping[str, Price]
    memory: Mapping[str, float]

    def of(self, fmt: str) -> Price:
        """Return the price of a format: the listed one, else an estimate.

        The estimate is from the listed format of its kind (float or integer) whose significand is
        the nearest in length.  Raises `ValueError` where none of its kind is listed, or for an
        unknown format.
        """
        return self.formats.get(fmt) or self._estimate(fmt, self.formats)

    def multiply(self, formats: tuple[str, ...]) -> float:
        """Return the price of a product: of two formats it is the geometric mean of theirs."""
        prices = [self.of(fmt).multiply for fmt in formats]
        return prices[0] if len(prices) == 1 else math.sqrt(prices[0] * prices[1])

    def traffic(self, size: float, memory: str) -> float:
        """Return the picojoules of moving so many bytes; raise `ValueError` for another memory."""
        if memory not in self.memory:
            known = ", ".join(self.memory)
            msg = f"no memory {memory!r} in the table {self.name!r}: expected one of {known}"
            raise ValueError(msg)
        return size * self.memory[memory]

    def trial(self) -> str:
        """Say how far the rule is off where it can be tried: the narrowest listed from the widest."""
        said = []
        for kind in ("float", "integer"):
            listed = sorted((_bits(f), f) for f in self.formats if _kind(f) == kind)
            if len(listed) < 2:
                continue
            (_, narrow), (_, wide) = listed[0], listed[-1]
            found = self._estimate(narrow, {wide: self.formats[wide]})
            told = [
                f"{noun} {100 * (getattr(found, what) / listed_price - 1):+.0f}%"
                for what, noun in (("multiply", "multiplication"), ("add", "addition"))
                if (listed_price := getattr(self.formats[narrow], what))
            ]
            said.append(f"{narrow} from {wide}: {', '.join(told)}")
        return f"The rule, tried on what is listed: {'; '.join(said)}." if said else ""

    def _estimate(self, fmt: str, listed: Mapping[str, Price]) -> Price:
        kind, bits = _kind(fmt), _bits(fmt)
        known = [(abs(math.log(_bits(f) / bits)), -_bits(f), f) for f in listed if _kind(f) == kind]
        if not known:
            msg = (
                f"the table {self.name!r} lists no {kind} format, from which the price of {fmt} "
                f"could be estimated: expected a [formats.{fmt}] with {' and '.join(FIELDS)}"
            )
            raise ValueError(msg)
        base = min(known)[-1]
        ratio = bits / _bits(base)
        price = listed[base]
        return Price(price.multiply * ratio**2, price.add * ratio, base, estimated=True)

    def to_dict(self) -> dict[str, Any]:
        """Return what the table is and where it is from, for JSON."""
        return {"name": self.name, "source": self.source, "pj_per_byte": dict(self.memory)}


def _kind(fmt: str) -> str:
    integer = _INTEGER.fullmatch(fmt) or element_of(format(fmt)).is_integer
    return "integer" if integer else "float"


def _bits(fmt: str) -> int:
    """Return the bits that a multiplier gets: of a float its significand's, of an integer all."""
    if match := _INTEGER.fullmatch(fmt):
        return int(match[1])
    element = element_of(format(fmt))
    return element.bits if element.is_integer else element.precision


def read_prices(path: str | Path | None = None) -> Prices:
    """Return a table of prices from a TOML file; None: the package's.

    Raises `ConfigError`, one sentence about the file, where it is missing, unreadable, no TOML, or
    has not the entries of energy.toml with numbers from 0 on.
    """
    path = FILE if path is None else Path(path)
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        msg = (
            f"cannot read the table {path}: {error.strerror}; `precsim cost --print-table` has one"
        )
        raise ConfigError(msg) from None
    except ValueError as error:  # not UTF-8, not TOML, or an integer of too many digits
        msg = f"the table {path} is not valid TOML: {error}; `precsim cost --print-table` has one"
        raise ConfigError(msg) from None
    return _Reader(str(path), table).prices()


class _Reader:
    """Takes a table apart; every complaint names the file and the entry."""

    def __init__(self, path: str, table: Mapping[str, Any]) -> None:
        self.path, self.table = path, table

    def prices(self) -> Prices:
        self.check("the file", self.table, ("name", "source", "formats", "memory"))
        for name in ("name", "source"):
            if not isinstance(self.table[name], str):
                self.refuse(f"{name} must be text; got {self.table[name]!r}")
        formats, memory = (self.section(name) for name in ("formats", "memory"))
        return Prices(
            self.table["name"],
            self.table["source"],
            {name: self.price(name, entry) for name, entry in formats.items()},
            {n: self.number(f"memory.{n}", pj) / WORD_BYTES for n, pj in memory.items()},
        )

    def price(self, name: str, entry: Any) -> Price:
        try:
            bits = _bits(name)
        except ValueError as error:
            self.refuse(f"[formats.{name}]: {error}")
        if not bits:
            self.refuse(f"[formats.{name}]: a format has a bit at least")
        self.check(f"[formats.{name}]", entry, FIELDS)
        multiply, add = (self.number(f"formats.{name}.{what}", entry[what]) for what in FIELDS)
        return Price(multiply, add, self.table["source"])

    def section(self, name: str) -> Mapping[str, Any]:
        section: Mapping[str, Any] = self.table[name]
        if not isinstance(section, dict) or not section:
            self.refuse(f"[{name}] must be a table with an entry at least")
        return section

    def check(self, where: str, entry: Any, expected: tuple[str, ...]) -> None:
        given = entry if isinstance(entry, dict) else {}
        missing = [name for name in expected if name not in given]
        unknown = [name for name in given if name not in expected]
        if missing or unknown:
            got = ", ".join(given) if given else repr(entry)
            self.refuse(f"{where}: expected {', '.join(expected)}; got {got}")

    def number(self, where: str, value: Any) -> float:
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if not (plain and 0 <= value < 1e300):
            self.refuse(f"{where} must be a number of picojoules from 0 on; got {value!r}")
        return float(value)

    def refuse(self, wrong: str) -> NoReturn:
        msg = f"the table {self.path}: {wrong}; `precsim cost --print-table` has a complete one"
        raise ConfigError(msg)
