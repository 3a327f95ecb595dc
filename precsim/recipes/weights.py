"""Where the weights and the optimizer's state live, when all else is in bf16 (or fp32).

An update is a thousandth of its weight or less, and bf16 rounds away what is below a 256th: with
one copy of the weights in 16 bits, rounded to nearest, most updates are lost.  Four remedies, and
what the state can do with.
"""

from __future__ import annotations

from precsim.engine.policy import Policy
from precsim.recipes.recipe import Recipe


def _bf16(others: str) -> Policy:
    """Activations and gradients in bf16; the optimizer computes in fp32."""
    return Policy.parse(
        "activations=bf16 gradients=bf16 weight_gradients=bf16 update=fp32 loss=fp32 "
        f"arithmetic=fast {others}"
    )


_TORCHAO = "torchao 0.18, torchao/optim/adam.py"

RECIPES = (
    Recipe(
        "bf16_rne",
        "bf16 weights, nearest",
        "bf16",
        _bf16("weights=bf16 optimizer_state=fp32"),
        "none",
        "The only copy of the weights in bf16, rounded to nearest: small updates vanish.",
    ),
    Recipe(
        "bf16_sr",
        "bf16 weights, stochastic",
        "bf16",
        _bf16("weights=bf16:stochastic optimizer_state=fp32"),
        "none",
        "The only copy of the weights in bf16, rounded by chance: right on average.",
        source=f"{_TORCHAO}: _AdamW(bf16_stochastic_round=True), a step in fp32, then rounded",
    ),
    Recipe(
        "bf16_kahan",
        "bf16 weights, Kahan",
        "bf16",
        _bf16("weights=bf16 optimizer_state=fp32"),
        "none",
        "Weights in bf16, and what rounding left over in a second bf16 tensor: 32 bits in all.",
        {"weights_update": "kahan"},
        source="Zamirai et al. 2020, arXiv:2010.06192; optimi, sgd.py and adam.py",
        oracle="the recurrence with PyTorch 2.13's bf16 and fp16 elementwise ops, to the bit",
    ),
    Recipe(
        "bf16_master",
        "bf16, fp32 master",
        "bf16",
        _bf16("weights=bf16 master_weights=fp32 optimizer_state=fp32"),
        "none",
        "The optimizer updates an fp32 copy; the forward pass reads it rounded to bf16.",
        source="Micikevicius et al. 2018, arXiv:1710.03740, section 3.1, for fp16",
    ),
    Recipe(
        "bf16_state",
        "bf16 optimizer state",
        "bf16",
        _bf16("weights=bf16 master_weights=fp32 optimizer_state=bf16"),
        "none",
        "Adam's m and v in bf16: they need fp32's range, and have it.",
        source="DeepSeek-V3, arXiv:2412.19437, section 3.3.1",
    ),
    Recipe(
        "fp16_state",
        "fp16 optimizer state",
        "fp16",
        Policy.parse("optimizer_state=fp16 arithmetic=fast"),
        "none",
        "Adam's m and v in fp16: a gradient below 2e-3 leaves a v of zero, and m is divided by it.",
    ),
    Recipe(
        "adamw8bit",
        "8-bit optimizer state",
        "bf16",
        _bf16("weights=bf16:stochastic optimizer_state=fp32"),
        "none",
        "bf16 weights rounded by chance, Adam's m and v in 8 bits: 4 bytes a weight in all.",
        {"optimizer": "adamw8bit"},
        source=f"Dettmers et al. 2022, arXiv:2110.02861; {_TORCHAO} and subclass_8bit.py",
        oracle="torchao 0.18's code and quantiser to the bit, its Adam but for half-way values",
    ),
)
