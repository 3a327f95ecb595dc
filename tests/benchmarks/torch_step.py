"""The peer of `step.py`: the same GPT in PyTorch, a pair of casts after every op, both ways."""

import numpy as np
import torch
import torch.nn.functional as f

DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "e5m2": torch.float8_e5m2,
    "e4m3": torch.float8_e4m3fn,
}


class Rounded(torch.autograd.Function):
    """Cast there and back; the gradient that comes back is rounded in the same way."""

    @staticmethod
    def forward(ctx, x, dtype):
        ctx.dtype = dtype
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(ctx, g):
        return g.to(ctx.dtype).to(g.dtype), None


class Model:
    """One batch, trained with SGD; `fmt` None emulates nothing."""

    def __init__(self, config, parameters, fmt, rate, scale, device="cpu"):
        self.device = device
        self.config, self.rate, self.scale = config, rate, scale
        self.dtype = DTYPES[fmt] if fmt else None
        self.parameters = {
            name: torch.tensor(np.asarray(x, np.float32), device=device).requires_grad_()
            for name, x in parameters.items()
        }

    def round(self, x):
        """Round the result of an op, and later the gradient with respect to it."""
        return x if self.dtype is None else Rounded.apply(x, self.dtype)

    def step(self, tokens, targets):
        """Do one step."""
        p = {name: self.round(x) for name, x in self.parameters.items()}
        ids = (torch.from_numpy(a).to(self.device) for a in (tokens, targets))
        loss = self.loss(p, *ids)
        loss.backward(torch.tensor(self.scale, device=self.device))
        with torch.no_grad():
            for x in self.parameters.values():
                gradient = self.round(x.grad * (1 / self.scale))
                x.copy_(self.round(x + self.round(gradient * -self.rate)))
                x.grad = None

    def loss(self, p, tokens, targets):
        """Return the mean cross-entropy; every op is rounded."""
        r, config = self.round, self.config
        heads, width, time = config.heads, config.width, tokens.shape[1]

        def norm(x, name):
            return r(f.layer_norm(x, (width,), p[f"{name}.weight"], p[f"{name}.bias"]))

        def linear(x, name):
            return r(x @ p[f"{name}.weight"] + p[f"{name}.bias"])

        hidden = torch.ones(time, time, dtype=torch.bool, device=self.device).triu(1)
        x = r(f.embedding(tokens, p["wte.weight"]) + p["wpe.weight"][:time])
        for layer in range(config.layers):
            b = f"blocks.{layer}"
            qkv = linear(norm(x, f"{b}.ln1"), f"{b}.qkv").split(width, -1)
            q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in qkv)
            scores = r(r(q @ k.transpose(2, 3)) * (width // heads) ** -0.5)
            weights = r(f.softmax(scores.masked_fill(hidden, -torch.inf), -1))
            x = r(x + linear(r(weights @ v).transpose(1, 2).flatten(2), f"{b}.proj"))
            wide = r(f.gelu(linear(norm(x, f"{b}.ln2"), f"{b}.fc1"), approximate="tanh"))
            x = r(x + linear(wide, f"{b}.fc2"))
        head = p["wte.weight"].T if config.tied else p["head.weight"]
        logits = r(norm(x, "lnf") @ head)
        return r(f.cross_entropy(logits.flatten(0, 1), targets.flatten()))
