"""A sweep: the same training over a grid of recipes, values and seeds, each cell a recorded run.

    runs/lr/sweep.json                  the grid
    runs/lr/fp32-lr=0.001-seed=0/       a run like any other, for every cell

What is on the disk is the state: a cell that is over is not trained again, and one that has begun
goes on where it stopped, with the bits that it would have had.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from precsim.observe.counters import OpCounts
from precsim.runs.config import ConfigError, TrainConfig
from precsim.runs.data import Batches, Corpus, load
from precsim.runs.files import TEMPORARY, DamagedError, RunError, explained, read_file, write_file
from precsim.runs.grid import Cell, Grid, Values
from precsim.runs.interrupt import Interrupted, Interruption
from precsim.runs.lines import dump, parse
from precsim.runs.lock import NAME as LOCK
from precsim.runs.lock import Lock
from precsim.runs.manifest import read_manifest
from precsim.runs.pretrained import load_weights
from precsim.runs.results import Run, StepRecord
from precsim.runs.run import open_run
from precsim.runs.store import MANIFEST, SWEEP
from precsim.runs.sweep_results import Outcome, Sweep
from precsim.runs.train import resume, train

FORMAT, VERSION = "precsim-sweep", 1

FREE = ("observe", "checkpoint_every", "max_trace")
"""Entries of a config that change no bit: a run with others of these is still that of the cell."""

_LIMIT = 1 << 24

Corpora = Mapping[str, Corpus]


@dataclass(frozen=True)
class Progress:
    """One step of a cell's run, or its end, where `outcome` is known.

    `done` steps of the run are done, the last with the training loss `loss` (None: none yet), and
    `over` of the `total` runs are over.
    """

    cell: Cell
    over: int
    total: int
    done: int = 0
    loss: float | None = None
    outcome: Outcome | None = None


Listener = Callable[[Progress], None]


class SweepInterrupted(KeyboardInterrupt):
    """A sweep stopped on request, and can go on; `where` it stopped, the message says how."""

    def __init__(self, folder: Path, place: str, over: int, total: int) -> None:
        self.folder = folder
        self.where = f"stopped {place}, {over} of {total} runs are over"
        super().__init__(f"{self.where}; continue with `precsim sweep -o {folder}`")


def sweep(
    config: TrainConfig | None = None,
    over: Mapping[str, Iterable[Any]] | None = None,
    seeds: Iterable[int] | None = None,
    *,
    out: str | os.PathLike[str],
    fixed: Values | None = None,
    observe: str = "off",
    on_progress: Listener | None = None,
) -> Sweep:
    """Train `config` over a grid, each cell a recorded run of its own in the directory `out`.

    ::

        found = ps.sweep(config, over={"recipe": ["fp32", "fp16_scaled"], "lr": [1e-3, 1e-2]},
                         seeds=range(3), out="runs/lr")
        found.best("fp16_scaled")["lr"]

    A run that diverges is a finding of its cell, and the sweep goes on.  `over` maps entries of the
    config to values, and "recipe" to names; a number as loss_scale is one that stands still.  What a
    recipe sets (`Recipe.settings`) it sets whatever the config says; `fixed` are entries that it
    does not change.  Without `seeds` there is that of the config.  `observe` takes the place of the
    config's: at "off" no op is recorded and no time lost, and any step can be replayed with all.

    The same call goes on after any end, kill -9 included, with the same bits.  Another grid in the
    same directory uses the runs that belong to it, too, and leaves the others; without config, over
    and seeds the grid is the one that is there.  `on_progress` is told of every step and every end.

    Raises, before anything is trained, `ConfigError` for a grid or a cell that cannot be, `DataError`
    where a text is missing or too short, and `RunError` where `out`, or the directory of a cell,
    holds something else.  The first Ctrl-C finishes the step, saves and raises `SweepInterrupted`.
    """
    folder = Path(out)
    before = _look(folder)
    if config is None and over is None and seeds is None and fixed is None:
        grid = _recorded(folder, before)
    elif isinstance(config, TrainConfig):
        grid = Grid.of(config.change(observe=observe), over or {}, seeds, fixed)
    else:
        msg = f"expected a TrainConfig, such as TrainConfig(steps=100); got {config!r:.60}"
        raise TypeError(msg)
    corpora = _texts(grid.cells)
    outcomes: dict[str, Outcome] = {}
    with Lock(folder):
        waiting = _waiting(folder, grid, corpora, outcomes)
        content = {"format": FORMAT, "version": VERSION, **grid.to_dict()}
        write_file(folder / SWEEP, (dump(content, indent=2) + "\n").encode())
        _run_all(folder, waiting, corpora, outcomes, on_progress or (lambda _: None))
    return Sweep(folder, grid, outcomes)


def _run_all(
    folder: Path,
    waiting: list[Cell],
    corpora: Corpora,
    outcomes: dict[str, Outcome],
    tell: Listener,
) -> None:
    """Run the cells that are not over, one after the other; add what they come to."""
    total, place = len(waiting) + len(outcomes), "before the first step"
    try:
        with Interruption(active=True) as interruption:
            for cell in waiting:
                if interruption.requested:  # in the last step of a run, which ended it
                    raise KeyboardInterrupt
                place = f"in {cell.title}"
                state = Progress(cell, len(outcomes), total)
                tell(state)
                run = _run(folder / cell.name, cell, corpora, state, tell)
                outcomes[cell.name] = outcome = Outcome.of(run)
                place = f"after {cell.title}"
                tell(Progress(cell, len(outcomes), total, outcome.steps, outcome=outcome))
    except KeyboardInterrupt as error:
        if isinstance(error, Interrupted):
            place += f" before step {error.step}"
        raise SweepInterrupted(folder, place, len(outcomes), total) from error


def _run(place: Path, cell: Cell, corpora: Corpora, state: Progress, tell: Listener) -> Run:
    """Run a cell, or go on with it."""

    def listen(record: StepRecord, _: list[OpCounts]) -> None:
        tell(replace(state, done=record.step + 1, loss=record.loss))

    corpus = corpora[cell.config.data]
    if (place / MANIFEST).exists():
        return resume(place, corpus=corpus, on_step=listen)
    return train(cell.config, corpus=corpus, on_step=listen, out=place, force=True)


def _look(folder: Path) -> dict[str, Any] | None:
    """Return what a directory's sweep.json says, None where there is nothing yet.

    Raises `RunError` for a directory that holds something else.
    """
    found = _names(folder)
    if not found:
        return None
    expected = "expected a new directory, or one that has a sweep"
    if SWEEP not in found:
        what = "holds a run" if MANIFEST in found else f"is not empty (it has {min(found)})"
        msg = f"{folder} {what}: {expected}"
        raise RunError(msg)
    try:
        content = parse(read_file(folder / SWEEP, _LIMIT))
    except DamagedError as error:
        msg = f"{folder / SWEEP}: {error}; {expected}"
        raise RunError(msg) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        msg = f"{folder / SWEEP} does not say that it is a {FORMAT}: {expected}"
        raise RunError(msg)
    return content


def _names(folder: Path) -> list[str]:
    """Return the files of a directory, but for those that a crash can leave in a new one."""
    with explained(folder):
        if not folder.exists():
            return []
        names = [path.name for path in folder.iterdir()]
    return [name for name in names if name != LOCK and not name.endswith(TEMPORARY)]


def _recorded(folder: Path, content: Mapping[str, Any] | None) -> Grid:
    """Return the grid of a directory's sweep."""
    if content is None:
        msg = (
            f"{folder} has no sweep to go on with: say what to sweep, such as "
            "--recipe fp32,bf16 --over lr=1e-3,1e-2 --seeds 0-2"
        )
        raise RunError(msg)
    try:
        if content["version"] != VERSION:
            msg = f"expected version {VERSION}, got {content['version']!r:.20}"
            raise ValueError(msg)
        config = TrainConfig().change(**content["config"])
        return Grid.of(config, content["over"], content["seeds"], content["fixed"])
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        msg = f"{folder / SWEEP}: this version of precsim cannot run it: {error}"
        raise RunError(msg) from None


def _texts(cells: Iterable[Cell]) -> Corpora:
    """Return the texts of the cells; raise `DataError` where one is missing or fills no batch."""
    corpora: dict[str, Corpus] = {}
    for cell in cells:
        config = cell.config
        if config.data not in corpora:
            corpora[config.data] = load(config.data)
        Batches(corpora[config.data], config.batch, config.context, config.seed)
    return corpora


def _waiting(
    folder: Path, grid: Grid, corpora: Corpora, outcomes: dict[str, Outcome]
) -> list[Cell]:
    """Return the cells that are not over, and add to `outcomes` what the others came to.

    Raises `RunError` where one of their directories holds something else, and where a file of
    weights does not fit.
    """
    waiting = []
    models = set()
    for cell in grid.cells:
        config, corpus = cell.config, corpora[cell.config.data]
        place = folder / cell.name
        begun = _has_begun(place, cell, corpus)
        outcome = _outcome(place) if begun else None
        if outcome is not None:
            outcomes[cell.name] = outcome
            continue
        waiting.append(cell)
        sizes = config.model(corpus.vocabulary_size)
        if config.init and not begun and (config.init, config.data, sizes) not in models:
            load_weights(config.init, sizes, corpus.alphabet)
            models.add((config.init, config.data, sizes))
    return waiting


def _has_begun(place: Path, cell: Cell, corpus: Corpus) -> bool:
    """Return whether a cell's run is there; raise `RunError` where something else is."""
    found = _names(place)
    if not found:
        return False
    instead = "move it away, or sweep into another directory"
    if MANIFEST not in found:
        msg = f"{place} is no run (it has {min(found)}): {instead}"
        raise RunError(msg)
    try:
        manifest = read_manifest(place)
    except DamagedError as error:
        msg = f"{place}: {error}; remove that directory, and the run begins again"
        raise RunError(msg) from None
    theirs, ours = manifest.config.to_dict(), cell.config.to_dict()
    theirs["text"], ours["text"] = manifest.corpus["sha256"][:12], corpus.sha256[:12]
    theirs["first step"], ours["first step"] = manifest.start, 0
    for name, value in ours.items():
        if name not in FREE and theirs[name] != value:
            msg = f"{place} holds another run ({name} is {theirs[name]}, not {value}): {instead}"
            raise RunError(msg)
    return True


def _outcome(place: Path) -> Outcome | None:
    """Return what a run came to; None where it goes on, or has damage that it can mend."""
    try:
        run = open_run(place)
        over = run.died_at is not None or run.config.steps in run.checkpoints
        return Outcome.of(run) if over else None
    except DamagedError:
        return None
