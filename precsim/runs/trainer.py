"""One step of training: forward, scale, backward, check, unscale, clip, update."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from precsim.engine import ops
from precsim.engine.context import current, using
from precsim.engine.delayed import Delays
from precsim.engine.policy import Policy
from precsim.engine.tensor import Tensor
from precsim.nn import optim, scaling
from precsim.nn.gpt import GPT
from precsim.nn.optim import Tensors
from precsim.nn.optim8bit import AdamW8bit
from precsim.nn.optim_msamp import AdamWMSAMP
from precsim.observe.counters import Counters
from precsim.runs import schedule as schedules
from precsim.runs.config import TrainConfig
from precsim.runs.data import Batches, Corpus
from precsim.runs.pretrained import load_weights
from precsim.runs.schedule import Metrics


@dataclass(frozen=True)
class StepResult:
    """What the trainer knows after a step, before it is recorded.

    `valid_loss` is None where it was not time for an evaluation; `change` is the policy of the next
    step on, None where it stays.
    """

    loss: float
    lr: float
    scale: float
    skipped: bool
    grad_norm: float
    valid_loss: float | None = None
    change: Policy | None = None


class Trainer:
    """Model, optimizer, loss scale and the policy in force, advanced one step at a time."""

    def __init__(self, config: TrainConfig, model: GPT, batches: Batches) -> None:
        self.config = config
        self.policy = Policy.parse(config.policy)
        self.model = model
        self.batches = batches
        self.scaler = scaling.parse(config.loss_scale)
        self.optimizer = make_optimizer(config, model.parameters)
        self.schedule = schedules.parse(config.precision_schedule)
        self.valid_losses: tuple[float, ...] = ()
        self.delays = Delays()

    def step(self, step: int) -> StepResult:
        """Do one update, and where it is time an evaluation, after which the policy may change.

        Raises `scaling.LossScaleError` where the scaler gives up; then nothing has been updated.
        """
        last = step + 1 == self.config.steps
        if not last and (step + 1) % self.config.eval_every:
            with using(self.policy, delays=self.delays):
                return self.update(step)
        counters = Counters()
        watching = (counters,) if self.schedule else ()
        observers = (*current().observers, *watching)
        with using(self.policy, delays=self.delays, observers=observers):
            result = self.update(step)
        valid_loss = self.valid_loss(step)
        self.valid_losses += (valid_loss,)
        change = None
        if self.schedule and not last:
            initial = Policy.parse(self.config.policy)
            metrics = Metrics(step, self.valid_losses, self.policy, initial, result.skipped)
            change = self.schedule.on_eval(metrics, counters.rows)
        if change is not None:
            self.adopt(change)
        return replace(result, valid_loss=valid_loss, change=change)

    def adopt(self, policy: Policy) -> None:
        """Go on under another policy: weights and state are rounded into its formats."""
        self.policy = policy
        stored = "master_weights" if policy.has_master else "weights"
        with using(policy, observers=(), taping=False):
            for name, weight in self.model.parameters.items():
                taken = rounded(weight, stored, name)
                weight.data, weight.format = taken.data, taken.format
            for slot, states in self.optimizer.state.items():
                role = stored if slot == "kahan" else "optimizer_state"
                end = "" if slot == "kahan" else f".{slot}"
                taken_over = {n: rounded(x, role, n + end) for n, x in states.items()}
                self.optimizer.state[slot] = taken_over

    def update(self, step: int) -> StepResult:
        """Scale, go backward, unscale and check, clip, step, adjust the scale: in this order."""
        config = self.config
        peak = config.lr
        lr = peak
        if config.schedule == "cosine":
            lr = optim.learning_rate(step, config.steps, peak, config.warmup, floor=0.1)
        loss, gradients = self.scaled_gradients(step)
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

    def scaled_gradients(self, step: int) -> tuple[float, Tensors]:
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
            self.delays.advance(self.policy.delayed)
        gradients: Tensors = {}
        for name, parameter in self.model.parameters.items():
            if parameter.grad is not None:
                gradients[name], parameter.grad = parameter.grad, None
        return float(np.mean(losses)), gradients

    def valid_loss(self, step: int) -> float:
        """Return the mean loss over the validation batches, in the run's own formats.

        What it draws depends on `step` and on nothing that was computed before; delayed scaling
        takes the factors as they are, and learns nothing.
        """
        delays = Delays(self.delays.histories)
        with using(self.policy, step=step, taping=False, observers=(), delays=delays):
            return float(np.mean([self.model.loss(x, y).item() for x, y in self.batches.valid()]))

    def alive(self) -> bool:
        """Return whether all weights are still numbers."""
        return optim.all_finite(self.model.parameters)


def rounded(tensor: Tensor, role: str, name: str) -> Tensor:
    """Return a tensor in the format that the policy has for a role; it may have it already."""
    wanted = current().policy.stored(role, name)
    with using(role=role, scope=name):
        return ops.cast(Tensor(tensor.data, tensor.format), to=wanted)


def make_trainer(config: TrainConfig, corpus: Corpus, *, init: bool = True) -> Trainer:
    """Return a trainer before its first step, its weights drawn, or read, and rounded.

    ``init=False`` draws them whatever the config says: they are about to be replaced.
    Raises `DataError` where the text does not fill a batch, `WeightsError` where the file of
    weights is none, or another model's.
    """
    batches = Batches(corpus, config.batch, config.context, config.seed)
    sizes, weights = config.model(corpus.vocabulary_size), None
    if config.init and init:
        weights = load_weights(config.init, sizes, corpus.alphabet)
    return Trainer(config, GPT(sizes, config.seed, weights), batches)


def make_optimizer(config: TrainConfig, parameters: Tensors) -> optim.Optimizer:
    """Return the optimizer that the config names."""
    lr, decay, kahan = config.lr, config.weight_decay, config.weights_update == "kahan"
    if config.optimizer == "sgd":
        return optim.SGD(parameters, lr, config.momentum, decay, kahan=kahan)
    make = {"adamw8bit": AdamW8bit, "adamw_msamp": AdamWMSAMP}.get(config.optimizer, optim.AdamW)
    return make(parameters, lr, (config.beta1, config.beta2), config.eps, decay, kahan=kahan)


def _times(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else ops.mul(x, factor)
