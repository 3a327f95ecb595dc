"""The command line.  Results go to stdout, messages to stderr.

Exit codes: 0 fine, 1 a finding (a run diverged), 2 bad usage or bad input, 3 a bug in precsim or a
full disk, 130 interrupted (a recorded run can be resumed after both of these).
"""

from __future__ import annotations

import os
import re
import sys
import traceback
import warnings
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import precsim
from precsim import cli_recipes, cli_runs
from precsim.backend import BackendError
from precsim.cli_runs import DIVERGED, Device, show_run
from precsim.cli_shared import (
    Assignments,
    BadInput,
    Json,
    TextFile,
    consoles,
    fail,
    print_line,
    reading_input,
    tell,
    tell_written,
)
from precsim.formats import literal
from precsim.formats.modes import SPELLINGS
from precsim.formats.registry import element_of
from precsim.observe.costs import sentence
from precsim.runs import config as configs
from precsim.runs import data
from precsim.runs.files import DamagedError, DiskFullError, RunError, make_folder
from precsim.runs.lines import dump
from precsim.runs.manifest import fingerprint
from precsim.runs.results import Run
from precsim.runs.train import Listener
from precsim.show import number, terminal
from precsim.show.progress import Bars

HEADINGS = (
    "Start here",
    "Formats and recipes",
    "Recorded runs",
    "One step, taken apart",
    "A whole run",
    "About precsim",
)
"""What `precsim --help` sorts the verbs by, in this order."""

FORMATS_SHOWN = ("fp32", "fp16", "bf16", "e5m2", "e4m3")
"""What `precsim num` compares a number in, if no format is named."""


class Verbs(TyperGroup):
    """The verbs, listed by what they are about, with one way to end for each kind of failure."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the verbs under the headings that they were registered with, none cut short."""
        panels: dict[str, list[tuple[str, str]]] = {heading: [] for heading in HEADINGS}
        for name, verb in self.commands.items():
            summary = verb.get_short_help_str(limit=200).removesuffix(".")
            panels[str(getattr(verb, "rich_help_panel", ""))].append((name, summary))
        for heading in HEADINGS:
            if panels[heading]:
                with formatter.section(heading):
                    formatter.write_dl(panels[heading])

    def invoke(self, ctx: Any) -> Any:
        """Run a verb; bad input and Ctrl-C become a sentence and an exit code."""
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _note
                return super().invoke(ctx)
        except BrokenPipeError:
            # Whoever read us has enough (precsim formats | head); Python must not complain at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit from None
        except DiskFullError as error:
            fail(str(error), 3)
        except DamagedError as error:
            fail(f"{error}; try `precsim check` on that run", 2)
        except (BadInput, BackendError, configs.ConfigError, data.DataError, RunError) as error:
            fail(str(error), 2)
        except MemoryError as error:
            fail(f"not enough memory: {str(error) or 'try a smaller model or batch'}", 2)
        except KeyboardInterrupt as error:
            fail(str(error) or "interrupted", 130)


def _note(message: Warning | str, *_: Any, **__: Any) -> None:
    tell(f"note: {message}")


class NumberCommand(TyperCommand):
    """A command whose argument may be a negative number, which looks like an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move what looks like a negative number behind "--", where nothing is an option."""
        numbers = [arg for arg in args if re.match(r"-(\.?\d|inf|nan)", arg, re.IGNORECASE)]
        if numbers and "--" not in args:
            args = [arg for arg in args if arg not in numbers] + ["--", *numbers]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=Verbs,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Steps = Annotated[int | None, typer.Option("--steps", help="Number of training steps.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of weights, batches and rounding.")]


def _version(wanted: bool) -> None:
    if wanted:
        print_line(precsim.__version__)
        raise typer.Exit


@app.callback(
    epilog="Exit codes: 0 fine, 1 a finding, 2 bad usage or input, 3 a bug or a full disk, 130 "
    "interrupted."
)
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Watch what low precision does to training.

    Every operation of a small transformer, forward, backward and update, passes through an
    emulated number format.  Start with: precsim demo
    """


@app.command(rich_help_panel="Start here")
def demo(
    steps: Steps = None,
    text: TextFile = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Where the figures go.")
    ] = Path("precsim-demo"),
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Train one small GPT in six precisions, and compare them.

    A table, a sentence for each, and two figures.
    """
    from precsim import demo as show

    with reading_input():
        config = show.configure(steps, text, seed or 0)
        corpus = data.load(config.data)
        show.check(config, corpus)
        make_folder(output)
    out, err = consoles()
    if not as_json:
        for line in show.describe(config, corpus):
            err.print(line)
    chosen = {name: precsim.RECIPES[name] for name in show.SHOWN}
    runs = {name: (r.title, terminal.ink(r.format)) for name, r in chosen.items()}
    try:
        with Bars(err, runs, config.steps, quiet=as_json) as bars:
            outcomes = show.run_all(config, corpus, lambda p: bars(p.recipe, p.done, p.loss))
    except show.DemoError as error:
        fail(str(error), 3)
    paths = show.figures(config, outcomes, output)
    if as_json:
        print_line(dump(show.to_dict(config, corpus, outcomes, paths)))
        return
    for part in show.report(config, outcomes, paths, out.width):
        out.print(part)


@app.command(
    rich_help_panel="Start here",
    epilog="How closely the run is watched: --set observe=off, counts, hist (the default), shadow or "
    f"tensors:PATTERN.  {sentence()}  {DIVERGED}",
)
def train(
    config_file: Annotated[
        Path | None, typer.Argument(metavar="CONFIG.toml", help="Lines like: steps = 200")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Precisions and loss scale by name (precsim recipes).")
    ] = None,
    assignments: Assignments = None,
    text: TextFile = None,
    init: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Start from these weights: .safetensors, .npz, a run."),
    ] = None,
    steps: Steps = None,
    seed: Seed = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Record the run here.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write into a DIR that has files.")
    ] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Train one model; with -o, record the run.

    Later sources win: the file, --recipe, --set, then the other options.
    """
    with reading_input():
        entries = configs.read(config_file) if config_file else {}
        if recipe:
            entries |= precsim.recipe(recipe).settings()
        entries |= configs.parse_assignments(assignments or [])
        named = {"data": text, "steps": steps, "seed": seed, "init": init}
        entries |= {name: value for name, value in named.items() if value is not None}
        config = configs.TrainConfig().change(**entries)
    fmt = precsim.RECIPES[recipe].format if recipe else None
    for line in precsim.RECIPES[recipe].banner() if recipe else ():
        typer.echo(line, err=True)

    def start(listen: Listener) -> Run:
        return precsim.train(config, on_step=listen, out=output, force=force)

    show_run(start, recipe or "run", config, fmt, as_json=as_json)


@app.command(rich_help_panel="Formats and recipes")
def formats(
    figure: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the ranges: .png, .svg, .pdf; no ending: both."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show every format: bits, range, precision, special values."""
    known = precsim.FORMATS
    if figure:
        from precsim.show import plot

        unscaled = [f for f in known.values() if f.name == element_of(f).name]
        ranges = [plot.format_range(fmt) for fmt in unscaled]
        title = "What each format can hold"
        with reading_input():
            make_folder(figure.parent)
            paths = plot.save("range_ladder", {"ranges": ranges, "title": title}, figure)
        tell_written(paths)
    if as_json:
        print_line(dump([terminal.format_facts(fmt) for fmt in known.values()]))
        return
    out, _ = consoles()
    out.print(terminal.formats_table(known.values(), out.width))


@app.command(cls=NumberCommand, rich_help_panel="Formats and recipes")
def num(
    value: Annotated[str, typer.Argument(help="0.1, -2.5e-3, 0x1.8p-3, 1/3, inf, nan ...")],
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", metavar="F", help="A format; repeat it to compare several."),
    ] = None,
    rounding: Annotated[str, typer.Option(help=f"One of {SPELLINGS}.")] = "nearest",
    random: Annotated[float, typer.Option(help="What stochastic rounding draws, in [0, 1).")] = 0.5,
    as_json: Json = False,
) -> None:
    """Take one number apart: its bits, neighbours, what rounding costs."""
    with reading_input():
        parsed = literal.parse(value)
        drawn = random if rounding.startswith("stochastic") else None
        chosen = [precsim.format(name) for name in formats or FORMATS_SHOWN]
        found = [precsim.explain(parsed, fmt, rounding, random=drawn) for fmt in chosen]
    if as_json:
        print_line(dump([one.to_dict() for one in found]))
        return
    out, _ = consoles()
    if len(found) == 1:
        out.print(number.one_format(found[0], value, chosen[0]))
    else:
        named = {fmt.name: one for fmt, one in zip(chosen, found, strict=True)}
        out.print(number.several_formats(named, value, out.width))


@app.command(rich_help_panel="About precsim")
def info(as_json: Json = False) -> None:
    """Show versions, backends and threads, for a bug report."""
    facts = _facts()
    if as_json:
        print_line(dump(facts))
        return
    out, _ = consoles()
    out.print(terminal.sentences([(name, "fp32", str(fact)) for name, fact in facts.items()]))


cli_runs.register(app)
cli_recipes.register(app)

QUICK = ("formats", "num", "recipes", "info", "demo", "train")
"""Verbs for which the rest of the package, behind the other verbs, need not be loaded."""


@cache
def _load_other_verbs() -> None:
    from precsim import (
        cli_analyse,
        cli_cost,
        cli_drift,
        cli_lesson,
        cli_plot,
        cli_scale,
        cli_scan,
        cli_sweep,
        cli_verify,
        cli_views,
    )

    cli_analyse.register(app)
    cli_cost.register(app)
    cli_drift.register(app)
    cli_lesson.register(app)
    cli_plot.register(app)
    cli_scale.register(app)
    cli_scan.register(app)
    cli_sweep.register(app)
    cli_verify.register(app)
    cli_views.register(app)


def _facts() -> dict[str, Any]:
    from precsim.backend import compiled, get_backend
    from precsim.backend.threads import cores

    try:
        device = str(get_backend("cupy").__version__)
    except BackendError as error:
        device = f"not usable: {error}"
    return fingerprint() | {"cores": cores(), "cupy": device, "rounding": compiled.state()}


def main(args: list[str] | None = None) -> None:
    """Run a command line (that of this process, if none is given) and exit."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal's encoding lacks becomes "?", not a crash.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    words = sys.argv[1:] if args is None else args
    try:
        if not words or words[0] not in QUICK:
            _load_other_verbs()
        app(args, prog_name="precsim")
    except KeyboardInterrupt:  # before a verb has begun
        tell("interrupted")
        sys.exit(130)
    except Exception:  # noqa: BLE001 - the last one to see it: it is told, whatever it is
        traceback.print_exc()
        tell("this is a bug in precsim; please report the lines above")
        sys.exit(3)
