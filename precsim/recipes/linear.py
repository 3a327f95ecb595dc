"""What all recipes share that quantize the matmuls of linear layers, and nothing else.

fp8, fp4 and int8 training quantizes the operands of the three products of a linear layer: the
forward pass (activations, weights), the gradient of the input (gradients, weights) and the gradient
of the weight (activations, gradients).  Their results, attention, norms, softmax, the residual
stream and the last layer ("head") stay in 16 bits, and the optimizer in fp32.
"""

from __future__ import annotations

from precsim.engine.policy import Policy

BF16 = (
    "weights=bf16 master_weights=fp32 activations=bf16 gradients=bf16 weight_gradients=bf16 "
    "arithmetic=fast "
)
"""Around the quantized products: bf16 mixed precision with fp32 master weights."""

LAYERS = "blocks.*.[pqf]*"
"""The scopes of this model's linear layers without the last: qkv, proj, fc1, fc2."""


def linear_layers(
    forward: str, input_gradient: str = "", weight_gradient: str = "", around: str = BF16
) -> Policy:
    """Return a policy with rules for each of the three products; "" leaves its operands alone.

    A rule is written as in a policy, without its op and role: "inputs=e4m3:tensor".
    """
    products = {
        "activations": forward,
        "gradients": input_gradient,
        "weight_gradients": weight_gradient,
    }
    rules = [
        f"rule=op=matmul,role={role},scope={LAYERS},{rule}"
        for role, rule in products.items()
        if rule
    ]
    return Policy.parse(f"{around} {' '.join(rules)} rule=op=cross_entropy,output=fp32")
