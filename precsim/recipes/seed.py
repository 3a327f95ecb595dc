"""Two procedures as they circulate in introductions to low-precision training, to the letter.

Such texts say: start from a trained model; initialise its weights in half precision; compute the
forward pass in single and the backward pass in half precision (mixed), or all of it in half or
lower (low); check the metrics periodically, and adjust the level of precision.  Loss scaling, master
weights and lists of ops are not spoken of.  Their code is `model.half()` and SGD with lr=0.01.

They run here as written, and `differs` says where they leave standard practice.  Where that does
harm and where it does not is for numbers to say: `precsim.recipes.snippet` runs the code,
`precsim recipes diff seed_mixed torch_amp_fp16` lists the differences op by op.
"""

from __future__ import annotations

from typing import Any

from precsim.engine.policy import Policy
from precsim.recipes.recipe import Recipe

_PROCEDURE: dict[str, Any] = {
    "precision_schedule": "loss",
    "optimizer": "sgd",
    "momentum": 0.0,
    "lr": 0.01,
    "schedule": "constant",
    "warmup": 0,
}

_NO_MASTER = (
    "The only copy of the weights is fp16: an update of less than half a unit in the last place is "
    "lost.  Standard practice keeps fp32 weights, or an fp32 master copy; torch.autocast's "
    "documentation says not to call half() on the model."
)
_BACKWARD_ALONE = (
    "The backward pass alone is fp16.  Under autocast the forward pass decides and the backward "
    "follows; here the forward pass is as slow and its activations as large as in fp32, and the "
    "half with the small numbers is the one in fp16."
)
_OPTIMIZER = (
    "The optimizer computes and keeps its state in fp16.  In standard practice it is fp32; in fp16 "
    "Adam's epsilon of 1e-8 is zero, and its first step destroys the weights."
)
_NO_SCALING = (
    "The loss is not scaled: gradients below 3e-8 become zero, without a sign of it.  Standard "
    "practice multiplies the loss by 65536 or so (GradScaler) wherever gradients are fp16."
)
_BY_LOSS = (
    "The level of precision follows the validation loss.  No framework does that; they adapt loss "
    "scales.  A run that loses most of its updates still improves, so the loss seldom tells."
)
_PRETRAINED = (
    "It starts from a trained model, which --init FILE names; without it, from random weights.  "
    "Standard practice starts from either.  Weights that were trained in bf16 may not fit into fp16."
)

RECIPES = (
    Recipe(
        name="seed_mixed",
        title="fp32 forward, fp16 backward",
        format="fp16",
        policy=Policy.parse(
            "weights=fp16 activations=fp32 gradients=fp16 weight_gradients=fp16 arithmetic=fast"
        ),
        loss_scale="none",
        about="Weights in half, forward in single, backward in half precision; no loss scaling.",
        entries=_PROCEDURE,
        differs=(
            _NO_MASTER,
            _BACKWARD_ALONE,
            _NO_SCALING,
            _BY_LOSS,
            _PRETRAINED,
        ),
        source="introductions to mixed precision training",
    ),
    Recipe(
        name="seed_low",
        title="everything in half",
        format="fp16",
        policy=Policy.uniform("fp16", arithmetic="fast"),
        loss_scale="none",
        about="Weights, forward, backward and optimizer in half precision; no loss scaling.",
        entries=_PROCEDURE | {"precision_schedule": "loss levels=fp16/fp32"},
        differs=(
            _NO_MASTER,
            "Softmax, layer norm and the loss are fp16, too.  Under CUDA's autocast they are fp32.",
            _OPTIMIZER,
            _NO_SCALING,
            _BY_LOSS,
            _PRETRAINED,
        ),
        source="introductions to mixed precision training",
    ),
)
