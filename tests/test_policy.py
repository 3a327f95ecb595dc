"""Policies: what is written is read, what cannot be is refused, and what they decide about an op."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import precsim as ps
from precsim.engine.policy import Granularity
from precsim.engine.precision import Accumulator, Precision
from precsim.engine.rule import PHASES, Origin, Saved
from precsim.engine.tensor import Tensor

FORMATS = st.sampled_from(["fp32", "tf32", "fp16", "bf16", "e4m3", "e5m2", "int8:row", "e6m9"])
WORDS = st.sampled_from(["", ":stochastic", ":toward_zero", ":saturate", ":up:ieee"])
PRECISIONS = st.builds("{}{}".format, FORMATS, WORDS) | st.just("widest")
ACCUMULATORS = st.none() | st.sampled_from(
    ["fp16", "bf16:stochastic", "e8m13:toward_zero/4>fp32@128", "e6m9>e6m9@64"]
)
PATTERNS = st.sampled_from(["*", "matmul", "blocks.[01].*", "*grad*", "loss", "a=b"])
RULES = st.builds(
    ps.Rule,
    op=PATTERNS,
    role=st.sampled_from(["*", "activations", "*gradients", "[ul]*"]),
    scope=PATTERNS,
    inputs=st.none() | PRECISIONS,
    weight_inputs=st.none() | PRECISIONS,
    gradient_inputs=st.none() | PRECISIONS,
    output=st.none() | PRECISIONS,
    accumulator=ACCUMULATORS,
    hadamard=st.sampled_from([0, 1, 16, 128]),
    saved=st.sampled_from(Saved),
)
POLICIES = st.builds(
    ps.Policy,
    **dict.fromkeys(PHASES, PRECISIONS) | {"master_weights": PRECISIONS | st.just("none")},
    initial_weights=st.none() | PRECISIONS.filter(lambda text: text != "widest"),
    accumulator=ACCUMULATORS,
    rules=st.lists(RULES, max_size=3),
    arithmetic=st.sampled_from(["exact", "fast"]),
    granularity=st.sampled_from(Granularity),
    delayed=st.sampled_from(["max@1024", "max@3-2", "most_recent@1"]),
)


@given(POLICIES)
def test_a_policy_is_read_as_it_is_written(policy):
    assert ps.Policy.parse(str(policy)) == policy
    assert hash(ps.Policy.parse(str(policy))) == hash(policy)
    assert ps.Policy.parse(policy) is policy


@given(RULES)
def test_a_rule_is_read_as_it_is_written(rule):
    assert ps.Rule.parse(str(rule)) == rule


def test_a_format_alone_means_everything_in_it():
    policy = ps.Policy.parse("half")
    assert policy == ps.Policy.uniform("fp16")
    for role in PHASES:
        assert getattr(policy, role).format == ("none" if role == "master_weights" else "fp16")
    assert not policy.has_master
    assert ps.Policy.uniform("fp16", master_weights="fp32").has_master
    assert ps.Policy.parse("").activations.format == "fp32"


def test_a_policy_does_not_take_a_format_for_that_of_the_weights_alone():
    with pytest.raises(TypeError, match=r"Policy\.uniform"):
        ps.Policy("fp16")


def test_policies_are_values():
    assert ps.Policy(weights="float16") == ps.Policy(weights=Precision("fp16"))
    with pytest.raises(AttributeError):
        ps.Policy().weights = "fp16"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fp61", "unknown format 'fp61': did you mean .*fp16"),
        (
            "weight=fp16",
            "unknown policy entry 'weight=fp16': expected key=value with a key of .*we",
        ),
        ("weights=fp16 bf16", "unknown policy entry 'bf16'"),
        ("weights=fp16 weights=bf16", "'weights' came twice, as 'fp16' and 'bf16'"),
        ("activations=none", "activations=none: only master_weights can be absent"),
        ("initial_weights=none", "initial_weights=none"),
        ("initial_weights=widest", "initial_weights=widest"),
        ("arithmetic=slow", "unknown arithmetic 'slow': expected 'exact' or 'fast'"),
        ("delayed=mean", "delayed=mean: expected max@LENGTH or most_recent@LENGTH"),
        ("delayed=max@0", "delayed=max@0: expected"),
        ("delayed=max@4-64", "margin 64: expected .* from 0 to 63"),
        ("granularity=op", "unknown granularity 'op': expected one of kernel, primitive, torch"),
        ("weights=fp64 arithmetic=fast", "fp64 does not fit float32"),
        ("accumulator=fp64 arithmetic=fast", "fp64 does not fit float32"),
        ("accumulator=fp32>fp64@8 arithmetic=fast", "fp64 does not fit float32"),
        ("rule=op=sum,accumulator=fp64 arithmetic=fast", "fp64 does not fit float32"),
        ("rule=op=sum,output=fp64 arithmetic=fast", "fp64 does not fit float32"),
        ("accumulator=fp16:nearst", "unknown rounding 'nearst'"),
        ("rule=matmul", "unknown rule entry 'matmul'"),
        ("rule=ops=matmul", "unknown rule entry 'ops=matmul'"),
        ("rule=op=matmul,op=sum", "rule entry 'op' came twice"),
        ("rule=role=activation", "rule role=activation: expected a pattern for one of activations"),
        ("rule=op=,output=fp16", "rule op='': expected no spaces"),
        ("rule=op=sum,inputs=none", "inputs=none"),
        ("rule=op=sum,output=fp61", "unknown format 'fp61'"),
        ("rule=op=matmul,weight_inputs=none", "weight_inputs=none"),
        ("rule=op=matmul,hadamard=12", "hadamard=12: expected 0 or a power of two"),
        ("rule=op=matmul,hadamard=-2", "hadamard=-2: expected 0 or a power of two"),
        ("rule=op=matmul,saved=both", "saved='both': expected cast or original"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(text, message):
    with pytest.raises(ValueError, match=message) as error:
        ps.Policy.parse(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["op", "scope"])
def test_a_pattern_that_could_not_be_read_back_is_refused(field):
    for pattern in ("a b", "blocks.[0,1].*", "a\tb"):
        with pytest.raises(ValueError, match=f"rule {field}=.*no spaces and no commas"):
            ps.Rule(**{field: pattern})


def decide(policy, op="add", kind="elementwise", role="activations", scope="blocks.0.fc1",
           formats=("fp32", "fp32"), origins=None):  # fmt: skip
    operands = tensors_on(formats, origins or ("input",) * len(formats))
    return ps.Policy.parse(policy).decide(op, kind, role, scope, operands)


def tensors_on(formats, origins):
    return tuple(
        Tensor(np.zeros(1), f and ps.format(f), origin=Origin(origin))
        for f, origin in zip(formats, origins, strict=True)
    )


@pytest.mark.parametrize("role", [r for r in PHASES if r != "master_weights"])
def test_each_role_decides_about_its_own_tensors(role):
    policy = str(ps.Policy(**{role: "fp16:up"}))
    for other in PHASES:
        if other != "master_weights":
            decision = decide(policy, role=other)
            assert (decision.format.name == "fp16") == (other == role)
            assert (str(decision.output) == "fp16:up") == (other == role)
            assert decision.casts == (None, None)


def test_the_first_rule_that_matches_is_the_one():
    policy = (
        "rule=op=matmul,scope=blocks.*.fc1,output=fp16 rule=op=matmul,output=bf16 "
        "rule=op=reduction,role=gradients,output=e5m2 rule=op=reduction,accumulator=fp16"
    )
    found = {
        ("matmul", "matmul", "activations", "blocks.0.fc1"): "fp16",
        ("matmul", "matmul", "activations", "blocks.10.fc1"): "fp16",
        ("matmul", "matmul", "activations", "head"): "bf16",
        ("linear", "matmul", "activations", "head"): "bf16",  # by its kind
        ("sum", "reduction", "gradients", "head"): "e5m2",
        ("sum", "reduction", "weight_gradients", "head"): "fp32",
        ("add", "elementwise", "activations", "blocks.0.fc1"): "fp32",
    }
    for (op, kind, role, scope), fmt in found.items():
        assert decide(policy, op, kind, role, scope).format == ps.format(fmt), (op, role, scope)


def test_an_accumulator_is_the_rules_or_the_policys():
    policy = "accumulator=bf16 rule=op=sum,accumulator=fp16 rule=op=matmul,output=fp16"
    assert decide(policy, "sum", "reduction").accumulator == Accumulator("fp16")
    assert decide(policy, "matmul", "matmul").accumulator == Accumulator("bf16")
    assert decide("fp32").accumulator is None


def test_operands_are_cast_where_their_format_differs_and_constants_never():
    policy = "rule=op=matmul,inputs=e4m3:saturate,gradient_inputs=e5m2,output=bf16"
    e4m3, e5m2 = Precision.parse("e4m3:saturate"), Precision.parse("e5m2")

    def casts(*formats, origins=None):
        return decide(policy, "matmul", "matmul", formats=formats, origins=origins).casts

    assert casts("fp32", "bf16") == (e4m3, e4m3)
    assert casts("e4m3", "bf16") == (None, e4m3)
    assert casts(None, "fp32") == (None, e4m3)
    assert casts("fp32", "fp32", origins=("gradient", "weight")) == (e5m2, e4m3)
    assert casts("e5m2", "e5m2", origins=("gradient", "input")) == (None, e4m3)
    only_inputs = policy.replace("gradient_inputs=e5m2,", "")
    decision = decide(only_inputs, "matmul", "matmul", origins=("gradient", "input"))
    assert decision.casts == (e4m3, e4m3)


def test_int8_operands_are_scaled_along_the_contraction_and_the_bias_not_at_all():
    decision = decide(
        "rule=op=matmul,inputs=int8:row,output=fp16", "linear", "matmul", formats=("fp32",) * 3
    )
    assert [c and c.format for c in decision.casts] == ["int8:row", "int8:column", None]
    elementwise = decide("rule=op=add,inputs=int8:row,output=fp16")
    assert [c and c.format for c in elementwise.casts] == ["int8:row", "int8:row"]


def test_widest_follows_the_operands_after_their_casts():
    policy = "activations=widest rule=op=matmul,inputs=fp16 rule=op=sum,inputs=widest"
    assert decide(policy, formats=("bf16", "fp32")).format.name == "fp32"
    assert decide(policy, formats=("bf16", None)).format.name == "bf16"
    assert decide(policy, "matmul", "matmul", formats=("fp32", "fp32")).format.name == "fp16"
    assert decide(policy, formats=(None, None)).format.name == "fp64"
    assert decide(policy + " arithmetic=fast", formats=(None, None)).format.name == "fp32"
    promoted = decide(policy, "sum", "reduction", formats=("fp16", "fp32"))
    assert [c and c.format for c in promoted.casts] == ["widest", None]
    with pytest.raises(ValueError, match="no format among fp16, bf16 holds all values"):
        decide(policy, formats=("fp16", "bf16"))


def test_decisions_are_remembered_for_exactly_what_they_were_made():
    policy = ps.Policy.parse("activations=widest rule=scope=head,output=fp16")
    operands = [(a, b) for a in ("fp32", "bf16") for b in ("fp32", "bf16")]
    for _ in range(2):
        for scope in ("head", "body"):
            for formats in operands:
                given = tensors_on(formats, ("input", "input"))
                found = policy.decide("add", "elementwise", "activations", scope, given)
                want = "fp16" if scope == "head" else "fp32" if "fp32" in formats else "bf16"
                assert found.format.name == want
    assert decide("activations=fp16", formats=operands[0]).format == ps.format("fp16")


def test_decisions_about_a_weight_are_not_those_about_another_operand():
    policy = ps.Policy.parse("rule=op=matmul,inputs=fp16,weight_inputs=bf16,gradient_inputs=e5m2")
    wanted = {"input": "fp16", "weight": "bf16", "gradient": "e5m2"}
    for _ in range(2):
        for (left, a), (right, b) in product(wanted.items(), repeat=2):
            given = tensors_on(("fp32", "fp32"), (left, right))
            found = policy.decide("matmul", "matmul", "activations", "head", given)
            assert [c.format for c in found.casts] == [a, b]


def test_weights_of_some_layers_are_kept_in_another_format():
    policy = ps.Policy.parse(
        "weights=bf16 rule=op=*,output=fp16 rule=role=weights,scope=*.bias,output=fp32 "
        "rule=role=optimizer_state,scope=head*,output=bf16"
    )
    assert str(policy.stored("weights", "blocks.0.fc1.weight")) == "bf16"  # "*" names no role
    assert str(policy.stored("weights", "blocks.0.fc1.bias")) == "fp32"
    assert str(policy.stored("optimizer_state", "head.weight")) == "bf16"
    assert str(policy.stored("master_weights", "head.weight")) == "none"
    sizes = ps.GPTConfig(layers=1, heads=1, width=4, context=4, vocabulary=5)
    rule = "weights=bf16 rule=role=weights,scope=blocks.*.fc?.weight,output=int8:column"
    with ps.using(rule):
        model = ps.GPT(sizes)
        tokens = np.zeros((1, 4), int)
        model.loss(tokens, tokens).backward()
        ps.optim.AdamW(model.parameters, 0.1).step({n: p.grad for n, p in model.parameters.items()})
    kept = {n for n, p in model.parameters.items() if p.format == ps.format("int8:column")}
    assert kept == {"blocks.0.fc1.weight", "blocks.0.fc2.weight"}
    assert {p.format.name for n, p in model.parameters.items() if n not in kept} == {"bf16"}


def test_a_rule_shows_in_the_numbers():
    """A dot product of fp32 operands: e4m3 operands and a bf16 result, by rule; fp32 without."""
    a, b = np.array([[1.06, 3.3]]), np.array([[1.06], [1.0]])
    with ps.using("rule=op=matmul,scope=low,inputs=e4m3,output=bf16"):
        left, right = ps.tensor(a), ps.tensor(b)
        high = (left @ right).item()
        with ps.scope("low"):
            low = left @ right
    assert (low.item(), low.format.name) == (1.0 * 1.0 + 3.25, "bf16")
    assert high == float(np.float32(np.float32(1.06) ** 2 + np.float64(np.float32(3.3))))
