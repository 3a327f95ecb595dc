"""How the benchmarks measure: in turns, in one process, and medians of that; memory in a process alone.

Machines are noisy, and noise comes and goes: what takes turns is slowed down together, so that
ratios can be trusted where times cannot.  Times are the processor's, so that what others do on the
machine counts little.  One thread each, unless the environment says otherwise.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

LIBRARIES = ("OPENBLAS_NUM", "OMP_NUM", "MKL_NUM")


def one_thread():
    """Ask the BLAS and PyTorch for one thread; call it before NumPy is imported (not here, then)."""
    for library in LIBRARIES:
        os.environ.setdefault(f"{library}_THREADS", "1")


def medians(functions, turns, before=lambda: None):
    """Return the median seconds of each function by its name; each turn runs all of them.

    Each runs twice in a row, and the second time counts: it finds in the caches what it left there
    itself, and not what another did.  (A copy that follows a quick function is twice as quick as
    one that follows a slow one.)  `before` runs ahead of that second time, and is not counted; nor
    is the first turn.
    """
    times = {name: [] for name in functions}
    for _ in range(turns + 1):
        for name, function in functions.items():
            function()
            before()
            start = time.process_time()
            function()
            times[name].append(time.process_time() - start)
    return {name: median(found[1:]) for name, found in times.items()}


def peak_memory(module, *arguments):
    """Return the bytes that ``python -m MODULE ARGUMENTS`` says it used at most (see `used_by`)."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return None if run.stdout.strip() == "None" else int(run.stdout)


def used_by(function):
    """Return by how many bytes the process grew at its largest, while `function` ran.

    None where the system does not tell (it is Linux's VmHWM, set back before).
    """
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None

    def field(name):
        line = next(x for x in status.read_text().splitlines() if x.startswith(name))
        return int(line.split()[1]) * 1024

    before = field("VmRSS")
    reset.write_text("5")
    function()
    return field("VmHWM") - before


def row(table, case, fmt, value, unit="seconds", *, peer=None, against=None, limit=None):
    """Return one row of a table: `against` is the peer's value, `limit` the most of it allowed.

    `reached` is None where there is no limit, or no peer to hold it against.
    """
    ratio = value / against if against and value is not None else None
    return {
        "table": table,
        "case": case,
        "format": fmt,
        "seconds": value if unit == "seconds" else None,
        "bytes": value if unit == "bytes" else None,
        "ratio": ratio,
        "peer": peer,
        "target": limit,
        "reached": None if limit is None or ratio is None else ratio <= limit,
    }


def duration(seconds):
    """Return a time in the unit that suits it."""
    for unit, size in (("s", 1), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.2f} {unit}"
    return f"{seconds * 1e9:.2f} ns"


def amount(size):
    """Return a number of bytes in the unit that suits it."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def quantity(found):
    """Return what a row measured, a time or bytes, with its unit; nothing where it is not known."""
    if found["seconds"] is not None:
        return duration(found["seconds"])
    return "" if found["bytes"] is None else amount(found["bytes"])


def write_table(rows, out):
    """Write rows as a table that a terminal shows."""
    out.write(f"{'table':<24}{'case':<22}{'format':<17}{'':>11}  {'ratio':>7} {'to':<16}target\n")
    for r in rows:
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
        target = "" if r["target"] is None else f"<= {r['target']:.3g}"
        verdict = {None: "", True: "reached", False: "missed"}[r["reached"]]
        out.write(f"{r['table']:<24}{r['case']:<22}{r['format'] or '':<17}{quantity(r):>11}  ")
        out.write(f"{ratio:>7} {r['peer'] or '':<16}{target} {verdict}".rstrip() + "\n")
