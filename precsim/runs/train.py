"""The training loop: forward, scale, backward, unscale, check, clip, update; and what it recorded.

One call of `train` is one run: same config, same bits.  It keeps a `StepRecord` per step and can
tell a listener about each (progress bars, files); it prints nothing itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

import numpy as np

from precsim.engine import ops
from precsim.engine.context import Observer, using
from precsim.engine.policy import Policy
from precsim.formats.modes import Rounding
from precsim.nn import optim, scaling
from precsim.nn.gpt import GPT
from precsim.nn.optim import Tensors
from precsim.observe.counters import Counters, OpCounts, total
from precsim.runs.config import TrainConfig
from precsim.runs.data import Batches, Corpus, DataError, load


@dataclass(frozen=True)
class StepRecord:
    """What one step did.  Losses are means in nats; `scale` is the loss scale that the step used.

    `skipped`: the scaler found a gradient that is not finite.  `flushed`: share of the nonzero
    results of backward ops that became zero.  `lost_updates`: share of the nonzero weight updates
    that changed nothing.  `valid_loss` is None on the steps between evaluations.
    """

    step: int
    loss: float
    valid_loss: float | None
    lr: float
    scale: float
    skipped: bool
    grad_norm: float
    flushed: float
    lost_updates: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Trouble:
    """The first op whose rounding did harm, and what kind."""

    step: int
    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path} at step {self.step}: {self.what}"


@dataclass
class Run:
    """A finished (or interrupted) run: its config, its records, its model."""

    config: TrainConfig
    corpus: Corpus
    model: GPT
    records: list[StepRecord] = field(default_factory=list)
    counts: dict[str, OpCounts] = field(default_factory=dict)
    trouble: Trouble | None = None
    died_at: int | None = None

    @property
    def steps(self) -> dict[str, np.ndarray]:
        """The records as columns: ``run.steps["loss"]`` (None becomes NaN)."""
        names = StepRecord.__dataclass_fields__
        return {
            name: np.array([getattr(r, name) for r in self.records], dtype=float)
            if name != "skipped"
            else np.array([r.skipped for r in self.records])
            for name in names
        }

    def final_loss(self, last: int = 20) -> float:
        """Return the mean training loss of the last steps; NaN once the weights are destroyed."""
        return float(np.mean([r.loss for r in self.records[-last:]])) if self.records else np.nan

    def valid_loss(self) -> float:
        """Return the last validation loss; NaN once the weights are destroyed."""
        measured = [r.valid_loss for r in self.records if r.valid_loss is not None]
        return measured[-1] if measured else float("nan")

    def sample(self, length: int = 80, temperature: float = 0.7, prompt: str = "") -> str:
        """Return the text with which the model goes on after `prompt`.

        No prompt means the first bytes of the validation text.  Raises `DataError` for a prompt
        with a byte that the text does not have.
        """
        ids = np.array([self.corpus.alphabet.find(byte) for byte in prompt.encode()], np.int64)
        if (ids < 0).any():
            msg = f"the prompt {prompt!r} has letters that {self.corpus.name!r} has not"
            raise DataError(msg)
        if not len(ids):
            ids = self.corpus.valid[:16].astype(np.int64)
        with using(self.config.policy, seed=self.config.seed):
            tokens = self.model.generate(ids, length, self.config.seed, temperature)
        return self.corpus.decode(tokens[len(ids) :])


Listener = Callable[[StepRecord, list[OpCounts]], None]


def train(
    config: TrainConfig,
    *,
    corpus: Corpus | None = None,
    on_step: Listener | None = None,
    observe: bool = True,
    observers: tuple[Observer, ...] = (),
) -> Run:
    """Run `config` and return what happened.

    `corpus` saves loading it again; `on_step` is called after every step with its record and the
    counts of its ops (empty if not `observe`); `observers` see every op besides.
    Raises `ConfigError` or `DataError` where the run cannot start.  A run whose weights are no
    longer finite, or whose loss scaler gives up, stops and says at which step (`died_at`).
    """
    corpus = corpus or load(config.data)
    batches = Batches(corpus, config.batch, config.context, config.seed)
    counters = Counters()
    watching = (counters, *observers) if observe else observers
    with using(Policy.parse(config.policy), observers=watching, seed=config.seed, step=0):
        trainer = Trainer(config, GPT(config.model(corpus.vocabulary_size), config.seed), batches)
        counters.drain()  # the weights' first rounding belongs to no step
        run = Run(config, corpus, trainer.model)
        for step in range(config.steps):
            try:
                with using(step=step):
                    result = trainer.step(step)
            except scaling.LossScaleError as error:
                run.died_at, run.trouble = step, Trouble(step, "loss scale", str(error))
                break
            rows = counters.drain()
            record = _record(trainer, step, result, rows)
            run.records.append(record)
            for row in rows:
                run.counts.setdefault(row.role, OpCounts(role=row.role, phase=row.phase)).add(row)
            if run.trouble is None:
                run.trouble = first_trouble(rows, trainer.policy, skipped=result.skipped)
            if on_step is not None:
                on_step(record, rows)
            if not trainer.alive():
                run.died_at = step
                break
    return run


@dataclass(frozen=True)
class StepResult:
    """What the trainer knows after a step, before it is recorded."""

    loss: float
    lr: float
    scale: float
    skipped: bool
    grad_norm: float


class Trainer:
    """Model, optimizer and loss scale, advanced one step at a time."""

    def __init__(self, config: TrainConfig, model: GPT, batches: Batches) -> None:
        self.config = config
        self.policy = Policy.parse(config.policy)
        self.model = model
        self.batches = batches
        self.scaler = scaling.parse(config.loss_scale)
        self.optimizer = make_optimizer(config, model.parameters)

    def step(self, step: int) -> StepResult:
        """Do one update; the order is scale, backward, unscale and check, clip, step, adjust.

        Raises `scaling.LossScaleError` where the scaler gives up.
        """
        config = self.config
        peak = config.lr
        lr = peak
        if config.schedule == "cosine":
            lr = optim.learning_rate(step, config.steps, peak, config.warmup, floor=0.1)
        loss, gradients = self._gradients(step)
        scale = self.scaler.scale
        gradients, finite = scaling.unscale(self.scaler, gradients, config.micro_batches)
        norm = optim.norm(gradients)
        if config.clip:
            gradients = optim.clip(gradients, config.clip)
        skipped = self.scaler.skips and not finite
        if not skipped:
            self.optimizer.step(gradients, lr)
        self.scaler = self.scaler.adjust(finite)
        return StepResult(loss, lr, scale, skipped, norm)

    def _gradients(self, step: int) -> tuple[float, Tensors]:
        """Return the unscaled loss and the scaled gradients of all micro-batches of a step."""
        config = self.config
        losses = []
        for part in range(config.accumulation):
            x, y = self.batches.train(step * config.accumulation + part)
            loss = self.model.loss(x, y)
            losses.append(loss.item())
            with using(role="loss", scope="loss.weight"):
                weighted = _times(loss, 1 / (config.accumulation * config.micro_batches))
            with using(role="loss", scope="loss.scale"):
                scaled = _times(weighted, self.scaler.scale)
            scaled.backward()
        gradients: Tensors = {}
        for name, parameter in self.model.parameters.items():
            if parameter.grad is not None:
                gradients[name], parameter.grad = parameter.grad, None
        return float(np.mean(losses)), gradients

    def valid_loss(self, step: int) -> float:
        """Return the mean loss over the validation batches, in the run's own formats.

        What it draws depends on `step` and on nothing that was computed before.
        """
        with using(step=step, taping=False, observers=()):
            return float(np.mean([self.model.loss(x, y).item() for x, y in self.batches.valid()]))

    def alive(self) -> bool:
        """Return whether all weights are still numbers."""
        return optim.all_finite(self.model.parameters)


def make_optimizer(config: TrainConfig, parameters: Tensors) -> optim.Optimizer:
    """Return the optimizer that the config names."""
    if config.optimizer == "sgd":
        return optim.SGD(parameters, config.lr, config.momentum, config.weight_decay)
    betas = (config.beta1, config.beta2)
    return optim.AdamW(parameters, config.lr, betas, config.eps, config.weight_decay)


def _times(x: Any, factor: float) -> Any:
    return x if factor == 1 else ops.mul(x, factor)


def _record(trainer: Trainer, step: int, result: StepResult, rows: list[OpCounts]) -> StepRecord:
    config = trainer.config
    last = step + 1 == config.steps
    evaluate = last or (step + 1) % config.eval_every == 0
    return StepRecord(
        step=step,
        loss=result.loss,
        valid_loss=trainer.valid_loss(step) if evaluate else None,
        lr=result.lr,
        scale=result.scale,
        skipped=result.skipped,
        grad_norm=result.grad_norm,
        flushed=total(rows, phase="backward").flushed_share,
        lost_updates=total(rows, op="apply_update").swamped_share,
    )


def first_trouble(rows: list[OpCounts], policy: Policy, *, skipped: bool = False) -> Trouble | None:
    """Return the first op of a step whose rounding did harm, or None.

    Passed over: overflow in the backward pass of a step that the scaler skipped, which is how it
    finds its scale; what stochastic rounding flushes or loses, which comes back on average; and ops
    that make less than 1 % of their role's values (a bias, a norm's gain): true, but not decisive.
    """
    sizes: Counter[str] = Counter()
    for row in rows:
        sizes[row.role] += row.n
    for row in rows:
        if row.overflowed and not (skipped and row.phase == "backward"):
            return Trouble(row.step, row.path, f"{row.overflowed} of {row.n} overflowed")
        by_chance = getattr(policy, row.role).rounding is Rounding.STOCHASTIC
        if not by_chance and row.n >= sizes[row.role] / 100 and (what := _loss_of_most(row)):
            return Trouble(row.step, row.path, what)
    return None


def _loss_of_most(row: OpCounts) -> str:
    """Say whether rounding took most of an op's results, or most of the updates."""
    if row.flushed_share > 0.5:
        return f"{row.flushed_share:.0%} flushed to zero"
    if row.swamped_share > 0.5:
        return f"{row.swamped_share:.0%} of the updates lost"
    return ""


def is_finite(x: float | None) -> bool:
    """Return whether x is a number that one can compare."""
    return x is not None and isfinite(x)
