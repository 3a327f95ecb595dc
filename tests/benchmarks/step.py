"""What a training step costs beside PyTorch's: ``python -m tests.benchmarks.step [--quick]``.

The model has 2 layers of width 64, 4 heads, a context of 64 and 128 tokens, 16 texts in a batch, and
is trained with SGD; every op is rounded, forward, backward and update.  PyTorch runs the same model
in float32 with a native pair of casts after every op (and once with none).  "fast" and "exact" are
NumPy alone; "compiled" is fast arithmetic rounded by Numba, where it is installed.  All take turns,
one thread each; times are medians.
"""

import importlib.util
import sys

from tests.benchmarks.measure import medians, one_thread, peak_memory, row, used_by, write_table

one_thread()

import numpy as np

import precsim as ps
from precsim.backend import tier

CONFIG = ps.GPTConfig(layers=2, heads=4, width=64, context=64, vocabulary=128)
BATCH, RATE, SCALE = 16, 0.01, 256.0
LIMITS = {"e4m3": 0.7, "e5m2": 0.95, "bf16": 1.2, "fp16": 1.2}
"""Most seconds of a step in fast arithmetic, as a multiple of PyTorch's with casts."""
COMPILED_LIMITS = LIMITS | {"bf16": 1.0, "fp16": 1.0}
"""The same where Numba rounds."""
EXACT_LIMIT = 2.0
"""Most seconds in exact arithmetic, as a multiple of those in fast."""
MEMORY_LIMIT = 1.5
"""Most memory at the peak of a step, as a multiple of PyTorch's with casts."""


class Model:
    """One model trained on one batch after the other, all from the same seed."""

    def __init__(
        self, fmt, arithmetic="fast", config=CONFIG, batch=BATCH, observers=(), tier="numpy"
    ):
        self.tier = tier
        self.policy = ps.Policy.uniform(fmt, arithmetic=arithmetic)
        self.config, self.batch, self.observers = config, batch, observers
        with ps.using(self.policy):
            self.model = ps.GPT(config, seed=0)
        self.optimizer = ps.optim.SGD(self.model.parameters, RATE)
        self.random = np.random.default_rng(0)

    def tokens(self):
        """Return a batch of random tokens, and those that follow them."""
        shape = self.batch, self.config.context + 1
        ids = self.random.integers(0, self.config.vocabulary, shape)
        return ids[:, :-1], ids[:, 1:]

    def step(self):
        """Do one step."""
        with tier(self.tier), ps.using(self.policy, observers=self.observers, step=0):
            self.model.loss(*self.tokens()).backward(SCALE)
            gradients = {n: p.grad for n, p in self.model.parameters.items()}
            for parameter in self.model.parameters.values():
                parameter.grad = None
            self.optimizer.step(ps.optim.multiply(gradients, 1 / SCALE))


def stepper(who, fmt, config=CONFIG, batch=BATCH):
    """Return a function that does one step, of "fast", "exact", "compiled" or "torch".

    `fmt` None is PyTorch without casts.
    """
    if who == "compiled":
        return Model(fmt, "fast", config, batch, tier="numba").step
    if who != "torch":
        return Model(fmt, who, config, batch).step
    import torch

    from tests.benchmarks.torch_step import Model as Peer

    torch.set_num_threads(1)
    ours = Model("fp32", "fast", config, batch)
    start = {name: p.numpy() for name, p in ours.model.parameters.items()}
    theirs = Peer(config, start, fmt, RATE, SCALE)
    return lambda: theirs.step(*ours.tokens())


def rows(quick: bool) -> list[dict]:
    """Measure, and return plain rows; without PyTorch there is nothing to hold the times against."""
    installed = importlib.util.find_spec("torch") is not None
    found = []
    for fmt in ("e4m3",) if quick else LIMITS:
        names = (
            ("fast", "exact", "compiled")
            if importlib.util.find_spec("numba")
            else ("fast", "exact")
        )
        functions = {name: stepper(name, fmt) for name in names}
        if installed:
            functions["torch + casts"] = stepper("torch", fmt)
            functions["torch fp32"] = stepper("torch", None)
        t = medians(functions, 7 if quick else 31)
        casts, plain = t.get("torch + casts"), t.get("torch fp32")
        table = "training step"
        found += [
            row(table, "fast", fmt, t["fast"], peer="torch + casts", against=casts,
                limit=LIMITS[fmt]),
            row(table, "fast", fmt, t["fast"], peer="torch fp32", against=plain),
            row(table, "exact", fmt, t["exact"], peer="fast", against=t["fast"],
                limit=EXACT_LIMIT),
        ]  # fmt: skip
        if "compiled" in t:
            found.append(row(table, "compiled", fmt, t["compiled"], peer="torch + casts",
                             against=casts, limit=COMPILED_LIMITS[fmt]))  # fmt: skip
        theirs = peak("torch", fmt) if installed else None
        for who, limit in (("fast", MEMORY_LIMIT), ("exact", None)):
            found.append(
                row("peak memory of a step", who, fmt, peak(who, fmt), "bytes",
                    peer="torch + casts", against=theirs, limit=limit)
            )  # fmt: skip
    return found


def peak(who, fmt):
    """Return the bytes that a model and three steps need at most, or None; in a process alone."""
    return peak_memory("tests.benchmarks.step", who, fmt)


def three_steps(who, fmt):
    """Return the same for this process, after a smaller model has loaded all that is loaded once."""
    small = ps.GPTConfig(layers=1, heads=2, width=8, context=8, vocabulary=16)
    stepper(who, fmt, small, 2)()
    return used_by(lambda: [step() for step in [stepper(who, fmt)] for _ in range(3)])


def main(arguments):
    """Print the rows; or, given "fast", "exact" or "torch" and a format, the peak memory."""
    if len(arguments) == 2:
        who, fmt = arguments
        sys.stdout.write(f"{three_steps(who, fmt)}\n")
    else:
        write_table(rows("--quick" in arguments), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
