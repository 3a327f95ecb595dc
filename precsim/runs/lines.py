"""JSON that keeps its word: one way to write a value, and a checksum in every line.

JSON has no NaN and no infinity; they are the strings "nan", "inf" and "-inf".  Floats are written
so that they read back to the same bits.  A line's last entry is the CRC-32 of the line without it,
and since there is one way only to write a value, *any* changed byte is found.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

from precsim.runs.files import DamagedError

LONGEST_LINE = 1 << 24
"""No line that is written here comes near it."""


def plain(value: Any) -> Any:
    """Return a value as standard JSON holds it: NaN and infinities as strings, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, str) or not isinstance(value, Iterable):
        unwritable = isinstance(value, float) and not isfinite(value)
        return str(float(value)) if unwritable else value
    return [plain(inner) for inner in value]


def dump(value: Any, indent: int | None = None) -> str:
    """Return `plain` JSON text."""
    separators = (",", ":") if indent is None else None
    return json.dumps(plain(value), indent=indent, separators=separators, allow_nan=False)


def parse(text: bytes) -> Any:
    """Return what JSON text says.

    Raises `DamagedError` for text that is not UTF-8, not JSON, too deep, or has a name twice or a
    bare NaN.
    """
    try:
        return json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        msg = f"not valid JSON: {error}"
        raise DamagedError(msg) from None


def encode_line(entry: Mapping[str, Any]) -> bytes:
    """Return an object as a line with its checksum."""
    body = dump(entry)
    return dump(dict(entry) | {"crc": _crc(body)}).encode() + b"\n"


def decode_line(line: bytes) -> dict[str, Any]:
    """Return the object in a line, without its newline; raise `DamagedError` for any other text."""
    if len(line) > LONGEST_LINE:
        msg = f"a line of {len(line)} bytes: expected at most {LONGEST_LINE}"
        raise DamagedError(msg)
    entry = parse(line)
    if not isinstance(entry, dict) or "crc" not in entry:
        msg = "not a line with a checksum"
        raise DamagedError(msg)
    crc = entry.pop("crc")
    try:
        same = encode_line(entry) == line + b"\n"
    except ValueError:  # 1e999 is an infinity
        same = False
    if not same:
        msg = f"the checksum {crc!r:.20} does not fit the line"
        raise DamagedError(msg)
    return entry


def decode_lines(data: bytes) -> tuple[list[dict[str, Any] | DamagedError], bool]:
    """Return what each line says, or what is wrong with it, and whether the last one is torn."""
    *whole, rest = data.split(b"\n")
    lines: list[dict[str, Any] | DamagedError] = []
    for line in whole:
        try:
            lines.append(decode_line(line))
        except DamagedError as error:
            lines.append(error)
    return lines, bool(rest)


def _crc(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entry = dict(pairs)
    if len(entry) != len(pairs):
        msg = "the same name twice"
        raise ValueError(msg)
    return entry


def _refuse(constant: str) -> None:
    msg = f"{constant} is not a value of JSON"
    raise ValueError(msg)
