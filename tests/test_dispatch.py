"""The funnel: every rounding is an event, at a place with a name, and drawn from that place's key."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import precsim as ps
from precsim import testing
from precsim.backend import key, to_numpy, words
from precsim.engine.rule import Origin
from precsim.engine.tensor import Tensor


def watched(policy, program, **changes):
    """Return what the program returns and the events of its ops."""
    events = []
    with ps.using(policy, observers=[events.append], step=0, **changes):
        return program(), events


def paths(events):
    return [event.path for event in events]


def small_network():
    x = ps.tensor(np.array([[1.0, -2.0, 0.3], [0.1, 0.2, 7.0]]))
    weight = Tensor(
        np.ones((3, 2)) / 8, ps.format("fp16"), requires_grad=True, origin=Origin.WEIGHT
    )
    bias = Tensor(
        np.full(2, 0.1), ps.format("fp16"), requires_grad=True, origin=Origin.WEIGHT, name="b"
    )
    with ps.scope("layer"):
        y = ps.ops.relu(ps.ops.linear(x, weight, bias))
    loss = (y * y).sum()
    loss.backward()
    return weight, bias


@pytest.mark.host_only
def test_the_events_of_a_known_graph():
    _, events = watched("fp16", small_network)
    assert paths(events) == [
        "activations/tensor/cast",
        "activations/layer/linear",
        "activations/layer/relu",
        "activations//mul",
        "activations//sum",
        "gradients/seed/cast",
        "gradients//mul",  # y was used twice ...
        "gradients//mul",
        "gradients//accumulate",  # ... so two gradients add up
        "gradients/layer/heaviside",
        "gradients/layer/mul",
        "weight_gradients/layer/matmul",
        "weight_gradients/layer/sum_to",
    ]
    assert [e.call for e in events if e.path == "gradients//mul"] == [0, 1]
    assert {e.phase for e in events[:5]} == {"forward"}
    assert {e.phase for e in events[5:]} == {"backward"}


def test_an_event_says_what_went_in_what_came_out_and_what_it_was_before():
    (product, left, right), events = watched(
        "e4m3:up", lambda: ((a := ps.tensor(1.1)) * (b := ps.tensor(3.0)), a, b), scope="here"
    )
    event = events[-1]
    assert (event.op, event.kind, event.role) == ("mul", "elementwise", "activations")
    assert (event.scope, event.step, event.call) == ("here", 0, 0)
    assert (event.format.name, str(event.precision)) == ("e4m3", "e4m3:up")
    assert event.inputs[0] is left.data
    assert event.inputs[1] is right.data
    assert (event.exact.item(), event.rounded.item()) == (1.125 * 3, 3.5)
    assert event.rounded is product.data
    assert left.item() == 1.125


@pytest.mark.parametrize(
    ("policy", "named"),
    [("fp16", "e4m3"), ("rule=op=matmul,inputs=e4m3,output=bf16", "e4m3")],
)
def test_a_cast_is_an_event_only_where_the_format_changes(policy, named):
    def program():
        x = ps.tensor(np.ones((2, 2)))
        ps.ops.cast(ps.ops.cast(x, to=ps.Precision(named)), to=ps.Precision(named))
        return x @ x

    _, events = watched(policy, program)
    casts = [e for e in events if e.op == "cast"]
    assert [e.format.name for e in casts[1:]] == ["e4m3"] * (1 if policy == "fp16" else 3)


def test_a_cast_reads_its_target_as_a_policy_does():
    x = ps.tensor([1000.0, -0.3])
    assert ps.ops.cast(x, to="e4m3:saturate").numpy().tolist() == [448.0, -0.3125]
    with pytest.raises(ValueError, match="unknown format 'fp17'"):
        ps.ops.cast(x, to="fp17")
    with pytest.raises(TypeError, match="cast: expected to=, a precision such as"):
        ps.ops.cast(x)


def test_a_cast_passes_its_gradient_straight_through_what_it_saturated():
    def program():
        x = ps.tensor([1000.0, 1.06, 1e-9], requires_grad=True)
        ps.ops.cast(x, to=ps.Precision.parse("e4m3:saturate")).backward([1.0, 2.0, 3.0])
        return x.grad

    gradient, _ = watched("fp32", program)
    np.testing.assert_array_equal(gradient.numpy(), [1, 2, 3])
    assert gradient.format.name == "fp32"


def test_a_second_backward_pass_accumulates_in_an_op_named_after_the_leaf():
    def program():
        w = ps.tensor([1.0, 1.0], requires_grad=True, name="w")
        for gradient in (2048.0, 1.0):
            (w * 1.0).backward([gradient, gradient])
        return w.grad

    gradient, events = watched("fp16", program)
    assert paths(events)[-1] == "weight_gradients/w/accumulate"
    np.testing.assert_array_equal(gradient.numpy(), [2048, 2048])  # 2049 is a tie in fp16


def test_nothing_comes_out_of_a_training_step_that_no_event_has_made():
    def program():
        model = ps.GPT(ps.GPTConfig(layers=1, heads=2, width=8, context=6, vocabulary=9))
        ids = np.arange(12).reshape(2, 6) % 9
        loss = model.loss(ids, ids)
        (loss * 64.0).backward()
        gradients = {n: p.grad for n, p in model.parameters.items()}
        gradients = ps.optim.multiply(gradients, 1 / 64)
        clipped = ps.optim.clip(gradients, 0.01)
        optimizer = ps.optim.AdamW(model.parameters, lr=1e-2, weight_decay=0.1)
        optimizer.step(clipped)
        states = (s for slot in optimizer.state.values() for s in slot.values())
        return [loss, *gradients.values(), *clipped.values(), *model.parameters.values(), *states]

    tensors, events = watched("tf32", program)
    made = np.unique(np.concatenate([to_numpy(e.rounded).ravel() for e in events]))
    for tensor in tensors:
        assert np.isin(tensor.numpy(), [*made, 0.0]).all(), "a movement may add zeros, and no more"
    for event in events:
        rounded = ps.quantize(to_numpy(event.exact), "tf32")
        np.testing.assert_array_equal(rounded, to_numpy(event.rounded))
    assert {e.phase for e in events} == {"forward", "backward", "update"}


EXACT, FAST = (ps.Policy.uniform("fp32", arithmetic=a) for a in ("exact", "fast"))
ARITHMETIC = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}


@pytest.mark.parametrize("op", ARITHMETIC)
@pytest.mark.parametrize("fmt", ["fp32", "fp16"])
@given(data=st.data())
def test_arithmetic_in_float64_is_rounded_as_if_it_were_exact(op, fmt, data):
    """Double rounding is innocuous: float64 has more than 2 * 24 + 1 bits (Figueroa 1995)."""
    a, b = (ps.exact.decode(data.draw(testing.codes(fmt)), fmt) for _ in range(2))
    assume(np.isfinite([a, b]).all())
    assume(b != 0 or op != "div")
    modes = ["nearest", "nearest_away"]
    if op in ("mul", "div") or 0 in (a, b) or 2.0**-29 < abs(a / b) < 2.0**29 or fmt == "fp16":
        modes += ["toward_zero", "up", "down", "to_odd"]
    for mode in modes:
        with ps.using(f"{fmt}:{mode}"):
            got = getattr(ps.ops, op)(a, b).item()
        want = ps.exact.round(ARITHMETIC[op](Fraction(a), Fraction(b)), fmt, mode)
        assert got == want, mode


def test_an_addend_beyond_the_reach_of_float64_is_lost_to_directed_modes():
    """The exception that `Policy` documents: the exact sum is above 1, and so should the result be."""
    with ps.using("fp32:up"):
        assert (ps.tensor(1.0) + 2.0**-60).item() == 1.0


@pytest.mark.parametrize("op", ARITHMETIC)
@pytest.mark.parametrize("fmt", ["e4m3", "e5m2", "fp16", "bf16"])
def test_fast_arithmetic_rounds_to_nearest_as_exact_arithmetic_does(op, fmt):
    """All pairs of values of the 8-bit formats; of the others, 400 spread over all their codes."""
    f = ps.format(fmt)
    bits = np.arange(256) if f.bits == 8 else np.linspace(0, 65535, 400).astype(int)
    values = ps.decode(bits.astype(np.uint8 if f.bits == 8 else np.uint16), fmt)
    pairs = values[:, None], values[None, :]
    results = []
    for arithmetic in ("exact", "fast"):
        with ps.using(ps.Policy.uniform(fmt, arithmetic=arithmetic)):
            results.append(getattr(ps.ops, op)(*pairs).numpy().astype(np.float64))
    np.testing.assert_array_equal(*results)


def test_stochastic_rounding_reads_the_words_of_its_place():
    x = np.linspace(0.1, 3, 40)
    for step, call in ((0, 0), (4, 1)):
        with ps.using("bf16:stochastic", seed=9, step=step, scope="here"):
            for _ in range(call + 1):
                got = ps.ops.neg(x).numpy()
        drawn = words(key(9, "activations/here/neg", step, call), x.shape)
        np.testing.assert_array_equal(got, ps.quantize(-x, "bf16", "stochastic", random=drawn))


def rounded_thirds(policy="bf16:stochastic", observers=(), **where):
    with ps.using(policy, observers=observers, **({"seed": 0, "step": 0} | where)):
        x = Tensor(np.full(400, 1 / 3))
        return np.stack([ps.ops.neg(x).data, ps.ops.neg(x).data])


def test_stochastic_rounding_differs_by_seed_step_scope_role_and_call_and_by_nothing_else():
    here = rounded_thirds()
    assert len(np.unique(here)) == 2
    assert (here[0] != here[1]).mean() > 0.2
    for where in ({"seed": 1}, {"step": 1}, {"scope": "a"}, {"role": "gradients"}):
        assert (rounded_thirds(**where) != here).mean() > 0.2, where
    np.testing.assert_array_equal(rounded_thirds(), here)
    np.testing.assert_array_equal(rounded_thirds(observers=[ps.Counters(), print_nothing]), here)
    fast = ps.Policy.uniform("bf16:stochastic", arithmetic="fast")
    assert (rounded_thirds(fast) != here).mean() < 0.01, "the same words; 1/3 itself differs"


def print_nothing(event):
    event.rounded.sum()


def test_a_change_of_one_op_shifts_no_other_ops_draws():
    def program(extra):
        with ps.using("bf16:stochastic", seed=0, step=0):
            x = ps.tensor(np.full(100, 1 / 3))
            with ps.scope("a"):
                for _ in range(extra):
                    ps.ops.exp(x)
            with ps.scope("b"):
                return ps.ops.exp(x).numpy()

    np.testing.assert_array_equal(program(0), program(7))


def test_a_constant_of_another_carrier_is_no_concern_but_a_wide_tensor_is():
    with ps.using("fp64"):
        wide = ps.tensor(0.1)
    with ps.using("bf16"):
        narrow = ps.tensor(0.1)
    with ps.using(FAST):
        assert (narrow * 2.0).data.dtype == np.float32
        with pytest.raises(ValueError, match=r"format fp64 does not fit float32.*'exact'"):
            wide * 2.0
    with ps.using(EXACT):
        assert (wide * 1.0).item() == np.float32(0.1)


def test_a_tensor_carried_over_brings_its_gradient_back():
    with ps.using(FAST):
        x = ps.tensor([1.5, 2.5], requires_grad=True)
    with ps.using(EXACT):
        (x * x).backward([1.0, 10.0])
    np.testing.assert_array_equal(x.grad.numpy(), [3, 50])
