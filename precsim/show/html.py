"""Health chips and tables of ops as HTML that needs nothing around it: for notebooks and reports."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from precsim.analyse.health import KINDS, Health
from precsim.analyse.recorded import Op
from precsim.show.style import rough, share

COLOURS = dict(
    zip(KINDS, ("#a8adb5", "#e69f00", "#56b4e9", "#009e73", "#d55e00", "#cc79a7"), strict=True)
)
"""A colour for each kind of result, after Okabe and Ito (2008), as far apart on white as on black."""

LEAST = 0.04
"""Share of a chip's width that a kind gets at least, if it occurs at all."""

HEADINGS = ("op", "format", "values", "health", "flushed", "overflow", "updates lost", "error in u")


def chip(health: Health) -> str:
    """Return a bar in which every kind of result has its share; in words for who sees no colours."""
    stops, at = [], 0.0
    for kind, width in widths(health).items():
        stops.append(f"{COLOURS[kind]} {at:.1%} {at + width:.1%}")
        at += width
    paint = f"linear-gradient(90deg,{','.join(stops)})" if stops else "none"
    text = escape(words(health), quote=True)
    return (
        f'<span class="chip" role="img" aria-label="{text}" title="{text}" style="display:inline-'
        f"block;width:7.5em;height:.8em;border-radius:.2em;vertical-align:middle;background:{paint}"
        '"></span>'
    )


def widths(health: Health) -> dict[str, float]:
    """Return the share of a chip's width of each kind that occurs; they add up to 1."""
    shares = {kind: max(LEAST, part) for kind in KINDS if (part := getattr(health, kind))}
    whole = sum(shares.values())
    return {kind: part / whole for kind, part in shares.items()}


def words(health: Health) -> str:
    """Return the shares of what occurs: "flushed 12%, normal 88%"."""
    parts = [(kind, getattr(health, kind)) for kind in KINDS]
    return ", ".join(f"{kind} {share(part)}" for kind, part in parts if part) or "no values"


def key() -> str:
    """Return what the colours of chips mean."""
    swatch = "display:inline-block;width:.8em;height:.8em;border-radius:.2em;background:"
    items = (
        f'<span style="white-space:nowrap;margin-right:1em">'
        f'<span style="{swatch}{COLOURS[kind]}"></span> {kind}</span>'
        for kind in KINDS
    )
    return f'<p class="key" style="font-size:smaller">{"".join(items)}</p>'


def ops_table(ops: Iterable[Op]) -> str:
    """Return the table of ops, and the key to their chips; all text in it is escaped."""
    cell = "padding:.15em .7em;text-align:"
    heads = "".join(f'<th style="{cell}{_side(n)}">{name}</th>' for n, name in enumerate(HEADINGS))
    rows = "".join(
        "<tr>"
        + "".join(f'<td style="{cell}{_side(n)}">{text}</td>' for n, text in enumerate(cells(op)))
        + "</tr>"
        for op in ops
    )
    return (
        f'<table style="border-collapse:collapse;font-variant-numeric:tabular-nums">'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>{key()}"
    )


def cells(op: Op) -> list[str]:
    """Return an op's row under `HEADINGS` as HTML."""
    row, health = op.counts, Health.of(op.counts)
    name = escape(row.path + (f" #{row.call}" if row.call else ""))
    what = op.complaint
    return [
        f'<strong title="{escape(what, quote=True)}">{name}</strong>' if what else name,
        escape(row.format),
        f"{row.n:,}",
        chip(health),
        share(row.flushed_share),
        share(health.overflow),
        share(row.swamped_share) if row.updates else "",
        rough(op.err_u) if row.u else "",
    ]


def _side(column: int) -> str:
    return "left" if column in (0, 1, 3) else "right"
