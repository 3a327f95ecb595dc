"""The code of an introduction to mixed precision: an MLP of 10-20-30, `model.half()`, SGD at 0.01.

100 samples of random numbers with one of 3 labels, drawn by chance, 10 epochs over all of them at
once: after ten small steps towards nothing that can be learnt, the loss is the same in every
precision, and a reader concludes that half precision is harmless.  `teacher_data`, smaller learning
rates and more epochs show what it hides: the updates that are lost.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from precsim.backend.random import key, normal, uniform
from precsim.engine.context import using
from precsim.engine.dispatch import Event
from precsim.engine.policy import Policy
from precsim.engine.tensor import tensor
from precsim.nn import optim
from precsim.nn.mlp import MLP
from precsim.observe.counters import Counters

SIZES = (10, 20, 30)

Data = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Outcome:
    """What running the code came to.

    `losses`: of each step, in the run's own formats.  `final_loss`: of the last weights on all data,
    computed in fp32.  `lost`: share of the nonzero weight updates that changed nothing.  `flushed`:
    share of the nonzero gradients that became zero.
    """

    losses: tuple[float, ...]
    final_loss: float
    lost: float
    flushed: float


def random_data(samples: int = 100, classes: int = 3, seed: int = 0) -> Data:
    """Return inputs from N(0, 1) and labels that have nothing to do with them."""
    x = normal(key(seed, "snippet/data", 0, 0), (samples, SIZES[0]))
    labels = uniform(key(seed, "snippet/labels", 0, 0), (samples,)) * classes
    return x, labels.astype(np.int64)


def teacher_data(samples: int = 4096, classes: int = 30, seed: int = 0) -> Data:
    """Return inputs from N(0, 1) and the labels that a random linear map gives them."""
    x = normal(key(seed, "snippet/data", 0, 0), (samples, SIZES[0]))
    teacher = normal(key(seed, "snippet/teacher", 0, 0), (SIZES[0], classes))
    return x, np.argmax(x @ teacher, axis=1)


def run(
    policy: Policy | str = "fp16",
    *,
    lr: float = 0.01,
    steps: int = 10,
    data: Data | None = None,
    batch: int = 0,
    optimizer: str = "sgd",
    kahan: bool = False,
    seed: int = 0,
) -> Outcome:
    """Run the code under a policy; what is not said is as in the original.

    `data` is `random_data` by default; `batch` samples are drawn for each step (0: all, always);
    `optimizer` is "sgd" or "adam".  Raises `ValueError` for another optimizer.
    """
    if optimizer not in ("sgd", "adam"):
        msg = f"optimizer must be sgd or adam; got {optimizer!r}"
        raise ValueError(msg)
    x, labels = random_data(seed=seed) if data is None else data
    losses, counters = [], Counters(histograms=False, keep=_matters)
    with using(policy, seed=seed):
        model = MLP(SIZES, seed)
        make = optim.SGD if optimizer == "sgd" else optim.AdamW
        updates = make(model.parameters, lr, kahan=kahan)
        for step in range(steps):
            rows = _rows(len(x), batch, seed, step)
            with using(step=step, observers=[counters]):
                loss = model.loss(tensor(x[rows]), labels[rows])
                losses.append(loss.item())
                loss.backward()
                found = {n: p.grad for n, p in model.parameters.items()}
                updates.step({n: grad for n, grad in found.items() if grad is not None})
            for parameter in model.parameters.values():
                parameter.grad = None
    return Outcome(
        tuple(losses),
        _loss_in_fp32(model, x, labels),
        counters.total(op="apply_update").swamped_share,
        counters.total(phase="backward").flushed_share,
    )


def _matters(event: Event) -> bool:
    return event.phase == "backward" or event.op == "apply_update"


def _rows(samples: int, batch: int, seed: int, step: int) -> npt.NDArray[np.int64]:
    if not batch:
        return np.arange(samples)
    draws = uniform(key(seed, "snippet/batch", step, 0), (batch,))
    return (draws * samples).astype(np.int64)


def _loss_in_fp32(model: MLP, x: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    with using("fp32", taping=False, observers=()):
        return model.loss(tensor(x), labels).item()
