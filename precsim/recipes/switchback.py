"""SwitchBack: int8 products for the forward pass and the input gradient, 16 bits for the weights'.

A weight gradient sums over every token of a batch, many times more terms than a layer has inputs,
and its noise grows with their number; so that product alone "switches back" to 16 bits.
"""

from __future__ import annotations

from precsim.recipes.linear import linear_layers
from precsim.recipes.recipe import Recipe

_OPERANDS = "inputs=int8:row,weight_inputs=int8:tensor"

RECIPES = (
    Recipe(
        name="switchback",
        title="SwitchBack int8",
        format="int8",
        policy=linear_layers(f"{_OPERANDS},saved=original", _OPERANDS),
        loss_scale="none",
        about="int8 with a scale for each row of activations and gradients and one for a weight; "
        "the weight gradient is a bf16 product.",
        source="Wortsman et al. 2023, arXiv:2304.13013; bitsandbytes before c27dc581 (February "
        "2026), nn/triton_based_modules.py, SwitchBackLinear",
        oracle="PyTorch 2.13's torch._int_mm on a CPU; bitsandbytes' Triton kernels were read, not "
        "run: they round 127 x / amax, which can differ at a midpoint",
    ),
)
