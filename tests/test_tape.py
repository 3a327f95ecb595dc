"""What the walk back does with gradients that meet: of a value used twice, and of its pieces."""

import numpy as np
import pytest

import precsim as ps
from precsim.backend import array_module, to_numpy
from precsim.nn.parameter import stored


def leaf(shape):
    """Return whole numbers as a tensor that wants a gradient; its policy must be in force."""
    values = np.arange(1, 1 + np.prod(shape)).reshape(shape)
    return ps.tensor(values, requires_grad=True, name="x")


def walk(policy, function, shape=(2, 3)):
    """Return the gradient of x, its format, and the ops that were rounded on the way back."""
    events = []
    with ps.using(policy, observers=[events.append]):
        x = leaf(shape)
        function(x).sum().backward()
    back = [event.op for event in events if event.phase == "backward"]
    return to_numpy(x.grad.data), x.grad.format.name, back


def test_gradients_of_pieces_are_put_together_and_nothing_is_added():
    def function(x):
        a, b = ps.ops.unbind(x, axis=0)
        return a * b

    found, fmt, back = walk("bf16", function)
    assert found.tolist() == [[4, 5, 6], [1, 2, 3]]
    assert (fmt, back) == ("bf16", ["cast", "mul", "mul"])


def test_zeros_stand_for_a_piece_that_nobody_used():
    found, _, back = walk("fp64", lambda x: ps.ops.unbind(x, axis=-1)[1] * 3)
    assert found.tolist() == [[0, 3, 0], [0, 3, 0]]
    assert back == ["cast", "mul"]


def test_a_zero_keeps_its_sign_which_an_addition_would_take_from_it():
    found, _, _ = walk("fp16", lambda x: ps.ops.unbind(x, axis=0)[0] * -0.0)
    assert np.signbit(found).tolist() == [[True] * 3, [False] * 3]


def test_what_is_taken_apart_twice_or_along_two_axes_or_used_besides_adds_up():
    def function(x):
        a, b = ps.ops.unbind(x, axis=0)  # each (3,)
        again, _ = ps.ops.unbind(x, axis=0)
        _, c, _ = ps.ops.unbind(x, axis=1)  # each (2,)
        return (a * 2 + b * 3 + again * 5).sum() + (c * 7).sum() + (x * 11).sum()

    found, _, back = walk("fp64", function)
    assert found.tolist() == [[18, 25, 18], [14, 21, 14]]
    assert back.count("accumulate") == 3


def test_pieces_of_several_formats_are_cast_before_they_are_put_together():
    policy = ps.Policy.parse(
        "activations=fp16 gradients=fp32 weight_gradients=fp32 rule=op=square,output=fp32 "
        "rule=op=mul,role=*gradients,output=e5m2"
    )

    def function(x):
        a, b = ps.ops.unbind(x, axis=0)
        return a * 1.125 + ps.ops.add(b, 1.0)

    found, fmt, back = walk(policy, function)
    assert fmt == "fp32"
    assert found.tolist() == [[1.0] * 3, [1.0] * 3]  # 1.125 on e5m2's grid is 1, a tie to even
    assert back == ["cast", "mul", "cast"]  # of the loss, and of what came back in e5m2


@pytest.mark.parametrize("of_weights", ["widest", "fp32"])
@pytest.mark.parametrize("of_others", ["widest", "fp32"])
def test_each_kind_of_gradient_follows_or_does_not(of_others, of_weights):
    policy = ps.Policy(
        weights="fp16", activations="fp16", gradients=of_others, weight_gradients=of_weights
    )
    counters = ps.Counters(histograms=False)
    with ps.using(policy):
        w, x = stored(np.ones((2, 2)), "w"), ps.tensor(np.ones((1, 2)), requires_grad=True)
        with ps.using(observers=[counters]):
            (ps.ops.exp(x) @ w).sum().backward()
    wanted = {"weight_gradients": of_weights, "gradients": of_others}
    for role, named in wanted.items():
        seen = [row.format for row in counters.rows if row.role == role]
        assert seen[-1] == ("fp16" if named == "widest" else "fp32")
        assert named == "widest" or set(seen) == {"fp32"}


def test_gradients_follow_their_tensor_where_the_policy_says_widest():
    policy = "activations=bf16 gradients=widest weight_gradients=widest weights=bf16"
    found, fmt, _ = walk(policy, lambda x: ps.ops.unbind(x, axis=1)[2] * (1 / 3))
    assert fmt == "bf16"
    assert found[:, 2].tolist() == [0.333984375] * 2


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_values_and_gradients_are_those_of_pytorchs_unbind(axis):
    torch = pytest.importorskip("torch")
    theirs = torch.arange(1.0, 25.0, dtype=torch.float64).reshape(2, 3, 4).requires_grad_()
    pieces = theirs.unbind(axis)
    sum((i + 1) * (piece**3).sum() for i, piece in enumerate(pieces)).backward()
    with ps.using("fp64"):
        x = leaf((2, 3, 4))
        ours = ps.ops.unbind(x, axis)
        assert [part.numpy().tolist() for part in ours] == [piece.tolist() for piece in pieces]
        total = ps.ops.mul(0.0, x).sum()
        for i, part in enumerate(ours):
            total = total + (part * part * part).sum() * float(i + 1)
        total.backward()
    np.testing.assert_allclose(x.grad.numpy(), theirs.grad.numpy(), rtol=1e-14)


def test_an_axis_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="axis 2 is out of bounds"):
        ps.ops.unbind(leaf((2, 3)), axis=2)


def test_pieces_are_views():
    x = leaf((2, 3))
    pieces = ps.ops.unbind(x, axis=1)
    xp = array_module(x.data)
    assert all(xp.shares_memory(part.data, x.data) for part in pieces)
