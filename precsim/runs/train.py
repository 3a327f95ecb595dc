"""Training: run a config, watch it, record it, and go on where it stopped.

One call of `train` is one run: same config, same bits.  It keeps a `StepRecord` per step and can
tell a listener about each; with ``out`` it leaves a directory that `resume` continues after any
end, bit for bit.  It prints nothing itself.
"""

from __future__ import annotations

import os
from pathlib import Path

from precsim.engine.context import Observer
from precsim.runs.config import TrainConfig
from precsim.runs.data import Corpus, load
from precsim.runs.interrupt import Interrupted
from precsim.runs.lock import Lock
from precsim.runs.loop import Listener, advance, carry_on
from precsim.runs.manifest import write_manifest
from precsim.runs.recorder import clear_folder
from precsim.runs.results import Run, StepRecord, Trouble, first_trouble
from precsim.runs.run import StoredRun
from precsim.runs.store import Store
from precsim.runs.trainer import StepResult, Trainer

__all__ = [
    "Interrupted", "Listener", "Run", "StepRecord", "StepResult", "Trainer", "Trouble",
    "first_trouble", "resume", "train",
]  # fmt: skip


def train(
    config: TrainConfig,
    *,
    corpus: Corpus | None = None,
    on_step: Listener | None = None,
    observe: bool | str = True,
    observers: tuple[Observer, ...] = (),
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> Run:
    """Run `config` and return what happened.

    `corpus` saves loading it again; `on_step` is told about every step; `observe` is a level that
    takes the place of the config's, False the level "off".  `observers`, and those around the call,
    see every op besides; one that raises an exception is left out from there on, with a warning.
    `out` is a directory to record the run in: new or empty, or `force` clears the run that it holds;
    what is returned reads from there as `precsim.open` does.

    Raises `ConfigError`, `DataError` or `RunError` where the run cannot start, `TypeError` for what
    is no config.  A run whose weights are no longer finite, or whose loss scaler gives up, stops and
    says at which step (`died_at`).  Of a recorded run, the first Ctrl-C finishes the step, saves and
    raises `Interrupted`.
    """
    if not isinstance(config, TrainConfig):
        msg = f"expected a TrainConfig, such as TrainConfig(steps=100); got {config!r:.60}"
        raise TypeError(msg)
    if observe is not True:
        config = config.change(observe=observe or "off")
    corpus = corpus or load(config.data)
    if out is None:
        return advance(config, corpus, on_step=on_step, observers=observers)
    folder = Path(out)
    with Lock(folder) as lock:
        clear_folder(folder, force=force)
        lock.writing = True
        write_manifest(folder, config, corpus)
        with Store(folder) as store:
            run = advance(config, corpus, store=store, on_step=on_step, observers=observers)
    return StoredRun(folder, run)


def resume(
    out: str | os.PathLike[str],
    *,
    corpus: Corpus | None = None,
    on_step: Listener | None = None,
    observers: tuple[Observer, ...] = (),
) -> Run:
    """Continue the run in a directory, however it ended, with the bits that it would have had.

    It goes on from the newest checkpoint up to which every file is intact; what was recorded after
    that is dropped and computed again.  A run that is over is returned as it is.

    Raises `RunError` where there is no run, or another process writes it, `DamagedError` where its
    manifest is not intact, `DataError` where its text is gone or another one.  Warns where this is
    another machine, whose bits can differ.
    """
    folder = Path(out)
    run = carry_on(folder, corpus=corpus, on_step=on_step, observers=observers)
    return StoredRun(folder, run)
