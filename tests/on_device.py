"""Which tests compute on the device with `pytest --backend cupy`, and how.

TENSORS: every tensor that they make is on the device, and so is every op, counter and step.
ARRAYS: their arrays stay NumPy's, but are rounded on the device: moved there, and back.
OWN: they move their arrays themselves, and run on the stand-in where there is no device.

What is in none of them has no arrays to compute with, or asks for a backend of its own; it runs as
ever.
"""

from contextlib import contextmanager

import numpy as np

from precsim.backend import cupy as device
from precsim.engine.context import using
from precsim.formats import accounting, blocks, kernels

OWN = ("device", "one_pass_blocks")
TENSORS = (
    "accumulate", "arithmetic", "block", "context", "counters", "delayed", "dispatch", "functional",
    "gpt", "grad_scaler", "guard", "low_recipes", "ops", "optim", "optim16", "optim8bit", "policy",
    "recipes_kernels", "recipes_products", "recipes_table", "recipes_torch", "recipes_train", "rule",
    "scaling", "seed", "session", "step", "tape", "trials", "weight_recipes",
)  # fmt: skip
ARRAYS = (
    "accounting", "block_numbers", "block_traps", "blocks", "codes", "exact", "format_arithmetic",
    "format_traps", "kernels", "patterns", "peer_bugs", "profiles", "proofs", "quantize", "scaled",
    "stochastic", "testing",
)  # fmt: skip


@contextmanager
def computing(name, cupy):
    """Within the block, test module `name` ("test_ops", say) computes on the device."""
    short = name.removeprefix("test_")
    if short in TENSORS:
        with using(backend="cupy"):
            yield
        return
    registries = kernels.ONE_PASS, blocks.ONE_PASS, accounting.ONE_PASS
    kept = [dict(registry) for registry in registries]
    if short in ARRAYS:
        kernels.ONE_PASS["numpy"] = _moved(cupy, device.round_into)
        blocks.ONE_PASS["numpy"] = _moved(cupy, device.round_blocks)
        accounting.ONE_PASS["numpy"] = _taken(cupy, device.account)
    try:
        yield
    finally:
        for registry, before in zip(registries, kept, strict=True):
            registry.clear()
            registry.update(before)


def _moved(cupy, kernel):
    """Return a kernel for NumPy's arrays that runs on the device: the results go into the second."""

    def run(x, out, *rest):
        there = cupy.asarray(x)
        result = cupy.empty_like(there)
        done = _taken(cupy, kernel)(there, result, *rest)
        if done:
            out[...] = result.get()
        return done

    return run


def _taken(cupy, function):
    """Return the function for NumPy's arrays: they are taken to the device."""

    def run(*args):
        return function(*(cupy.asarray(a) if isinstance(a, np.ndarray) else a for a in args))

    return run
