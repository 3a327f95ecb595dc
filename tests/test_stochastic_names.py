"""The names of stochastic rounding, in formats and policies, and what is said of wrong ones."""

import numpy as np
import pytest
from test_stochastic import EVERY

import precsim as ps
from precsim.engine.precision import Accumulator, Precision
from precsim.formats import exact
from precsim.formats.modes import Rounding, Stochastic, Variant, rounding_mode, stochastic
from precsim.formats.quantize import quantize
from precsim.formats.stochastic import prob_up


@pytest.mark.parametrize("mode", EVERY)
def test_names_and_objects_are_the_same(mode):
    found = rounding_mode(mode)
    assert str(found) == mode
    assert rounding_mode(str(found)) == found == rounding_mode(found)
    variant = stochastic(found)
    assert rounding_mode(variant) == found
    x, random = np.array([0.1, -3.3]), np.array([5, 2**32 - 5], np.uint32)
    by_object, by_name = (quantize(x, "e2m1", m, random=random) for m in (variant, mode))
    assert by_object.tolist() == by_name.tolist()
    assert quantize(x, "e2m1", mode, random=1).shape == (2,)


def test_plain_stochastic_is_the_mode_it_always_was():
    assert rounding_mode("stochastic") is rounding_mode(Stochastic()) is Rounding.STOCHASTIC
    assert stochastic(Rounding.STOCHASTIC) == Stochastic(Variant.EXACT)
    assert stochastic(Rounding.NEAREST) is None


@pytest.mark.parametrize("mode", EVERY)
def test_policy_strings_round_trip(mode):
    precision = Precision.parse(f"bf16:{mode}:saturate")
    assert str(precision) == f"bf16:{mode}:saturate"
    assert Precision.parse(str(precision)) == precision
    assert Precision.parse(str(Precision("int8:row", stochastic(rounding_mode(mode))))) == (
        Precision.parse(f"int8:row:{mode}")
    )
    accumulator = Accumulator.parse(f"e8m13:{mode}/4>fp32@128")
    assert str(accumulator) == f"e8m13:{mode}/4>fp32@128"
    assert Accumulator.parse(str(accumulator)) == accumulator
    policy = ps.Policy(activations=precision, accumulator=accumulator)
    assert ps.Policy.parse(str(policy)) == policy


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Stochastic("a"), "variant a: expected 1 to 32 random bits; got None"),
        (lambda: Stochastic("c", 33), "variant c: expected 1 to 32 random bits; got 33"),
        (lambda: Stochastic("b", 2.5), "variant b: expected 1 to 32 random bits; got 2.5"),
        (lambda: Stochastic("exact", 8), "variant exact has no number of bits to choose; got 8"),
        (lambda: Stochastic("d", 8), "unknown variant 'd': expected one of exact, a, b, c, equal"),
        (lambda: rounding_mode("stochastic_a"), r"stochastic_a<n>, _b<n>, _c<n> \(n bits\)"),
        (lambda: rounding_mode("stochastic_c99"), "expected 1 to 32 random bits; got 99"),
        (lambda: rounding_mode("random"), "unknown rounding 'random': expected one of nearest"),
        (lambda: quantize(1.0, "fp16", "stochastic_a8"), "stochastic rounding needs `random`"),
        (lambda: exact.round(1.0, "fp16", "stochastic_a8"), "a number in \\[0, 1\\); got None"),
        (lambda: prob_up(1.0, "fp16", "up"), "rounding up leaves nothing to chance"),
        (lambda: prob_up(1.0, "int8"), "scaled format"),
        (lambda: Precision.parse("bf16:stochastic_a"), "unknown word 'stochastic_a'"),
    ],
)
def test_errors_teach(call, message):
    with pytest.raises(ValueError, match=message):
        call()
