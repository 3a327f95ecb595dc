"""What quantizing recipes multiply: all three products of a linear layer, bit for bit PyTorch's."""

from dataclasses import replace

import numpy as np
import products_peer
import pytest

import precsim as ps
from precsim.engine.tensor import Tensor

ROLES = ("activations", "gradients", "weight_gradients")


def products(name, x, w, g, arithmetic="exact"):
    """Run a linear layer under a recipe; return (left, right, product) of its three matmuls."""
    found = {}

    def note(event):
        if event.kind == "matmul":
            found[event.role] = (*event.inputs[:2], event.rounded)

    policy = ps.recipe(name).policy
    as_it_is = ps.Rule(op="cast", scope="seed", output="fp32")
    policy = replace(policy, arithmetic=arithmetic, rules=(*policy.rules, as_it_is))
    with ps.using(policy, observers=[note], scope="blocks.0.fc1"):
        left, weight, bias = (
            Tensor(a.astype(policy.carrier), ps.format("fp32"), requires_grad=True, is_weight=i > 0)
            for i, a in enumerate((x, w, np.zeros(w.shape[1])))
        )
        ps.ops.linear(left, weight, bias).backward(g)
    return [found[role] for role in ROLES]


PEERS = ("torchao_fp8_tensorwise", "torchao_fp8_rowwise", "torchao_fp8_rowwise_gw_hp",
         "torchao_int8_mixed", "switchback")  # fmt: skip


@pytest.mark.parametrize("name", PEERS)
def test_products_are_those_of_pytorch(name):
    stored = np.load(products_peer.STORED)
    for i, (*_, product) in enumerate(products(name, *products_peer.operands(name))):
        np.testing.assert_array_equal(product, stored[f"{name}/{i}"], err_msg=ROLES[i])


def test_pytorch_still_gives_what_is_stored():
    torch = pytest.importorskip("torch")
    stored = np.load(products_peer.STORED)
    for name, found in products_peer.in_torch(torch).items():
        for i, product in enumerate(found):
            np.testing.assert_array_equal(product, stored[f"{name}/{i}"], err_msg=f"{name} {i}")
