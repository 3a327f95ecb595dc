"""The demo: one small GPT, one text, six precisions; what happened, in a table, words and figures.

Each run is a process of its own with one BLAS thread, as many at a time as there are cores: six
small models side by side train faster than one after the other on all cores.  A run tells of its
steps, and at the end of its `Outcome`, through a pipe; a pipe that ends early is a run that was
killed, and a run whose reader is gone stops at its next step.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import log2
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np

from precsim.backend.threads import cores
from precsim.observe.counters import LOWEST, Counters, OpCounts
from precsim.recipes import RECIPES
from precsim.runs.config import TrainConfig
from precsim.runs.data import Batches, Corpus
from precsim.runs.lines import plain
from precsim.runs.results import first_trouble
from precsim.runs.summary import Summary, summarize
from precsim.runs.train import StepRecord, Trouble, train
from precsim.show.style import DASHED, share
from precsim.show.verdict import learned, verdict

SHOWN = ("fp32", "fp16", "fp16_scaled", "bf16", "fp8", "int8")
"""The recipes of the demo, in the order in which it shows them."""

REFERENCE = "fp32"
"""The recipe that the others are compared with."""

SETTING: Mapping[str, Any] = {
    "layers": 1,
    "heads": 4,
    "width": 48,
    "context": 32,
    "tied": True,
    "batch": 16,
    "steps": 600,
    "micro_batches": 4096,
    "lr": 0.01,
    "warmup": 20,
    "eval_every": 1_000_000,  # at the end only
}
"""Found by trying: small enough for a minute, long enough to write words, and hard on fp16."""

PROMPT = "The "
SAMPLE, SAMPLE_SHOWN = 240, 120
"""Characters that a run writes at its end, and how many of them, white space shortened, are shown."""

TEMPERATURE = 0.5
"""Likely letters are preferred, so that words show that were learnt."""

TOLD_EVERY, COUNTED_EVERY = 5, 4
"""Steps between two messages of a run, and between two steps whose ops are counted."""

THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True)
class Outcome:
    """What one run came to; `histogram` counts the exponents of its gradients before rounding."""

    recipe: str
    summary: Summary
    losses: list[float]
    histogram: list[int]
    sample: str
    seconds: float


@dataclass(frozen=True)
class Progress:
    """One message of a run that goes on: steps done, and the latest loss."""

    recipe: str
    done: int
    loss: float


class DemoError(RuntimeError):
    """A run ended without an outcome: it was killed, or met a bug."""


def configure(steps: int | None = None, text: str | None = None, seed: int = 0) -> TrainConfig:
    """Return the demo's config; raises `ConfigError` for fewer than one step."""
    changes = {"steps": steps, "data": text, "seed": seed}
    given = {name: value for name, value in changes.items() if value is not None}
    return TrainConfig(**{**SETTING, **given})


def run_all(
    config: TrainConfig,
    corpus: Corpus,
    tell: Callable[[Progress], None],
    *,
    recipes: Sequence[str] = SHOWN,
    processes: int | None = None,
) -> dict[str, Outcome]:
    """Train `config` under each recipe, and return the outcomes in the order of `recipes`.

    `tell` hears of every run's progress.  However this ends, by Ctrl-C too, no process is left.
    Raises `DemoError` if a run dies of a bug or is killed.
    """
    limit = processes or cores()
    # Stochastic rounding is the slowest: starting it last would leave one core waiting for it.
    waiting = sorted(recipes, key=lambda name: "stochastic" not in str(RECIPES[name].policy))
    running: dict[Connection, tuple[str, SpawnProcess]] = {}
    outcomes: dict[str, Outcome] = {}
    try:
        while waiting or running:
            while waiting and len(running) < limit:
                name = waiting.pop(0)
                connection, writer, process = _prepare(name, config, corpus)
                running[connection] = (name, process)  # first, so that Ctrl-C finds it here
                with _surroundings():
                    process.start()
                writer.close()  # ours; or the end of the process would not end the pipe
            ready = wait(list(running))
            for connection in [c for c in running if c in ready]:
                name, process = running[connection]
                message = _receive(connection, name, process)
                if isinstance(message, Progress):
                    tell(message)
                    continue
                outcomes[name] = message
                del running[connection]
                process.join()
    finally:
        for _, process in running.values():
            if process.is_alive():
                process.kill()
                process.join()
    return {name: outcomes[name] for name in recipes}


def _prepare(
    name: str, config: TrainConfig, corpus: Corpus
) -> tuple[Connection, Connection, SpawnProcess]:
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(writer, name, config, corpus), daemon=True)
    return reader, writer, process


@contextmanager
def _surroundings() -> Iterator[None]:
    """Let a process that starts in this block have one BLAS thread, and never see Ctrl-C.

    It inherits both: its BLAS reads the environment when it loads, and a blocked signal stays
    blocked.  For us a Ctrl-C during the block comes at its end.
    """
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    with _sigint_blocked():
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    if sys.platform == "win32":  # there the process ignores it, once it runs
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _receive(connection: Connection, name: str, process: SpawnProcess) -> Progress | Outcome:
    try:
        message = connection.recv()
    except EOFError:
        process.join()
        msg = f"the {name} run was killed (exit code {process.exitcode}); is there enough memory?"
        raise DemoError(msg) from None
    if isinstance(message, str):
        msg = f"the {name} run failed:\n{message}"
        raise DemoError(msg)
    assert isinstance(message, Progress | Outcome)
    return message


def _work(writer: Connection, name: str, config: TrainConfig, corpus: Corpus) -> None:
    """Train, in a process of its own, and send what happens; the parent sees to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        writer.send(compute(name, config, corpus, writer.send))
    except BrokenPipeError:
        return  # nobody listens any more
    except Exception:  # noqa: BLE001 - the parent raises it
        writer.send(traceback.format_exc())


def compute(
    name: str, config: TrainConfig, corpus: Corpus, tell: Callable[[Progress], None]
) -> Outcome:
    """Train `config` under one recipe in this process, and return what it came to."""
    start = time.perf_counter()

    # Counting every step would take twice as long as training.
    counters = Counters(keep=lambda event: event.step % COUNTED_EVERY == 0)
    counts: dict[str, OpCounts] = {}
    troubles: list[Trouble] = []
    policy = RECIPES[name].policy

    def listen(record: StepRecord, _: list[OpCounts]) -> None:
        rows = counters.drain()
        for row in rows:
            counts.setdefault(row.role, OpCounts(role=row.role, phase=row.phase)).add(row)
        if trouble := first_trouble(rows, policy, skipped=record.skipped):
            troubles.append(trouble)
        done = record.step + 1
        if done % TOLD_EVERY == 0 or done == config.steps:
            tell(Progress(name, done, record.loss))

    settings = RECIPES[name].settings()
    run = train(
        config.change(**settings), corpus=corpus, on_step=listen, observe=False,
        observers=(counters,),
    )  # fmt: skip
    run.counts, run.trouble = counts, next(iter(troubles), None)
    backward = [c.histogram for c in counts.values() if c.phase == "backward"]
    histogram = np.sum([h for h in backward if h is not None], axis=0, dtype=np.int64)
    known = all(byte in corpus.alphabet for byte in PROMPT.encode())
    prompt = PROMPT if known else ""
    return Outcome(
        name,
        summarize(run),
        [record.loss for record in run.records],
        np.atleast_1d(histogram).tolist(),
        prompt + run.sample(SAMPLE, TEMPERATURE, prompt),
        time.perf_counter() - start,
    )


def describe(config: TrainConfig, corpus: Corpus) -> list[str]:
    """Say what is trained, on what, and what `micro_batches` stands for."""
    tokens = config.micro_batches * config.batch * config.context
    sizes = f"{config.layers} layer{'s' * (config.layers > 1)}, width {config.width}"
    what = (
        f"A GPT with {sizes} and a context of {config.context} learns {corpus!r} byte by byte: "
        f"{config.steps} step{'s' * (config.steps > 1)} of {config.batch} x {config.context} bytes, the same for every run."
    )
    divided = (
        f"micro_batches = {config.micro_batches}: each loss is divided by it, as when that many "
        f"micro-batches, {tokens / 1e6:.1f} million tokens in all, share one update."
    )
    return [what, divided]


def hidden(config: TrainConfig, outcomes: Mapping[str, Outcome]) -> str:
    """Say what the loss hides, from the histogram of the reference's gradients."""
    from precsim.show.plot import flushed_share

    counts = outcomes[REFERENCE].histogram
    moved = LOWEST + round(log2(config.micro_batches))
    alone = share(flushed_share(moved, counts, "fp16"))
    return (
        f"What a loss hides: without that division the same gradients are "
        f"{config.micro_batches} times larger; fp16 would still flush {alone} of them, and its loss "
        "need not show it (try: precsim train --recipe fp16 --set micro_batches=1)."
    )


def verdicts(outcomes: Mapping[str, Outcome]) -> dict[str, str]:
    """Return one sentence for each run, made from its numbers."""
    reference = outcomes[REFERENCE].summary
    return {name: verdict(o.summary, reference) for name, o in outcomes.items()}


def headline(outcomes: Mapping[str, Outcome]) -> str:
    """Return the loss curves' title: which runs did not learn."""
    reference = outcomes[REFERENCE].summary
    lost = [name for name, o in outcomes.items() if not learned(o.summary, reference)]
    if not lost:
        return f"All {len(outcomes)} precisions learn"
    if len(lost) > 2:  # a title has room for two names
        return f"{len(lost)} of {len(outcomes)} precisions do not learn"
    return f"All learn but {' and '.join(RECIPES[name].title for name in lost)}"


def figures(config: TrainConfig, outcomes: Mapping[str, Outcome], folder: Path) -> list[Path]:
    """Draw the loss curves and the gradients over the formats' ranges; return the files' paths."""
    from precsim.show import plot

    scaled = {RECIPES[name].format for name in outcomes if RECIPES[name].loss_scale != "none"}
    runs = []
    for name, outcome in outcomes.items():
        recipe = RECIPES[name]
        # Of two runs in one format, and so in one hue, the one without a loss scale is dashed.
        dashed = recipe.format in scaled and recipe.loss_scale == "none"
        line = DASHED if dashed else ""
        runs.append({"title": recipe.title, "format": recipe.format, "line": line,
                     "losses": outcome.losses})  # fmt: skip
    losses = {
        "runs": runs,
        "reference": RECIPES[REFERENCE].title,
        "guess": outcomes[REFERENCE].summary.guess,
        "title": headline(outcomes),
    }
    scales = [o.summary.scales[1] for o in outcomes.values()]
    divided = f"loss / {config.micro_batches}"
    gradients = {
        "lowest": LOWEST,
        "counts": outcomes[REFERENCE].histogram,
        "ranges": [plot.format_range(f) for f in ("fp32", "bf16", "fp16", "e5m2", "e4m3")],
        "label": f"gradients of\nthe {REFERENCE} run,\n{divided}",
        "loss_scale": max(scales),
        "title": "Where the gradients are, and what each format can hold",
    }
    return [
        *plot.save("loss_curves", losses, folder / "demo_loss"),
        *plot.save("exponent_histogram", gradients, folder / "demo_gradients"),
    ]


def report(
    config: TrainConfig, outcomes: Mapping[str, Outcome], paths: Sequence[Path], width: int
) -> list[Any]:
    """Return what the terminal shows at the end: table, verdicts, samples, and where figures are."""
    from precsim.show import terminal

    recipes = {name: RECIPES[name] for name in outcomes}
    table = {r.title: (r.format, outcomes[name].summary) for name, r in recipes.items()}
    said = verdicts(outcomes)
    drawn = ", ".join(str(path) for path in paths if path.suffix == ".png")
    start = next(iter(outcomes.values())).sample[: len(PROMPT)]
    return [
        terminal.runs_table(table, width),
        *terminal.heading("What became of each"),
        terminal.sentences((r.title, r.format, said[name]) for name, r in recipes.items()),
        *terminal.heading(
            f"What it writes after {start!r}" if start == PROMPT else "What it writes"
        ),
        terminal.sentences(
            (r.title, r.format, terminal.printable(outcomes[name].sample)[:SAMPLE_SHOWN])
            for name, r in recipes.items()
        ),
        f"\n{hidden(config, outcomes)}",
        f"\nFigures: {drawn} (and .svg, and the data as .json)",
    ]


def to_dict(
    config: TrainConfig, corpus: Corpus, outcomes: Mapping[str, Outcome], paths: Sequence[Path]
) -> dict[str, Any]:
    """Return all that the demo found, for `--json`."""
    said = verdicts(outcomes)
    runs = {
        name: plain(
            {
                "title": RECIPES[name].title,
                "verdict": said[name],
                "summary": outcome.summary.to_dict(),
                "losses": outcome.losses,
                "sample": outcome.sample,
                "seconds": outcome.seconds,
            }
        )
        for name, outcome in outcomes.items()
    }
    text = {"name": corpus.name, "sha256": corpus.sha256}
    shown = {"config": config.to_dict(), "corpus": text, "runs": runs}
    return shown | {"hidden": hidden(config, outcomes), "figures": [str(path) for path in paths]}


def check(config: TrainConfig, corpus: Corpus) -> None:
    """Raise `DataError` now if the text is too short, not in six processes later."""
    Batches(corpus, config.batch, config.context, config.seed)
