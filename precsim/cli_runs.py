"""Verbs about recorded runs: resume, check, replay, fork, export; and how a run is shown.

Exit codes: 0 fine, 1 a finding (a damaged file, a step that comes out otherwise, a run that
diverged), 2 bad usage or bad input, 130 interrupted, and resumable.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from precsim.backend import get_backend
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
from precsim.engine.context import using
from precsim.observe.costs import sentence
from precsim.observe.counters import OpCounts
from precsim.observe.trace import unmatched
from precsim.recipes import RECIPES, recipe
from precsim.runs.check import Report
from precsim.runs.check import check as check_run
from precsim.runs.columns import OpTable
from precsim.runs.config import TrainConfig, parse_assignments
from precsim.runs.lines import dump
from precsim.runs.replay import Replay, ReplayError
from precsim.runs.results import Run, StepRecord
from precsim.runs.run import StoredRun, open_run
from precsim.runs.summary import summarize
from precsim.runs.train import Listener
from precsim.runs.train import resume as resume_run
from precsim.show import terminal
from precsim.show.progress import Bars
from precsim.show.style import share
from precsim.show.terminal import Column

WORST = 12
"""Ops that `precsim replay` shows, if --op does not say which."""

DEVICES = {"cpu": "numpy", "gpu": "cupy"}


def _compute_on(ctx: typer.Context, device: str) -> str:
    """Let the verb that is about to run compute there, until it ends."""
    if device not in DEVICES:
        msg = f"{device!r} is none: expected cpu, or gpu for CuPy on an NVIDIA device"
        raise typer.BadParameter(msg)
    get_backend(DEVICES[device])  # a device that is missing is missed now, not at the first op
    ctx.with_resource(using(backend=DEVICES[device]))
    return device


Device = Annotated[
    str,
    typer.Option("--device", metavar="cpu|gpu", callback=_compute_on, help="Where to compute."),
]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Record it here.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the run that is there.")]


DIVERGED = "Exits with 1 where the weights are no longer finite."
FINDINGS = {
    "resume": DIVERGED,
    "check": "Exits with 1 where a file is not what was written.",
    "replay": "Exits with 1 where a bit is not the one recorded.",
    "fork": DIVERGED,
}
"""What a verb finds that other programs may want to know."""


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb in (resume, check, replay, fork, export):
        epilog = FINDINGS.get(verb.__name__)
        app.command(rich_help_panel="Recorded runs", epilog=epilog)(verb)


def resume(folder: Folder, device: Device = "cpu", as_json: Json = False) -> None:
    """Continue a recorded run, with the bits that it would have had."""
    config, trained = open_run(folder).config, []

    def start(listen: Listener) -> Run:
        def note(record: StepRecord, rows: list[OpCounts]) -> None:
            trained.append(record.step)
            listen(record, rows)

        run = resume_run(folder, on_step=note)
        if not trained:
            tell(f"{folder} is over, and has nothing left to train; this is what it came to")
        return run

    show_run(start, folder.name, config, as_json=as_json)


def check(folder: Folder, as_json: Json = False) -> None:
    """Verify every file and hash of a run, and where it can resume."""
    report = check_run(folder)
    if as_json:
        print_line(dump(report.to_dict()))
    else:
        for line in _report_lines(report):
            print_line(line)
    if not report.ok:
        n, remedy = len(report.problems), "it cannot be resumed: train it again"
        if report.unreadable:
            remedy = "let the files be read by whoever runs this, and look again"
        elif report.resumes_at is not None:
            remedy = f"`precsim resume {folder}` uses what is intact and computes the rest again"
        fail(f"{n} problem{'s' * (n > 1)} in {folder}: {remedy}", 1)


def _report_lines(report: Report) -> Iterator[str]:
    for problem in report.problems:
        yield f"damaged  {problem}"
    for note in report.notes:
        yield f"note     {note}"
    state = "cannot be resumed"
    if report.resumes_at is not None:
        state = "finished" if report.finished else f"resumes at step {report.resumes_at}"
        if report.died_at is not None:
            state = f"over: its weights are no longer finite after step {report.died_at}"
    verdict = "intact" if report.ok else "damaged"
    yield f"{verdict:<8} {report.files} files, {report.steps} steps, {state}"


def replay(
    folder: Folder,
    step: Annotated[int, typer.Option("--step", metavar="K", help="The step to run again.")],
    op: Annotated[
        str | None,
        typer.Option("--op", metavar="GLOB", help="Show these: 'gradients/*', 'blocks.0.*', gelu."),
    ] = None,
    observe: Annotated[
        str,
        typer.Option(metavar="LEVEL", help=f"How closely: counts, hist or shadow.  {sentence()}"),
    ] = "shadow",
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Compare with what was recorded.")
    ] = True,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Run a recorded step again, to the bit, and look closer."""
    difference = ""
    try:
        found = open_run(folder).replay(step, observe=observe, verify=verify)
    except ValueError as error:
        if not isinstance(error, ReplayError):
            fail(str(error), 2)
        found, difference = error.replay, str(error)
    ops = found.ops.where(op=op)
    if op is not None and not len(ops):
        fail(NO_OP.format(op, unmatched(op, found.ops.paths())), 2)
    if as_json:
        facts = {"record": found.record.to_dict(), "compared": found.compared,
                 "difference": found.difference, "ops": list(ops.rows())}  # fmt: skip
        print_line(dump(facts))
    else:
        _print_replay(found, ops, everything=op is not None)
    if difference:
        fail(difference, 1)


def _print_replay(found: Replay, ops: OpTable, *, everything: bool) -> None:
    record = found.record
    print_line(f"step {record.step}: loss {record.loss:.6g}, scale {record.scale:g}, "
               f"gradient norm {record.grad_norm:.6g}")  # fmt: skip
    if not found.difference:
        ops_compared = f"{found.compared} ops have the hashes that were recorded"
        print_line(ops_compared if found.compared else "its ops were not recorded: none compared")
    measured = not np.isnan(ops["err_u"]).all()  # at level "counts" no error is
    by, what = ("err_u", "have the largest error") if measured else ("flushed_share", "flush most")
    order = np.argsort(-np.nan_to_num(ops[by], nan=-1.0), kind="stable")
    chosen = np.arange(len(ops)) if everything else order[:WORST]
    if not everything:
        print_line(f"the {len(chosen)} of {len(ops)} that {what}:")
    columns = [Column("op", justify="left"), Column("format", 4, "left"), Column("values", 3),
               Column("flushed"), Column("overflowed", 2), Column("error in u")]  # fmt: skip
    names = ("path", "call", "format", "n", "flushed_share", "overflowed", "err_u")
    picked = [ops[name][chosen].tolist() for name in names]
    rows = [
        (
            f"{path} #{call}" if call else path,
            fmt,
            f"{n:,}",
            share(flushed),
            str(over),
            f"{error:.3g}",
        )
        for path, call, fmt, n, flushed, over, error in zip(*picked, strict=True)
    ]
    out, _ = consoles()
    out.print(terminal.table(columns, rows, out.width))


def fork(
    folder: Folder,
    at: Annotated[int, typer.Option("--at", metavar="K", help="The first step that is different.")],
    output: Output,
    recipe_name: Annotated[
        str | None, typer.Option("--recipe", help="Go on with these precisions and loss scale.")
    ] = None,
    assignments: Assignments = None,
    force: Force = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Go on from a step of a recorded run under another config."""
    with reading_input():
        changes = recipe(recipe_name).settings() if recipe_name else {}
        changes |= parse_assignments(assignments or [])
    run = open_run(folder)
    config = run.config.change(**changes)
    fmt = RECIPES[recipe_name].format if recipe_name else None

    def start(tell: Listener) -> Run:
        return run.fork(at, output, force=force, on_step=tell, **changes)

    show_run(start, output.name, config, fmt, as_json=as_json)


def export(
    folder: Folder,
    to: Annotated[str, typer.Option("--to", help="csv or jsonl.")] = "csv",
    what: Annotated[
        str, typer.Option("--what", help="steps; ops: a row for each; weights: .safetensors.")
    ] = "steps",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write here, not to stdout."),
    ] = None,
) -> None:
    """Write a run's steps, ops or weights for other programs."""
    if what == "weights":
        if output is None:
            fail("--what weights needs a file to write: -o NAME.safetensors", 2)
        open_run(folder).save(output)
        return
    if to not in ("csv", "jsonl") or what not in ("steps", "ops"):
        fail(
            f"expected --to csv or jsonl, and --what steps, ops or weights; got {to!r} and {what!r}",
            2,
        )
    run = open_run(folder)
    rows = (r.to_dict() for r in run.records) if what == "steps" else run.ops().rows()
    lines = _csv_lines(rows) if to == "csv" else (dump(row) for row in rows)
    try:
        if output is None:
            for line in lines:
                print_line(line)
            return
        with output.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        fail(f"cannot write {output}: {error.strerror}", 2)


def _csv_lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield a header and the rows; text that a spreadsheet would take for a formula is quoted."""
    for number, row in enumerate(rows):
        if number == 0:
            yield _csv_line(row)
        yield _csv_line(row.values())


def _csv_line(cells: Iterable[Any]) -> str:
    buffer = io.StringIO()
    safe = [
        f"'{c}" if isinstance(c, str) and c.startswith(("=", "+", "-", "@")) else c for c in cells
    ]
    csv.writer(buffer, lineterminator="").writerow(["" if c is None else c for c in safe])
    return buffer.getvalue()


def show_run(
    start: Callable[[Listener], Run],
    title: str,
    config: TrainConfig,
    fmt: str | None = None,
    *,
    as_json: bool,
) -> None:
    """Start a run, show its progress and what it came to; exit with 1 if it diverged.

    `fmt` is the format that gives it its colour; None is that of its activations.
    """
    out, err = consoles()
    hue = fmt or terminal.format_of(config)
    with Bars(err, {title: (title, terminal.ink(hue))}, config.steps, quiet=as_json) as bars:
        run = start(lambda record, rows: bars(title, record.step + 1, record.loss))
    summary = summarize(run)
    sample = "" if summary.diverged else run.sample(160)
    if as_json:
        changes = [{"step": one.step, "policy": str(one.after)} for one in run.changes]
        found = {"config": run.config.to_dict(), "summary": summary.to_dict(), "sample": sample}
        print_line(dump(found | {"changes": changes}))
    else:
        out.print(terminal.runs_table({title: (hue, summary)}, out.width))
        out.print()
        for one in run.changes:
            out.print(terminal.sentences([("changed", hue, str(one))]))
        if sample:
            out.print(terminal.sentences([("writes", hue, terminal.printable(sample))]))
    if summary.diverged:
        fail(f"the run diverged: its weights are no longer finite after step {run.died_at}; "
             f"{_where_to_look(run)}", 1)  # fmt: skip


def _where_to_look(run: Run) -> str:
    if isinstance(run, StoredRun):
        return f"`precsim diff {run.path} --step {run.died_at}` names the op where that began"
    return "record it with -o DIR, and `precsim diff` names the op where that began"
