"""PyTorch: autocast by the CUDA and by the CPU op list, and whole models in half or bfloat16.

Autocast sorts the ops of the forward pass: some run in the low format, some in fp32, the others in
the widest format of their inputs.  The backward pass runs in the formats of the forward, and each
gradient has its tensor's format.  Weights and optimizer stay fp32, but the gradient of a linear
weight comes out of a low-precision matmul and is only then cast: it underflows before that cast.
"""

from __future__ import annotations

from precsim.engine.policy import Policy
from precsim.engine.rule import PHASES
from precsim.recipes.recipe import Recipe

CUDA_FP32 = ("layer_norm", "softmax", "log_softmax", "nll_loss", "cross_entropy",
             "exp", "log", "square", "sum")  # fmt: skip
"""Ops of ours that CUDA autocast runs in fp32 (`square` is pow in PyTorch)."""

CPU_FP32 = ("log_softmax", "nll_loss", "cross_entropy")
"""Those of CPU autocast: the losses alone; log_softmax is meant as a part of cross-entropy."""


FOLLOWING = "activations=widest gradients=widest weight_gradients=widest arithmetic=fast "
"""Roles whose formats follow the operands, as dtypes do in PyTorch; what is not named is fp32."""


def forward_in(fmt: str, ops: tuple[str, ...]) -> str:
    """Return the rules by which forward ops get their operands in `fmt`."""
    return " ".join(f"rule=op={op},role=activations,inputs={fmt}" for op in ops)


def autocast(low: str, in_fp32: tuple[str, ...]) -> Policy:
    """Matmuls in `low`, the listed forward ops in fp32, everything else in its widest input."""
    rules = f"rule=op=matmul,inputs={low} {forward_in('fp32', in_fp32)}"
    return Policy.parse(f"{FOLLOWING} granularity=torch {rules}")


def cpu_sums(low: str) -> str:
    """Return the rules for the sums that PyTorch's CPU kernels keep in their tensors' format.

    The rows of layer norm's gain and bias gradients and of the embedding's are added one by one in
    `low`, and layer norm keeps each row's mean and reciprocal deviation in it.
    """
    ops = ("layer_norm*_grad", "sum_to,scope=*ln*", "scatter_add")
    return " ".join(f"rule=op={op},accumulator={low}" for op in ops)


def cpu_loss(low: str) -> str:
    """Return the same for the loss: log_softmax keeps its sums in `low`, nll_loss adds by 16."""
    return f"rule=op=log_softmax,accumulator={low} rule=op=nll_loss,accumulator={low}>{low}@16"


def whole_model(low: str) -> Policy:
    """Everything in `low`: weights, gradients, optimizer and its state."""
    roles = " ".join(f"{role}={low}" for role in PHASES if role != "master_weights")
    return Policy.parse(
        f"{roles} arithmetic=fast granularity=torch {cpu_loss(low)} {cpu_sums(low)}"
    )


_LISTS = "PyTorch 2.13, torch/include/ATen/autocast_mode.h"
_NO_CUDA = (
    "no oracle on a CPU: the op list is the header's, and a CPU model with the same casts written "
    "out agrees; CUDA's summation order is not reproduced"
)
_CPU = "op and dtype trace and gradients of PyTorch 2.13 on a CPU"
_CPU_OPTIMIZER = (
    f"{_CPU}, kernel by kernel; the optimizer rounds each line where PyTorch's addcmul and addcdiv "
    "round once: after 5 steps 97 % of the weights are its own with SGD, 80 % or more with AdamW"
)
_WHOLE = "PyTorch 2.13, torch.nn.Module"

RECIPES = (
    Recipe(
        name="torch_amp_fp16",
        title="PyTorch AMP, fp16",
        format="fp16",
        policy=autocast("fp16", CUDA_FP32),
        loss_scale="torch",
        about="torch.autocast('cuda') and GradScaler: matmuls in fp16; norms, softmax and loss in "
        "fp32; residual stream fp32.",
        source=_LISTS,
        oracle=_NO_CUDA,
    ),
    Recipe(
        name="torch_amp_bf16",
        title="PyTorch AMP, bf16",
        format="bf16",
        policy=autocast("bf16", CUDA_FP32),
        loss_scale="none",
        about="torch.autocast('cuda', torch.bfloat16): as for fp16, without loss scaling.",
        source=_LISTS,
        oracle=_NO_CUDA,
    ),
    Recipe(
        name="torch_amp_cpu_fp16",
        title="PyTorch AMP on a CPU, fp16",
        format="fp16",
        policy=autocast("fp16", CPU_FP32),
        loss_scale="torch",
        about="torch.autocast('cpu', torch.float16) and GradScaler('cpu'): matmuls, and on their "
        "results softmax and GELU, in fp16; of the listed ops only the loss is fp32.",
        source=_LISTS,
        oracle=_CPU,
    ),
    Recipe(
        name="torch_amp_cpu_bf16",
        title="PyTorch AMP on a CPU, bf16",
        format="bf16",
        policy=autocast("bf16", CPU_FP32),
        loss_scale="none",
        about="torch.autocast('cpu'), whose default is bf16: as for fp16, without loss scaling.",
        source=_LISTS,
        oracle=_CPU,
    ),
    Recipe(
        name="half",
        title="PyTorch half()",
        format="fp16",
        policy=whole_model("fp16"),
        loss_scale="none",
        about="model.half(): weights, gradients, optimizer and its state, all fp16.  Adam's epsilon "
        "of 1e-8 is 0 there.  GradScaler refuses fp16 gradients, so there is no loss scale.",
        source=f"{_WHOLE}.half, kernels of a CPU",
        oracle=_CPU_OPTIMIZER,
    ),
    Recipe(
        name="bfloat16",
        title="PyTorch bfloat16()",
        format="bf16",
        policy=whole_model("bf16"),
        loss_scale="none",
        about="model.bfloat16(): weights, gradients, optimizer and its state, all bf16.  Small "
        "updates are lost: a weight has 8 significand bits.",
        source=f"{_WHOLE}.bfloat16, kernels of a CPU",
        oracle=_CPU_OPTIMIZER,
    ),
)
