"""Delayed scaling: its state against tables made by hand from Transformer Engine's update kernel."""

import math

import by_hand
import numpy as np
import pytest

import precsim as ps
from precsim.engine.delayed import AmaxHistory, Delayed, Delays
from precsim.engine.rule import Origin
from precsim.engine.tensor import Tensor

INF, NAN = math.inf, math.nan
SINGLE = float(np.finfo(np.float32).max)


@pytest.mark.parametrize(
    ("rule", "largest", "steps"),
    [
        # (amax of a step, factor of the next), oldest first; factors are float32 quotients
        ("max@3", 448, [(2, 224), (1, 224), (0.5, 224), (0.25, 448), (0.25, 896), (7, 64)]),
        ("max@1", 448, [(2, 224), (1, 448), (8, 56)]),
        ("most_recent@3", 448, [(2, 224), (1, 448), (0.5, 896), (4, 112)]),
        ("max@3-1", 448, [(2, 112), (1, 112)]),
        ("most_recent@8-3", 57344, [(1, 7168), (2, 3584)]),
        ("max@1024", 57344, [(3, float(np.float32(57344 / 3)))]),
        # nothing but zeros in the window keeps the factor; so does what is not finite
        ("max@2", 448, [(0, 1), (7, 64), (0, 64), (0, 64), (14, 32)]),
        ("most_recent@2", 448, [(7, 64), (0, 64), (INF, 64), (NAN, 64), (3.5, 128)]),
        ("max@2", 448, [(7, 64), (INF, 64), (3.5, 64), (3.5, 128)]),  # inf is in the window twice
        ("max@2", 448, [(7, 64), (NAN, 64), (3.5, 128)]),  # a NaN does not count
        ("max@1", 448, [(1e-40, SINGLE), (0, SINGLE)]),
    ],
)
def test_the_factor_follows_from_the_window(rule, largest, steps):
    history = AmaxHistory()
    for amax, factor in steps:
        history = history.after(float(amax), float(largest), Delayed.parse(rule))
        assert history.factor == factor
        assert len(history.amaxes) <= Delayed.parse(rule).length


def test_a_layer_is_quantized_with_what_earlier_passes_saw():
    """x, w and g of four passes by hand: factor 1 first, then 448 / amax and 57344 / amax."""
    random = np.random.default_rng(4)
    policy = ps.Policy.parse(
        "rule=op=matmul,inputs=e4m3:delayed,gradient_inputs=e5m2:delayed delayed=max@2"
    )
    delays, window = Delays(), {"x": [], "w": [], "g": []}
    for growth in (1.0, 8.0, 0.01, 0.01):
        arrays = {
            "x": random.standard_normal((6, 5)) * growth,
            "w": random.standard_normal((5, 4)),
            "g": random.standard_normal((6, 4)) * 1e-4 * growth,
        }
        arrays = {n: a.astype(np.float32).astype(np.float64) for n, a in arrays.items()}
        expected = {}
        for name, values in arrays.items():
            grid = by_hand.E5M2 if name == "g" else by_hand.E4M3
            amax = max(window[name][-2:], default=None)
            factor = np.float32(1 if amax is None else grid[-1] / amax)
            codes = by_hand.nearest((values.astype(np.float32) * factor).astype(np.float64), grid)
            expected[name] = codes * float(np.float32(1) / factor)
            window[name].append(np.abs(values).max())
        found = {}

        def note(event, found=found):
            if event.kind == "matmul":
                found[event.role] = event.inputs

        with ps.using(policy, observers=[note], delays=delays, scope="layer"):
            x, w = (
                Tensor(arrays[n], ps.format("fp32"), requires_grad=True, origin=origin)
                for n, origin in (("x", Origin.INPUT), ("w", Origin.WEIGHT))
            )
            (x @ w).backward(arrays["g"])
        delays.advance(policy.delayed)
        x, w, g = expected.values()
        for role, pair in {"activations": (x, w), "gradients": (g, w.T),
                           "weight_gradients": (x.T, g)}.items():  # fmt: skip
            for got, want in zip(found[role], pair, strict=True):
                np.testing.assert_array_equal(got, want, err_msg=role)
    assert sorted(delays.histories) == ["layer/gradient", "layer/input", "layer/weight"]


def test_what_is_clipped_is_counted():
    delays, counters = Delays(), ps.Counters()
    policy = ps.Policy.parse("activations=e4m3:delayed")
    for values in ([0.0, 3.0], [3.0, 3.2, -200.0, NAN, INF]):  # 3.2 is a value beyond 448 / factor
        with ps.using(policy, delays=delays, observers=[counters]):
            ps.tensor(values)
        delays.advance(policy.delayed)
    assert [row.saturated for row in counters.rows] == [0, 2]


def test_what_grows_faster_than_its_window_saturates_and_a_nan_stays_alone():
    delays = Delays()
    policy = ps.Policy.parse("activations=e4m3:delayed")
    for values, expected in [
        ([1.0, 500.0, NAN], [1.0, 448.0, NAN]),
        ([1.0, 1000.0, -INF], [125 / 128, 500.0, -500.0]),  # factor 448 / 500: 0.896 is 0.875
    ]:
        with ps.using(policy, delays=delays):
            found = ps.tensor(values).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        delays.advance(policy.delayed)
    assert delays.histories["tensor/input"].amaxes == (500.0, INF)


def test_validation_takes_the_factors_as_they_are_and_learns_nothing():
    config = ps.TrainConfig(
        data="reverse", layers=1, heads=1, width=8, context=16, batch=4, steps=6, eval_every=2,
        observe="off",
    ).change(**ps.recipe("te_delayed").settings())  # fmt: skip
    often = ps.train(config)
    seldom = ps.train(config.change(eval_every=6))
    np.testing.assert_array_equal(often.steps["loss"], seldom.steps["loss"])


def test_it_is_written_and_read():
    for text in ("max@1024", "most_recent@16-2", "max@1-1"):
        assert str(Delayed.parse(text)) == text
    assert Delayed.parse("max") == Delayed() == Delayed("max", 1024, 0)


@pytest.mark.parametrize(
    "wrong", [{"algorithm": "mean"}, {"length": 0}, {"margin": -1}, {"margin": 64}], ids=str
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="expected max or most_recent, a length of 1 or more"):
        Delayed(**wrong)
