"""One step of training: forward, scale, backward, check, unscale, clip, update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from precsim.engine import ops
from precsim.engine.context import using
from precsim.engine.policy import Policy
from precsim.nn import optim, scaling
from precsim.nn.gpt import GPT
from precsim.nn.optim import Tensors
from precsim.nn.optim8bit import AdamW8bit
from precsim.runs.config import TrainConfig
from precsim.runs.data import Batches, Corpus


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

        Raises `scaling.LossScaleError` where the scaler gives up; then nothing has been updated.
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


def make_trainer(config: TrainConfig, corpus: Corpus) -> Trainer:
    """Return a trainer before its first step, its weights drawn and rounded.

    Raises `DataError` where the text does not fill a batch.
    """
    batches = Batches(corpus, config.batch, config.context, config.seed)
    model = GPT(config.model(corpus.vocabulary_size), config.seed)
    return Trainer(config, model, batches)


def make_optimizer(config: TrainConfig, parameters: Tensors) -> optim.Optimizer:
    """Return the optimizer that the config names."""
    lr, decay, kahan = config.lr, config.weight_decay, config.weights_update == "kahan"
    if config.optimizer == "sgd":
        return optim.SGD(parameters, lr, config.momentum, decay, kahan=kahan)
    make = AdamW8bit if config.optimizer == "adamw8bit" else optim.AdamW
    return make(parameters, lr, (config.beta1, config.beta2), config.eps, decay, kahan=kahan)


def _times(x: Any, factor: float) -> Any:
    return x if factor == 1 else ops.mul(x, factor)
