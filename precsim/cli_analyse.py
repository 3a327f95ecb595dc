"""Verbs that look into one training step: show, diff, blame, search, whatif, step.

Exit codes: 0 fine, 1 a finding (an abnormal op, no set of ops that would do), 2 bad usage or bad
input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sized
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from precsim.analyse import ask
from precsim.analyse import blame as blaming
from precsim.analyse import diff as diffing
from precsim.analyse.health import Health
from precsim.analyse.recorded import Op, ops_of, walk
from precsim.analyse.scales import outlooks
from precsim.cli_shared import (
    NO_OP,
    Assignments,
    Folder,
    Json,
    consoles,
    fail,
    print_line,
    reading_input,
    tell,
)
from precsim.engine.policy import Policy
from precsim.observe.counters import OpCounts, total
from precsim.observe.trace import matches, unmatched
from precsim.recipes import RECIPES, recipe
from precsim.runs.config import TrainConfig, parse_assignments, read
from precsim.runs.data import load
from precsim.runs.files import write_file
from precsim.runs.lines import dump
from precsim.runs.run import open_run
from precsim.show import findings, steps

WORST = 12
"""Ops that `precsim show` shows, if --op does not say which."""

Update = Annotated[
    bool,
    typer.Option("--update", help="Of what the step does to the weights, the optimizer included."),
]
Step = Annotated[int, typer.Option("--step", metavar="K", help="The step to look into.")]
Glob = Annotated[
    str | None,
    typer.Option("--op", metavar="GLOB", help="These only: 'gradients/*', 'blocks.0.*', gelu."),
]


FINDINGS = {
    "show": "Exits with 1 where an op is in trouble, and names the first.",
    "diff": "Exits with 1 where an op is abnormal, and names the first.",
    "search": "Exits with 1 where no set of ops will do.",
    "step": "Exits with 1 where an op is in trouble, and names the first.",
}
"""What a verb finds that other programs may want to know."""


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb in (show, diff, blame, search, whatif, step):
        epilog = FINDINGS.get(verb.__name__)
        app.command(rich_help_panel="One step, taken apart", epilog=epilog)(verb)


def show(
    folder: Folder,
    step: Step,
    op: Glob = None,
    sort: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Largest first: flushed, lost, err_u, amax .."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what rounding did to each op of a recorded step.

    Of a single op (--op), its exponents too.
    """
    ops = _chosen(ops_of(open_run(folder), step), op)
    if sort:
        ops.sort(key=lambda one: -_value(one, sort))
    worst = ops if op or sort else _worst(ops)
    if as_json:
        print_line(dump([_facts(one) for one in (ops if sort is None and op is None else worst)]))
    else:
        out, _ = consoles()
        shown = worst[: None if op else WORST]
        print_line(f"step {step} of {folder.name}: {_count(shown, ops)}")
        out.print(steps.ops_table(shown, out.width))
        if len({one.counts.path for one in shown}) == 1:
            out.print()
            print_line(
                f"exponents of {shown[0].counts.path}, and what {shown[0].counts.format} does to them:"
            )
            out.print(steps.strip(_total(shown), out.width))
    _report(ops)


def _worst(ops: list[Op]) -> list[Op]:
    """Return the ops that are worst off; before them the first in trouble, which all follow from."""
    worst = sorted(ops, key=_badness, reverse=True)[:WORST]
    first = next((one for one in ops if one.complaint), worst[0])
    return [first, *(one for one in worst if one is not first)][:WORST]


def _chosen(ops: list[Op], glob: str | None) -> list[Op]:
    """Return the ops that a glob names; exit with 2 where it names none."""
    chosen = [one for one in ops if glob is None or matches(one.counts.path, glob)]
    if glob is not None and not chosen:
        fail(NO_OP.format(glob, unmatched(glob, [one.counts.path for one in ops])), 2)
    return chosen


def _count(shown: Sized, ops: Sized, order: str = "the worst first ") -> str:
    if len(shown) == len(ops):
        return f"{len(ops)} op{'s' * (len(ops) > 1)}"
    return f"{len(shown)} of {len(ops)} ops, {order}(--op '*' shows all)"


def _value(one: Op, column: str) -> float:
    """Return what to sort by: a kind of result, err_u, or a number of `OpCounts`."""
    places: tuple[Any, ...] = (Health.of(one.counts), one, one.counts)
    name = "swamped_share" if column == "lost" else column
    found = [getattr(place, name, None) for place in places]
    numbers = [value for value in found if isinstance(value, int | float)]
    if not numbers:
        known = "zero, flushed, subnormal, normal, overflow, nan, lost, err_u, n, amax, amin, rms"
        fail(f"no column {column!r} to sort by: expected one of {known}", 2)
    return float(numbers[0])


def _badness(one: Op) -> tuple[float, ...]:
    row, health = one.counts, Health.of(one.counts)
    lost = 0.0 if one.by_chance else max(row.flushed_share, row.swamped_share)
    return (health.nan, health.overflow, round(lost, 2), one.err_u)


def _facts(one: Op) -> dict[str, Any]:
    facts = one.counts.to_dict() | {"err_u": one.err_u, "complaint": one.complaint}
    return facts | {"health": asdict(Health.of(one.counts))}


def _total(ops: Iterable[Op]) -> OpCounts:
    """Return the runs of one op, added up."""
    rows = [one.counts for one in ops]
    sum_of = OpCounts(path=rows[0].path, format=rows[0].format)
    for row in rows:
        sum_of.add(row)
    return sum_of


def _report(ops: Iterable[Op]) -> None:
    """Exit with 1 where an op is in trouble, naming the first."""
    for one in ops:
        if one.complaint:
            fail(f"first op in trouble: {one.counts.path}: {one.complaint}", 1)


def diff(
    folder: Folder,
    step: Step,
    other: Annotated[
        Path | None, typer.Argument(metavar="DIR2", help="Look at this run's formats instead.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="POLICY", help="The truth: a recipe, format or policy; else fp64."),
    ] = None,
    op: Glob = None,
    as_json: Json = False,
) -> None:
    """Compare a step with itself in float64, op by op.

    Or with itself under another policy (--against), or in another run's formats (DIR2).

    Weights, batch and loss scale are those of DIR in both; with DIR2, DIR is the truth.
    """
    truth = None if against is None else _policy(against)
    with reading_input():
        found = ask.diff(open_run(folder), step, None if other is None else open_run(other), truth)
    rows = [row for row in found.rows if op is None or matches(row.path, op)]
    if op is not None and not rows:
        fail(NO_OP.format(op, unmatched(op, [row.path for row in found.rows])), 2)
    first = found.first_abnormal()
    if as_json:
        firsts = {"first_abnormal": first, "first_broken": found.first_broken()}
        facts = {name: row and asdict(row) for name, row in firsts.items()}
        print_line(dump({"rows": [asdict(row) for row in rows]} | facts))
    else:
        out, _ = consoles()
        shown = rows if op else _interesting(rows)
        said = _count(shown, rows, "those most off, as they ran ")
        print_line(f"step {step} of {folder.name} {_beside(other, against)}")
        print_line(said)
        out.print(findings.diff_table(shown, out.width))
        out.print()
        for line in findings.diff_sentences(found, shown):
            print_line(line)
    if first is not None:
        broken = found.first_broken()
        nan = f"; not finite from {broken.path} on" if broken not in (None, first) else ""
        fail(f"first abnormal op: {first.path}: {first.verdict}{nan}", 1)


def _beside(other: Path | None, against: str | None) -> str:
    """Say what a step is compared with."""
    truth = f"under {against}" if against else "in float64"
    return f"in the formats of {other.name} against itself" if other else f"against itself {truth}"


def _interesting(rows: list[diffing.Row]) -> list[diffing.Row]:
    """Return the ops that are not ok, and those with the largest errors, in order.

    Where there is no room for all, the first goes before the others, and a cause before what it did;
    last are the optimizer's, of which an error in u says little.
    """
    ok, effect = diffing.Verdict.OK, diffing.Verdict.PROPAGATED
    first = next((r for r in rows if r.verdict is not ok), None)

    def place(row: diffing.Row) -> tuple[bool, bool, bool, bool, float]:
        fine = row.verdict is ok
        return row is not first, fine, row.verdict is effect, fine and row.of_optimizer, -row.total

    order = sorted(rows, key=place)
    abnormal = sum(r.verdict is not ok for r in rows)
    return sorted(order[: max(WORST, min(abnormal, 2 * WORST))], key=lambda r: r.index)


def _policy(text: str) -> Policy:
    """Return a policy from a recipe's name or a policy's text; exit with 2 for neither."""
    try:
        found = RECIPES[text].policy if text in RECIPES else Policy.parse(text)
    except ValueError as error:
        fail(f"--against {text!r} is no recipe and no policy: {error}", 2)
    return found


def blame(
    folder: Folder, step: Step, op: Glob = None, update: Update = False, as_json: Json = False
) -> None:
    """Say how much each op adds to the error of a step's gradient.

    Worst first; with --update, to the error of what the step does to the weights.

    alone: the error with only this op in its format; without: with only this op in fp64.
    """
    moment = ask.moment_of(open_run(folder), step, update=update)
    sites = ask.sites_of(moment, op)
    if not as_json:
        named = f"{len(sites)} site{'s' * (len(sites) > 1)}"
        tell(f"running the step {2 * len(sites) + 2} times, for {named}")
    found = blaming.blame(moment, sites)
    if as_json:
        facts = {"total": found.total, "u": found.u, "accounted": found.accounted}
        shares = [_share_facts(one) for one in found.worst(len(sites))]
        print_line(dump(facts | {"shares": shares}))
        return
    out, _ = consoles()
    of, every = "update" if update else "gradient", len(moment.sites())
    print_line(f"step {step} of {folder.name}")
    for line in findings.blame_sentences(found, of, sites=every):
        print_line(line)
    out.print()
    worst = found.worst(len(sites) if op else WORST)
    out.print(findings.blame_table(worst, out.width))
    if len(worst) < len(sites):
        print_line(f"{len(worst)} of {len(sites)} sites, the worst first; --op '*' shows all")


def _share_facts(one: blaming.Share) -> dict[str, Any]:
    return asdict(one) | {"site": one.site.name, "format": one.site.format}


def search(
    folder: Folder,
    step: Step,
    tolerance: Annotated[
        float, typer.Option("--tol", metavar="X", help="Largest relative error of it.")
    ],
    op: Glob = None,
    update: Update = False,
    to: Annotated[
        str, typer.Option("--high", metavar="FORMAT", help="Format of the ops that are kept high.")
    ] = "fp64",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE.toml", help="Write the config with it here."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Try again what an earlier search has tried.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find the fewest ops to keep in high precision.

    So that a step's gradient, or its update of the weights, is right to a tolerance.  Prints the
    policy that does it, for train --set or fork --set.  What was tried is kept beside the run:
    after Ctrl-C the same command goes on, and another tolerance starts from it.
    """
    run, (_, err) = open_run(folder), consoles()
    with reading_input(), err.status("") as status:
        try:
            found = ask.search(
                run, step, tolerance, op, update=update, to=to, fresh=fresh,
                on_trial=lambda n, high: status.update(f"trial {n}: {high} ops high"),
            )  # fmt: skip
        except KeyboardInterrupt:
            fail("interrupted; the same command goes on from what has been tried", 130)
    if output is not None and found.policy is not None:
        changed = run.config.change(policy=str(found.policy)).to_dict()
        write_file(output, "".join(f"{k} = {dump(v)}\n" for k, v in changed.items()).encode())
        tell(f"wrote {output}; try `precsim train {output}`")
    if as_json:
        keep, policy = [site.name for site in found.keep], str(found.policy or "")
        print_line(dump(asdict(found) | {"keep": keep, "policy": policy}))
    else:
        for line in findings.search_sentences(found):
            print_line(line)
    if found.reason and found.all_low > tolerance:
        fail(f"nothing found: {found.reason}", 1)


def whatif(folder: Folder, step: Step, op: Glob = None, as_json: Json = False) -> None:
    """Say what a step's values would lose in every other format.

    At every loss scale.  From the recorded exponents of these values alone: what a lost value does
    to the ops after it, only a run can tell.
    """
    run = open_run(folder)
    ops = _chosen(ops_of(run, step), op)
    scale = run.records[step - run.manifest.start].scale
    sums = {phase: total(one.counts for one in ops if one.counts.phase == phase)
            for phase in ("forward", "backward")}  # fmt: skip
    found = {
        phase: outlooks(row, scale) for phase, row in sums.items() if row.histogram is not None
    }
    if as_json:
        print_line(dump({phase: [asdict(one) for one in rows] for phase, rows in found.items()}))
        return
    out, _ = consoles()
    if "forward" in found:
        print_line("forward, which no loss scale moves:")
        out.print(findings.forward_table(found["forward"], scale, out.width))
        print_line("")
    if "backward" in found:
        print_line("backward, by loss scale (* recorded): flushed, and ^ beyond the largest:")
        out.print(findings.scales_table(found["backward"], scale, out.width))


def step(
    config_file: Annotated[
        Path | None, typer.Argument(metavar="CONFIG.toml", help='Lines like: policy = "fp16"')
    ] = None,
    recipe_name: Annotated[
        str | None, typer.Option("--recipe", help="Precisions and loss scale by name.")
    ] = None,
    assignments: Assignments = None,
    stop: Annotated[
        bool,
        typer.Option(
            "--stop", help="Stop at the first op that flushes most, overflows, makes NaN."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Walk through a first training step, op by op; needs no run.

    Forwards, and then backwards through the tape.
    """
    with reading_input():
        entries = read(config_file) if config_file else {}
        entries |= recipe(recipe_name).settings() if recipe_name else {}
        config = TrainConfig().change(**(entries | parse_assignments(assignments or [])))
    ops = walk(config, load(config.data), stop=stop)
    if as_json:
        print_line(dump([_facts(one) for one in ops]))
    else:
        out, _ = consoles()
        out.print(steps.walk(ops, out.width))
        if stop and ops[-1].complaint:
            out.print()
            out.print(steps.strip(ops[-1].counts, out.width))
    _report(ops)
