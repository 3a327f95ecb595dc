"""The training loop: step, look, keep, tell; for a run that is recorded, and one that is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from precsim.backend.compiled import steady
from precsim.engine.context import Observer, current, using
from precsim.engine.pool import Pool
from precsim.nn.scaling import LossScaleError
from precsim.observe.counters import OpCounts, total
from precsim.observe.guard import guarded
from precsim.observe.trace import Level, StepTrace, Tracer
from precsim.runs.checkpoint import restore
from precsim.runs.config import TrainConfig
from precsim.runs.data import Corpus
from precsim.runs.files import RunError
from precsim.runs.interrupt import Interruption
from precsim.runs.lock import Lock
from precsim.runs.manifest import Manifest, read_manifest
from precsim.runs.recorder import Recorder
from precsim.runs.recovery import (
    Progress,
    check_formats,
    find_corpus,
    nearest,
    progress,
    read_steps,
    warn_of_other_machine,
)
from precsim.runs.results import Run, StepRecord, Trouble, step_number
from precsim.runs.store import Store, require_run, rewind
from precsim.runs.trainer import StepResult, Trainer, make_trainer

Listener = Callable[[StepRecord, list[OpCounts]], None]
"""Called after every step with its record and the counts of its ops (none at level "off")."""


@contextmanager
def surroundings(config: TrainConfig, observers: tuple[Observer, ...] = ()) -> Iterator[None]:
    """Set the whole context that a run's bits depend on, wherever it is called from, and a pool of
    memory that goes with it.

    What observers are told, sums included, depends on that and on what is installed alone.
    """
    with steady(), using(
        config.policy, observers=observers, seed=config.seed, step=0,
        role="activations", scope="", taping=True, pool=Pool(),
    ):  # fmt: skip
        yield


def advance(
    config: TrainConfig,
    corpus: Corpus,
    before: Progress | None = None,
    *,
    store: Store | None = None,
    on_step: Listener | None = None,
    observers: tuple[Observer, ...] = (),
) -> Run:
    """Train from where `before` stands to the end, recording into `store` if there is one.

    `observers`, and those around the call, see every op; one that fails is left out from then on,
    with a warning (`precsim.observe.guard`).
    """
    before = before or Progress()
    recorded = store is not None
    tracer = Tracer(Level.parse(config.observe), hashes=recorded)
    watching: tuple[Observer, ...] = guarded((*current().observers, *observers))
    if tracer.level.includes("counts"):
        watching = (tracer, *watching)
    with surroundings(config, watching), Interruption(active=recorded) as interruption:
        trainer = make_trainer(config, corpus, init=before.checkpoint is None)
        if before.checkpoint is not None:
            restore(trainer, before.checkpoint)
        tracer.drain()  # the weights' first rounding belongs to no step
        run = Run(
            config, corpus, trainer.model,
            before.records, before.counts, before.trouble, before.died_at,
        )  # fmt: skip
        recorder = Recorder(store, run, trainer, before.start, interruption) if store else None
        for record, trace in _steps(run, trainer, tracer, before.start):
            if on_step is not None:
                on_step(record, trace.rows)
            if recorder is not None:
                recorder.step(record, trace)
        if recorder is not None:
            recorder.finish()
    return run


def _steps(
    run: Run, trainer: Trainer, tracer: Tracer, start: int
) -> Iterator[tuple[StepRecord, StepTrace]]:
    """Do one step after the other until the last, or one after which there is no going on."""
    for step in range(start, run.config.steps):
        if run.died_at is not None:
            return
        policy = trainer.policy
        try:
            with using(step=step):
                result = trainer.step(step)
        except LossScaleError as error:
            run.died_at, run.trouble = step, Trouble(step, "loss scale", str(error))
            return
        trace = tracer.drain()
        record = make_record(step, result, trace)
        run.note(record, trace.rows, policy)
        if not trainer.alive():
            run.died_at = step
        yield record, trace


def make_record(step: int, result: StepResult, trace: StepTrace) -> StepRecord:
    """Return the record of a step that a trainer has just done."""
    rows = trace.rows
    return StepRecord(
        step=step,
        loss=result.loss,
        valid_loss=result.valid_loss,
        lr=result.lr,
        scale=result.scale,
        skipped=result.skipped,
        grad_norm=result.grad_norm,
        flushed=total(rows, phase="backward").flushed_share if rows else float("nan"),
        lost_updates=total(rows, op="apply_update").swamped_share if rows else float("nan"),
        change="" if result.change is None else str(result.change),
    )


def carry_on(
    folder: Path,
    *,
    corpus: Corpus | None = None,
    on_step: Listener | None = None,
    observers: tuple[Observer, ...] = (),
) -> Run:
    """Continue the run in a directory; see `precsim.runs.train.resume`."""
    require_run(folder)
    with Lock(folder) as lock:
        manifest = read_manifest(folder)
        corpus = _ready(manifest, corpus)
        before = progress(folder, manifest)
        lock.writing = True
        rewind(folder, before.start, len(before.records))
        with Store(folder) as store:
            return advance(
                manifest.config, corpus, before,
                store=store, on_step=on_step, observers=observers,
            )  # fmt: skip


def _ready(manifest: Manifest, corpus: Corpus | None) -> Corpus:
    check_formats(manifest)
    warn_of_other_machine(manifest)
    return find_corpus(manifest, corpus)


def state_before(folder: Path, step: int, corpus: Corpus | None = None) -> Trainer:
    """Return a trainer that stands before `step` of a recorded run, computed from a checkpoint.

    Raises `RunError` for a step that the run has not reached, `TypeError` for what is none.
    """
    return next(states_before(folder, [step], corpus))


def states_before(
    folder: Path, steps: Iterable[int], corpus: Corpus | None = None
) -> Iterator[Trainer]:
    """Yield a trainer before each of some steps, which ascend; no step is computed twice.

    One that has been yielded is trained on for the next, unless a checkpoint is nearer to that.
    Raises as `state_before` does.
    """
    manifest = read_manifest(folder)
    reached = manifest.start + len(read_steps(folder, manifest.start).records)
    corpus = _ready(manifest, corpus)
    trainer, at = None, manifest.start
    for step in map(step_number, steps):
        if not manifest.start <= step <= reached:
            msg = f"{folder} has no state before step {step}: it has {manifest.start} to {reached}"
            raise RunError(msg)
        before = nearest(folder, manifest, step)
        with surroundings(manifest.config):
            if trainer is None or before.start > at:
                trainer = make_trainer(manifest.config, corpus, init=before.checkpoint is None)
                if before.checkpoint is not None:
                    restore(trainer, before.checkpoint)
                at = before.start
            for earlier in range(at, step):
                with using(step=earlier):
                    trainer.step(earlier)
        at = step
        yield trainer
