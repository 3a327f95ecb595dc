"""The model of memory, against counts written out by hand for this architecture."""

import pytest

import precsim as ps
from precsim.analyse.memory import memory
from precsim.runs import data

B, T, C, H, LAYERS = 2, 16, 16, 2, 2
SIZES = {"data": "reverse", "batch": B, "context": T, "width": C, "heads": H, "layers": LAYERS,
         "tied": False}  # fmt: skip
CORPUS = data.load("reverse")
V = CORPUS.vocabulary_size


def measured(name, **changes):
    config = ps.TrainConfig(**SIZES).change(**ps.recipe(name).settings())
    return memory(config.change(**changes), CORPUS)


def matrices():
    """Values of the block's four matrices and of the head."""
    return LAYERS * (3 * C * C + C * C + 8 * C * C) + C * V


def parameters():
    biases = LAYERS * (3 * C + C + 4 * C + C)
    norms = (2 * LAYERS + 1) * 2 * C
    return matrices() + biases + norms + V * C + T * C


def activations():
    """What a backward pass must read: per block the inputs of both norms and of the four linear
    layers, q, k and v, the softmax, and GELU's input; then the last norm's and the head's inputs
    and the logits.
    """
    block = B * T * (C + C + 3 * C + C + C + C + 4 * C + 4 * C) + B * H * T * T
    return LAYERS * block + 2 * B * T * C + B * T * V


def test_fp32_takes_sixteen_bytes_a_parameter_with_adam():
    found = measured("fp32")
    n = parameters()
    assert found.parameters == n
    assert (dict(found.weights), dict(found.gradients)) == ({"fp32": 4 * n}, {"fp32": 4 * n})
    assert dict(found.state) == {"fp32": 8 * n}
    assert not found.copies
    assert found.per_parameter == 16
    assert dict(found.activations) == {"fp32": 4 * activations()}
    assert found.total == 16 * n + 4 * activations()


def test_half_takes_half_of_everything():
    found = measured("bf16", policy="bf16", optimizer="sgd", momentum=0.9)
    assert dict(found.state) == {"bf16": 2 * parameters()}
    assert found.per_parameter == 6
    assert dict(found.activations) == {"bf16": 2 * activations()}


def test_autocast_copies_what_matmuls_read_and_nothing_else():
    """Weights and biases of the linear layers; norms and embeddings stay in fp32."""
    biases = LAYERS * (3 * C + C + 4 * C + C)
    found = measured("torch_amp_bf16")
    assert dict(found.copies) == {"bf16": 2 * (matrices() + biases)}
    assert dict(found.weights) == {"fp32": 4 * parameters()}


def test_a_master_copy_is_what_the_optimizer_updates():
    found = measured("bf16_master")
    assert dict(found.weights) == {"fp32": 4 * parameters()}
    assert dict(found.copies) == {"bf16": 2 * parameters()}


def test_kahan_keeps_one_more_tensor_and_sgd_without_momentum_none():
    assert measured("bf16_kahan").state["bf16"] == 2 * parameters()
    assert not measured("fp32", optimizer="sgd", momentum=0.0).state


def test_8_bit_state_has_a_byte_a_value_and_a_scale_a_block():
    """Only fc1 and fc2 of this width 32 have the 4096 values from which the code is used."""
    found = measured("adamw8bit", width=32)
    values = LAYERS * 2 * 4 * 32 * 32
    assert found.state["8-bit code"] == 2 * (values + 4 * values // 256)


def test_numbers_for_json_add_up():
    facts = measured("torch_amp_fp16").to_dict()
    kinds = ("weights", "copies", "gradients", "state", "activations")
    assert facts["total"] == sum(sum(facts[kind].values()) for kind in kinds)


@pytest.mark.parametrize("name", list(ps.RECIPES))
def test_every_recipe_can_be_measured(name):
    found = measured(name)
    assert found.weights
    assert found.gradients
    assert found.activations
