"""The GPT in PyTorch on a CPU, under each recipe: autocast, whole models, or the casts written out.

`python tests/torch_peer.py` records what it does into tests/data, for machines without PyTorch.
What has no CPU implementation (CUDA's op list, Apex, Keras) is this model with their casts.
"""

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as f
from torch.utils._python_dispatch import TorchDispatchMode

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Peer:
    """How a recipe is run: dtype of the parameters, autocast, and the casts written out.

    `up` names the functions that get their input in fp32; `low` is the dtype to which linear
    layers and embeddings are cast by hand, `copies` the dtype of all weights in the forward pass.
    """

    scale: float = 1.0
    parameters: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    up: tuple[str, ...] = ()
    low: torch.dtype | None = None
    copies: torch.dtype | None = None


F16, BF16 = torch.float16, torch.bfloat16
CUDA = ("norm", "softmax")
S = 65536.0
PEERS = {
    "torch_amp_cpu_fp16": Peer(S, autocast=F16),
    "torch_amp_cpu_bf16": Peer(autocast=BF16),
    "half": Peer(256.0, F16),
    "bfloat16": Peer(1.0, BF16),
    "torch_amp_fp16": Peer(S, autocast=F16, up=CUDA),
    "torch_amp_bf16": Peer(autocast=BF16, up=CUDA),
    "apex_O0": Peer(),
    "apex_O1": Peer(S, autocast=F16, up=(*CUDA, "gelu")),
    "apex_O2": Peer(S / 4, copies=F16, up=("loss",)),
    "apex_O3": Peer(1.0, F16, up=("loss",)),
    "keras_mixed_float16": Peer(32768.0, low=F16, up=("norm", "loss")),
    "keras_mixed_bfloat16": Peer(1.0, low=BF16, up=("norm", "loss")),
    "keras_float16": Peer(1.0, F16, low=F16, up=("norm", "loss")),
}


def loss_of(peer, p, x, y, layers, heads):
    """Return the mean cross-entropy; `p` in PyTorch's layout, linear weights (out, in)."""

    def up(name, t):
        return t.float() if name in peer.up else t

    def low(t):
        return t if peer.low is None else t.to(peer.low)

    def linear(h, name):
        bias = p.get(f"{name}.bias")
        return f.linear(low(h), low(p[f"{name}.weight"]), bias if bias is None else low(bias))

    def norm(h, name):
        weight, bias = (up("norm", p[f"{name}.{part}"]) for part in ("weight", "bias"))
        return f.layer_norm(up("norm", h), h.shape[-1:], weight, bias, 1e-5)

    time, width = x.shape[1], p["wte.weight"].shape[1]
    hidden = torch.ones(time, time, dtype=torch.bool).triu(1)
    h = low(f.embedding(x, p["wte.weight"])) + low(p["wpe.weight"][:time])
    for layer in range(layers):
        b = f"blocks.{layer}"
        qkv = linear(norm(h, f"{b}.ln1"), f"{b}.qkv").split(width, -1)
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in qkv)
        scores = (q @ k.transpose(2, 3) * (width // heads) ** -0.5).masked_fill(hidden, -torch.inf)
        mixed = low(f.softmax(up("softmax", scores), -1)) @ v
        h = h + linear(mixed.transpose(1, 2).flatten(2), f"{b}.proj")
        fc1 = up("gelu", linear(norm(h, f"{b}.ln2"), f"{b}.fc1"))
        h = h + linear(f.gelu(fc1, approximate="tanh"), f"{b}.fc2")
    logits = up("loss", linear(norm(h, "lnf"), "head"))
    return f.cross_entropy(logits.flatten(0, 1), y.flatten())


def run(name, parameters, x, y, layers, heads, recorder=None):
    """Return the loss, the unscaled gradients in float64, and their dtypes' names."""
    peer = PEERS[name]
    x, y = torch.tensor(x), torch.tensor(y)
    torch.set_num_threads(1)
    leaves = {
        name: torch.tensor(values).to(peer.parameters).requires_grad_()
        for name, values in parameters.items()
    }
    casting = torch.autocast("cpu", peer.autocast) if peer.autocast else nullcontext()
    with recorder or nullcontext():
        with casting:
            p = leaves
            if peer.copies:
                p = {name: leaf.to(peer.copies) for name, leaf in leaves.items()}
            loss = loss_of(peer, p, x, y, layers, heads)
        scaled = loss * peer.scale
        if recorder:
            recorder.phase = "backward"
        scaled.backward()
    gradients = {n: leaf.grad.double().numpy() / peer.scale for n, leaf in leaves.items()}
    return loss.item(), gradients, {n: str(leaf.grad.dtype) for n, leaf in leaves.items()}


NAMES = {
    "add.Tensor": "add", "mul.Tensor": "mul", "sum.dim_IntList": "sum", "_to_copy.default": "cast",
    "addmm.default": "linear", "mm.default": "matmul", "bmm.default": "matmul",
    "native_layer_norm.default": "layer_norm", "_softmax.default": "softmax",
    "_softmax_backward_data.default": "softmax_grad", "gelu.default": "gelu",
    "gelu_backward.default": "gelu_grad", "_log_softmax.default": "log_softmax",
    "_log_softmax_backward_data.default": "log_softmax_grad", "nll_loss_forward.default": "nll_loss",
    "nll_loss_backward.default": "nll_loss_grad", "ones_like.default": "seed",
    "embedding_dense_backward.default": "scatter_add",
}  # fmt: skip
"""PyTorch's ops that compute or cast, and ours; the others move values, or are no floats."""

FORMATS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


class Recorder(TorchDispatchMode):
    """Lists every op that reaches the dispatcher as (phase, op, format of the result, elements)."""

    def __init__(self):
        super().__init__()
        self.rows, self.phase = [], "forward"

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        name = str(op).removeprefix("aten.")
        if name in NAMES:
            first = out[0] if isinstance(out, tuple) else out
            self._note(NAMES[name], first)
        elif name == "native_layer_norm_backward.default":  # one kernel there, three ops here
            parts = ("layer_norm_grad", "layer_norm_weight_grad", "sum")
            for part, value in zip(parts, out, strict=True):
                self._note(part, value)
        return out

    def _note(self, name, value):
        self.rows.append((self.phase, name, FORMATS[value.dtype], value.numel()))


def main():
    """Write traces and gradients of all peers on the golden model; gradients are unscaled."""
    with np.load(DATA / "gpt_torch213.npz") as golden:
        parameters = {n.removeprefix("param/"): golden[n] for n in golden if n.startswith("param/")}
        x, y = golden["x"], golden["y"]
    traces, arrays = {}, {}
    for name, peer in PEERS.items():
        recorder = Recorder()
        loss, gradients, _ = run(name, parameters, x, y, 1, 2, recorder)
        traces[name] = [" ".join(map(str, row)) for row in recorder.rows]
        arrays |= {f"loss/{name}": np.array(loss), f"scale/{name}": np.array(peer.scale)}
        arrays |= {f"grad/{name}/{n}": g.astype(np.float32) for n, g in gradients.items()}
    text = json.dumps(traces, indent=0)
    (DATA / "recipes_torch213.json").write_text(text + "\n", encoding="utf-8")
    np.savez_compressed(DATA / "recipes_torch213.npz", **arrays)


if __name__ == "__main__":
    main()
