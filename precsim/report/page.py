"""The page: one HTML file with everything in it, which loads nothing and can be read without scripts.

What the script needs is in the page as gzip in base64, Plotly included, so that no text of a run
can be taken for markup; what the template writes is escaped.  A content security policy forbids the
page every connection.
"""

from __future__ import annotations

import gzip
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from math import isfinite, isnan, log2
from typing import Any

from precsim import __version__
from precsim.analyse.health import KINDS
from precsim.analyse.recorded import Op
from precsim.engine.rule import PHASES
from precsim.formats.format import Format
from precsim.formats.registry import element_of
from precsim.formats.registry import format as resolve
from precsim.observe.counters import LOWEST, OpCounts
from precsim.report.collect import Collected, hue
from precsim.runs.files import RunError
from precsim.runs.lines import dump
from precsim.runs.results import StepRecord, Trouble
from precsim.runs.summary import Summary
from precsim.show.drift_table import sentences
from precsim.show.html import COLOURS, HEADINGS, cells, key
from precsim.show.ranges import format_range
from precsim.show.style import BLACK, share
from precsim.show.terminal import brief
from precsim.show.verdict import verdict

LADDER = ("fp16", "bf16", "e5m2", "e4m3")
"""Formats whose ranges stand under every histogram, besides the op's own."""

OF_BOTH = ("n", "zeros", "flushed", "subnormal", "swamped", "updates")
"""Counts that `OpCounts` and the player's columns both have."""

STATIC_OPS, STATIC_STEPS = 40, 25
"""Rows of the tables that a page has without its script."""


def render(runs: Sequence[Collected], again: str) -> str:
    """Return the page about some runs, of which the first is the reference of the others.

    `again` is the command line that makes the page.  The same runs give the same page.
    Raises `RunError` where the extra "report" is not installed.
    """
    require()
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("precsim.report"), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "share": share,
        "brief": _brief,
        "exponent": _exponent,
        "part": _part,
        "hue": _ink,
    }
    templates = files("precsim.report") / "templates"
    parts = {name: Markup((templates / name).read_text("utf-8"))
             for name in ("report.css", "report.js")}  # fmt: skip
    return environment.get_template("report.html").render(
        runs=runs,
        verdicts=[verdict(run.summary, _reference(run, runs)) for run in runs],
        sparks=[spark([r.loss for r in run.records]) for run in runs],
        tables=[_static_ops(run) for run in runs],
        steps=[_static_steps(run) for run in runs],
        settings=_settings(runs),
        said=[sentences(run.twin) if run.twin else [] for run in runs],
        headings=HEADINGS,
        key=Markup(key()),
        markup=Markup,
        style=parts["report.css"],
        script=parts["report.js"],
        plotly=library(),
        data=packed(dump(_data(runs))),
        again=again,
        version=__version__,
    )


def require() -> None:
    """Raise `RunError` where the packages of the extra "report" are not installed."""
    missing = [name for name in ("jinja2", "plotly") if find_spec(name) is None]
    if missing:
        msg = f"a report needs {' and '.join(missing)}: try `pip install 'precsim[report]'`"
        raise RunError(msg)


@cache
def library() -> str:
    """Return Plotly.js as it stands in the page."""
    from plotly.offline import get_plotlyjs

    return packed(get_plotlyjs())


def packed(text: str) -> str:
    """Return text as gzip in base64; the same text gives the same letters."""
    return b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def spark(values: Sequence[float], width: int = 160, height: int = 34) -> str:
    """Return the points of an SVG polyline through values; those that are not finite are left out."""
    every = max(1, len(values) // width)
    kept = [(n, v) for n, v in enumerate(values) if n % every == 0 and abs(v) < float("inf")]
    low, high = min((v for _, v in kept), default=0.0), max((v for _, v in kept), default=1.0)
    last, room = max(1, len(values) - 1), (high - low) or 1.0
    return " ".join(
        f"{1 + n / last * (width - 2):.1f},{2 + (high - v) / room * (height - 4):.1f}"
        for n, v in kept
    )


def _data(runs: Sequence[Collected]) -> dict[str, Any]:
    """Return what the script draws."""
    names = {fmt for run in runs for _, _, fmt in run.player["ops"]} | set(LADDER)
    return {
        "kinds": list(KINDS),
        "phases": dict(PHASES),
        "colours": COLOURS,
        "lowest": LOWEST,
        "unit": _unit(runs),
        "ladder": LADDER,
        "formats": {name: _format(name) for name in sorted(names)},
        "runs": [
            {
                "name": run.name,
                "hue": hue(run.format),
                "guess": run.summary.guess,
                "scaled": run.scaled,
                "trouble": _trouble(run.summary.trouble),
                "curves": run.curves,
                "changes": run.changed_at,
                "skips": {skip.step: [skip.path, skip.count, skip.n] for skip in run.skips},
                "drift": [
                    {"step": p.step, "rho": p.drift.rho, "u": p.drift.rho_u, "angle": p.angle,
                     "worst": p.worst, "worst_rho": p.worst_rho}
                    for p in run.drift if p.defined
                ],
                "twin": _twin(run),
                "player": run.player,
            }
            for run in runs
        ],
    }  # fmt: skip


def _reference(run: Collected, runs: Sequence[Collected]) -> Summary | None:
    """Return what a run is compared with: the first one, where that learns the same data."""
    alike = len(runs) > 1 and run.config.data == runs[0].config.data
    return runs[0].summary if alike else None


def _unit(runs: Sequence[Collected]) -> str:
    """Return what losses are given for; a byte is a token, where both occur."""
    units = {run.unit for run in runs}
    return units.pop() if len(units) == 1 else "token"


def _trouble(first: Trouble | None) -> dict[str, Any] | None:
    return {"step": first.step, "path": first.path} if first else None


def _twin(run: Collected) -> list[dict[str, Any]]:
    """Return how far the weights are from the twin's at each measured step, and one kick is."""
    points = run.twin.points if run.twin else ()
    return [{"step": p.step, "apart": p.distance, "kick": p.chaos, "update": p.update.rho,
             "lost": p.swamped} for p in points if isfinite(p.distance)]  # fmt: skip


def _format(name: str) -> dict[str, Any]:
    """Return a format's range, its hue, and the exponents between which it keeps values."""
    fmt = resolve(name)
    element = element_of(fmt)
    facts = format_range(fmt) | {"name": name, "hue": hue(name), "largest": brief(element.max)}
    facts["scaled"] = not isinstance(fmt, Format)
    if not isinstance(fmt, Format) or fmt.is_integer:
        return facts | {"plain": False}
    smallest = int(log2(fmt.smallest_subnormal))
    ends = {"kept": smallest - fmt.subnormals, "emin": fmt.emin, "emax": fmt.emax}
    return facts | ends | {"plain": True}


def _static_ops(run: Collected) -> dict[str, Any] | None:
    """Return the worst ops of the step with the first trouble, or the last: cells by row."""
    steps = run.player["steps"]
    if not steps:
        return None
    trouble = run.summary.trouble.step if run.summary.trouble else None
    chosen = next((step for step in steps if step["step"] == trouble), steps[-1])
    ops = [_op(run.player["ops"][n], chosen, row) for row, n in enumerate(chosen["op"])]
    worst = sorted(ops, key=_badness, reverse=True)[:STATIC_OPS]
    return {"step": chosen["step"], "of": len(ops), "rows": [cells(op) for op in worst]}


def _badness(op: Op) -> tuple[float, ...]:
    row = op.counts
    return (bool(op.complaint), max(row.flushed_share, row.swamped_share), op.err_u)


def _op(place: list[Any], columns: dict[str, Any], row: int) -> Op:
    path, call, fmt = place
    count = {name: columns[name][row] for name in OF_BOTH}
    counts = OpCounts(path=path, call=call, format=fmt, u=1.0, **count)
    counts.saturated, counts.nonfinite_in = columns["saturated"][row], columns["nan"][row]
    counts.overflowed = columns["overflow"][row] - counts.saturated
    error = columns["err"][row]
    return Op(counts, float("nan") if error is None else error, bool(columns["chance"][row]))


def _static_steps(run: Collected) -> list[StepRecord]:
    every = max(1, len(run.records) // STATIC_STEPS)
    last = len(run.records) - 1
    return [r for n, r in enumerate(run.records) if n % every == 0 or n == last]


def _settings(runs: Sequence[Collected]) -> list[tuple[str, list[str], bool]]:
    """Return each entry of the configs with its value in every run, and whether these differ."""
    columns = [run.config.to_dict() for run in runs]
    rows = []
    for name in columns[0]:
        values = [str(column[name]) for column in columns]
        rows.append((name, values, len(set(values)) > 1))
    return sorted(rows, key=lambda row: not row[2])


def _brief(value: float) -> str:
    return "not finite" if isnan(value) else brief(value)


def _ink(fmt: str) -> str:
    """Return a format's colour as CSS; black is the page's own ink, dark or light."""
    return "var(--ink)" if hue(fmt) == BLACK else hue(fmt)


def _part(value: float) -> str:
    """Return a relative size in percent, two digits."""
    return f"{100 * value:.2g}%" if isfinite(value) else "-"


def _exponent(value: float) -> str | None:
    """Return k of a value 2^k with its sign; None for another value."""
    exponent = log2(value) if 0 < value < float("inf") else 0.5
    return f"{exponent:.0f}".replace("-", "\N{MINUS SIGN}") if exponent.is_integer() else None
