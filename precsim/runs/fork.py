"""Fork: go on from a step of a recorded run under another config, in a directory of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from precsim.engine.context import Observer
from precsim.runs.checkpoint import capture
from precsim.runs.config import ConfigError, TrainConfig
from precsim.runs.data import Corpus, load
from precsim.runs.files import read_file
from precsim.runs.lock import Lock
from precsim.runs.loop import Listener, carry_on, state_before, surroundings
from precsim.runs.manifest import read_manifest, write_manifest
from precsim.runs.recorder import clear_folder
from precsim.runs.recovery import find_corpus
from precsim.runs.results import Run, step_number
from precsim.runs.store import MANIFEST, Store
from precsim.runs.trainer import Trainer, make_trainer


def fork(
    folder: Path,
    at: int,
    out: Path,
    changes: Mapping[str, Any],
    *,
    force: bool = False,
    corpus: Corpus | None = None,
    on_step: Listener | None = None,
    observers: tuple[Observer, ...] = (),
) -> Run:
    """Continue a run from before step `at` under a changed config, recording into `out`.

    Weights and the optimizer's state are taken over, rounded into the formats of the new policy
    where these differ; the loss scale is taken over unless `loss_scale` is changed, the state
    unless `optimizer` is.  Without changes the fork's bits are the parent's.  The fork's steps are
    numbered on from `at`; its manifest names the parent.  Where a precision schedule has changed
    the policy by then, the fork begins with the one in force, unless `policy` is changed.

    Raises `ConfigError` for changes that cannot be: unknown entries, a model of another size, a
    text with other letters, no step left to run; `RunError` as `resume` and `train` do.
    """
    at = step_number(at)
    parent = read_manifest(folder)
    config = parent.config.change(**changes)
    if at >= config.steps:
        msg = f"a fork at step {at} has nothing to run: the config has steps={config.steps}"
        raise ConfigError(msg)
    old_corpus = find_corpus(parent, corpus if config.data == parent.config.data else None)
    new_corpus = old_corpus if config.data == parent.config.data else corpus or load(config.data)
    _check_fits(parent.config, old_corpus, config, new_corpus)
    old = state_before(folder, at, old_corpus)
    if "policy" not in changes:
        config = config.change(policy=str(old.policy))
    with Lock(out) as lock:
        clear_folder(out, force=force)
        lock.writing = True
        with surroundings(config):
            new = make_trainer(config, new_corpus, init=False)
            hand_over(old, new)
        digest = sha256(read_file(folder / MANIFEST, 1 << 26)).hexdigest()
        origin = {"path": str(folder.resolve()), "manifest": digest, "at": at,
                  "changes": dict(changes)}  # fmt: skip
        write_manifest(out, config, new_corpus, at, origin)
        with Store(out) as store:
            store.add(
                f"ckpt/{at:06d}.npz", capture(new, at, {}), at, at - 1, trouble=None, died_at=None
            )
    return carry_on(out, corpus=new_corpus, on_step=on_step, observers=observers)


def hand_over(old: Trainer, new: Trainer) -> None:
    """Give a trainer the state of another, in its own policy's formats."""
    for name, parameter in new.model.parameters.items():
        taken = old.model.parameters[name]
        parameter.data, parameter.format = taken.data, taken.format
    if old.config.optimizer == new.config.optimizer:
        new.optimizer.steps = old.optimizer.steps
        kept = {slot: old.optimizer.state.get(slot, {}) for slot in new.optimizer.slots}
        new.optimizer.state = {slot: dict(states) for slot, states in kept.items()}
    if old.config.loss_scale == new.config.loss_scale:
        new.scaler = old.scaler
    new.valid_losses = old.valid_losses
    new.delays = old.delays
    new.adopt(new.policy)


def _check_fits(old: TrainConfig, old_corpus: Corpus, new: TrainConfig, new_corpus: Corpus) -> None:
    if old_corpus.alphabet != new_corpus.alphabet:
        msg = (
            f"a fork keeps the model, and its letters: {new_corpus.name!r} has others than "
            f"{old_corpus.name!r}"
        )
        raise ConfigError(msg)
    size = new_corpus.vocabulary_size
    if (before := old.model(size)) != (after := new.model(size)) and (
        before.shapes() != after.shapes() or before.heads != after.heads
    ):
        pairs = ((f.name, getattr(before, f.name), getattr(after, f.name)) for f in fields(before))
        named = ", ".join(f"{name}={now} (it has {was})" for name, was, now in pairs if was != now)
        msg = f"a fork keeps the model, and the changes ask for {named}: try a new run"
        raise ConfigError(msg)
