"""What the tests of run directories share: a run of milliseconds, and what to compare."""

from pathlib import Path

import numpy as np

import precsim as ps
from precsim.runs.store import read_arrays, read_index

TINY = {
    "data": "zen", "layers": 1, "heads": 1, "width": 4, "context": 8, "batch": 1, "policy": "bf16",
    "steps": 5, "checkpoint_every": 2, "eval_every": 2, "observe": "counts",
}  # fmt: skip

MIXED = "activations=fp16 gradients=fp16 weight_gradients=fp16 weights=fp16 master_weights=fp32"


class Stop(BaseException):
    """The process is gone: nothing in it catches this."""


def tiny(**changes):
    """Return a config of a few milliseconds a step."""
    return ps.TrainConfig(**(TINY | changes))


def bend_gelu(monkeypatch):
    """Make GELU one percent too flat, as a change of the code would."""
    straight = ps.engine.kernels._gelu_tanh

    def bent(xp, x, out):
        return np.multiply(straight(xp, x, out), 0.99, out=out)

    monkeypatch.setattr(ps.engine.kernels, "_gelu_tanh", bent)


def final(folder):
    """Return what a finished run is compared by: its records' text and its last state, as bytes."""
    folder = Path(folder)
    last = read_index(folder).of("ckpt")[-1]
    state = read_arrays(folder, last)
    return (
        (folder / "steps.jsonl").read_bytes(),
        {name: array.tobytes() for name, array in state.items()},
    )


def hashes(folder):
    """Return the hash of every op of every step."""
    ops = ps.open(folder).ops()
    return np.stack([ops["step"].astype(np.uint64), ops["hash"]])
