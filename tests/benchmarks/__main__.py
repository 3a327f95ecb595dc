"""All benchmarks: ``python -m tests.benchmarks [--quick] [--only NAME ...] [--json FILE] [--readme]``.

`--readme` writes the tables and the machine into README.md, figures/benchmarks.png with its data
beside it, and what watching costs to where the help reads it; `--from FILE` takes rows that `--json` wrote, and measures nothing.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

from tests.benchmarks.measure import one_thread, write_table

one_thread()

from precsim.backend import tier
from precsim.observe.costs import FILE
from precsim.show.plot import save
from tests.benchmarks.picture import benchmarks
from tests.benchmarks.summary import between_markers, fingerprint, level_costs, markdown

NAMES = ("rounding", "accumulators", "step", "observe", "growth")
ROOT = Path(__file__).resolve().parents[2]


def stored(name):
    """Return what `--json` wrote to a file; argparse tells who gives another."""
    try:
        data = json.loads(Path(name).read_text(encoding="utf-8"))
        missing = {"machine", "rows"} - data.keys()
    except (OSError, ValueError, AttributeError) as error:
        missing = error
    if missing:
        msg = f"expected a file that --json wrote; {name}: {missing}"
        raise argparse.ArgumentTypeError(msg)
    return data


def main(arguments):
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes and turns, to try it")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="these tables")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and machine")
    parser.add_argument("--readme", action="store_true", help="write README.md and its figure")
    parser.add_argument(
        "--from", dest="stored", type=stored, metavar="FILE", help="measure nothing"
    )
    given = parser.parse_args(arguments)
    if given.stored:
        data = given.stored
    else:
        data = {"machine": fingerprint(), "rows": []}
        for name in given.only:
            with tier("numpy"):  # a benchmark that wants other kernels says so
                found = importlib.import_module(f"tests.benchmarks.{name}").rows(given.quick)
            write_table(found, sys.stdout)
            sys.stdout.flush()
            data["rows"] += found
    if given.json:
        given.json.write_text(json.dumps(data, indent=1) + "\n")
    if given.readme:
        page = ROOT / "README.md"
        table = markdown(data["rows"], data["machine"])
        page.write_text(between_markers(page.read_text(encoding="utf-8"), table), encoding="utf-8")
        if costs := level_costs(data["rows"]):
            FILE.write_text(json.dumps(costs, indent=1) + "\n", encoding="utf-8")
        save("benchmarks", data, ROOT / "figures/benchmarks.png", {"benchmarks": benchmarks})


if __name__ == "__main__":
    main(sys.argv[1:])
