"""What the README says of measured rows: the machine, and for each target whether it was reached."""

import importlib
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

from precsim.observe.costs import CASES, span
from tests.benchmarks.measure import quantity

BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
"""What is between these in README.md is written by ``python -m tests.benchmarks --readme``."""
LIBRARIES = ("numpy", "numba", "torch", "ml_dtypes")


def fingerprint():
    """Return what the numbers depend on: processor, system, libraries; and the day."""
    found = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    for name in LIBRARIES:
        try:
            found[name] = importlib.import_module(name).__version__
        except ImportError:
            found[name] = None
    return found


def _processor():
    """Return the name of the processor, as Linux knows it, or what Python says."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else ()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def by_target(rows):
    """Return one line for each target, with the rows that it is for.

    One target is one limit, of one table, beside one peer; a peer's size or element is left out.
    """
    lines = {}
    for found in rows:
        if found["target"] is None or found["ratio"] is None:
            continue
        table = found["table"]
        peer = {"growth": "half of it", "blocks": "elements alone"}.get(
            table.split()[0].rstrip(",")
        )
        case = {"training step": found["case"], "observation": _level(found["case"])}.get(table, "")
        key = (table, case, peer or found["peer"], found["target"])
        lines.setdefault(key, []).append(found)
    tables = list(dict.fromkeys(key[:2] for key in lines))
    in_order = sorted(lines.items(), key=lambda line: tables.index(line[0][:2]))
    return [
        {
            "what": ", ".join(filter(None, (table, case or _doubled(group)))),
            "formats": sorted({r["format"] for r in group if r["format"]}),
            "peer": peer,
            "target": target,
            "ratios": [r["ratio"] for r in group],
            "reached": sum(r["reached"] for r in group),
            "rows": group,
        }
        for (table, case, peer, target), group in in_order
    ]


def _level(case):
    """Return a level of observation; that NumPy's kernels compute, in either arithmetic, is not said."""
    return case.removesuffix(", fast").removesuffix(", exact")


def _doubled(group):
    """Return what was doubled, of rows "layers 2 to 4", "40 to 80 steps"; nothing for others."""
    if not group[0]["table"].startswith("growth"):
        return ""
    words = [r["case"].split() for r in group]
    return " and ".join(dict.fromkeys(w[-1] if w[0].isdigit() else w[0] for w in words))


def verdict(line):
    """Return in words whether a target was reached, and by how much it was not."""
    missed = len(line["ratios"]) - line["reached"]
    if not missed:
        return "reached"
    over = max(line["ratios"]) / line["target"] - 1
    over = "less than 1%" if over < 0.01 else f"{over:.0%}"
    if not line["reached"]:
        return f"missed, by {over} at most"
    return f"missed by {missed} of {len(line['ratios'])}, by {over} at most"


def markdown(rows, machine):
    """Return the README's table, with the machine that it was measured on above it."""
    libraries = ", ".join(f"{name} {machine[name]}" for name in LIBRARIES if machine.get(name))
    where = f"{machine['processor']} ({machine['cores']} cores, load {machine['load']})"
    text = [
        f"One thread, {where}, Python {machine['python']}, {libraries}, {machine['date']}:",
        "",
        "| what | formats | beside | measured | at most | |",
        "|---|---|---|---|---|---|",
    ]
    for line in by_target(rows):
        low, high = (f"{end(line['ratios']):.2f}" for end in (min, max))
        measured = high if low == high else f"{low} to {high}"
        formats = ", ".join(line["formats"])
        text.append(
            f"| {line['what']} | {formats} | {line['peer']} | {measured} | {line['target']:.3g} "
            f"| {verdict(line)} |"
        )
    text += ["", *_levels(rows), *_large(rows)]
    return "\n".join(text)


def level_costs(rows):
    """Return what `precsim.observe.costs` reads: each level's seconds and ratios, least and most."""
    found = {}
    for measured in rows:
        if measured["table"] == "observation":
            level, _, case = measured["case"].partition(", ")
            found.setdefault(level, {}).setdefault(case, []).append(measured)
    return {
        level: {
            case: {
                name: [pick(r[name] for r in group) for pick in (min, max)]
                for name in ("seconds", "ratio")
            }
            for case, group in sorted(cases.items())
        }
        for level, cases in found.items()
    }


def _levels(rows):
    """Return a table of what watching costs, if it was measured."""
    costs = level_costs(rows)
    if not costs:
        return
    cases = {case: title for case, title in CASES.items() if any(case in c for c in costs.values())}
    yield "A step at each level of `observe`, and as a multiple of one that nobody watches:"
    yield ""
    yield f"| level | {' | '.join(cases.values())} |"
    yield "|---" * (1 + len(cases)) + "|"
    for level, measured in costs.items():
        cells = [_cost(measured.get(case)) for case in cases]
        yield f"| `{level}` | {' | '.join(cells)} |"
    yield ""


def _cost(cost):
    if cost is None:
        return ""
    ms = span([s * 1e3 for s in cost["seconds"]], 0)
    return f"{span(cost['ratio'], 2)} ({ms} ms)"


def _large(rows):
    """Return a sentence on what a step of the large model takes, if it was measured."""
    found = [r for r in rows if r["table"] == "a large model"]
    if found:
        taken = " and ".join(quantity(r) for r in found)
        yield f"A step of a model with {found[0]['case']} in {found[0]['format']} takes {taken}."


def between_markers(page, text):
    """Return a page with `text` between its markers; raise `ValueError` for one without any."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        msg = f"expected {BEGIN} and {END} in the page"
        raise ValueError(msg)
    return f"{before}{begin}\n{text}\n{end}{after}"
