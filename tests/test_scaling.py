"""Loss scales: the trace of PyTorch's GradScaler, its death by overflow, and what can be written."""

import math

import numpy as np
import pytest

from precsim.nn import scaling
from precsim.nn.scaling import DynamicScale, NoScale, StaticScale


def trace(scaler, outcomes):
    scales = []
    for finite in outcomes:
        scaler = scaler.adjust(finite)
        scales.append(scaler.scale)
    return scales


def test_the_trace_is_that_of_pytorchs_gradscaler():
    """Measured with PyTorch 2.13: growth after 3 clean steps, overflow at steps 5, 9 and 10."""
    outcomes = [step not in (5, 9, 10) for step in range(12)]
    assert trace(DynamicScale(interval=3), outcomes) == [
        65536, 65536, 131072, 131072, 131072, 65536,
        65536, 65536, 131072, 65536, 32768, 32768,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "scaler",
    [
        DynamicScale(interval=2),
        DynamicScale(scale=3.0, growth=1.7, backoff=0.3, interval=1),
        DynamicScale(scale=2.0**126, interval=1),
        DynamicScale(scale=2.0**-140, interval=4),
        DynamicScale(scale=3e38, growth=1.3, interval=1),
    ],
    ids=str,
)
def test_any_trace_is_that_of_pytorchs_kernel(scaler):
    torch = pytest.importorskip("torch")
    scale, clean = torch.tensor(scaler.scale), torch.tensor(0, dtype=torch.int32)
    for finite in np.random.default_rng(0).random(400) < 0.6:
        torch._amp_update_scale_(
            scale, clean, torch.tensor(0.0 if finite else 1.0),
            scaler.growth, scaler.backoff, scaler.interval,
        )  # fmt: skip
        scaler = scaler.adjust(bool(finite))
        assert (scaler.scale, scaler.clean_steps) == (scale.item(), clean.item())


def test_the_constants_are_pytorchs():
    torch = pytest.importorskip("torch")
    theirs, ours = torch.amp.GradScaler("cpu"), DynamicScale()
    assert ours.scale == theirs.get_scale()
    assert ours.growth == theirs.get_growth_factor()
    assert ours.backoff == theirs.get_backoff_factor()
    assert ours.interval == theirs.get_growth_interval()


def test_166_overflows_in_a_row_are_the_death_of_a_scale_without_a_minimum():
    scales = [65536.0, *trace(DynamicScale(), [False] * 170)]
    powers = {16: 0, 17: -1, 143: -127, 144: -128, 165: -149}
    assert {n: math.log2(scales[n]) for n in powers} == powers
    assert scales[166:] == [0.0] * 5
    assert trace(DynamicScale(scale=0.0, interval=1), [True] * 3) == [0.0] * 3, "and no return"


def test_a_minimum_keeps_it_alive():
    assert trace(DynamicScale(minimum=1.0), [False] * 170)[-1] == 1.0
    assert trace(DynamicScale(minimum=1.0, interval=1), [False] * 17 + [True])[-1] == 2.0


def test_growth_stops_at_the_largest_power_of_two_of_float32():
    assert trace(DynamicScale(scale=2.0**126, interval=1), [True] * 3) == [2.0**127] * 3


@pytest.mark.parametrize("scaler", [NoScale(), StaticScale(256.0)])
def test_the_others_never_change_and_never_skip(scaler):
    assert scaler.adjust(True) == scaler.adjust(False) == scaler
    assert not scaler.skips
    assert DynamicScale().skips


@pytest.mark.parametrize(
    ("text", "scaler"),
    [
        ("none", NoScale()),
        ("static:1024", StaticScale(1024.0)),
        ("static:0.3", StaticScale(0.3)),
        ("dynamic", DynamicScale(65536.0, interval=2000)),
        ("dynamic:16777216", DynamicScale(2.0**24)),
        ("dynamic:1e-3:7", DynamicScale(1e-3, interval=7)),
    ],
)
def test_what_is_written_is_read_and_written_again(text, scaler):
    assert scaling.parse(text) == scaler
    assert scaling.parse(str(scaler)) == scaler
    assert scaling.parse(scaler) is scaler


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected none, static:SCALE, dynamic or dynamic:SCALE:INTERVAL"),
        ("auto", "loss scale 'auto': expected none"),
        ("none:1", "expected none"),
        ("static", "expected none"),
        ("static:1:2", "expected none"),
        ("dynamic:1:2:3", "expected none"),
        ("static:big", "loss scale 'static:big': could not convert .*'big'"),
        ("static:0", "must be a positive number; got 0"),
        ("static:-1", "must be a positive number; got -1"),
        ("static:nan", "must be a positive number; got nan"),
        ("dynamic:inf", "must be a positive number; got inf"),
        ("dynamic:0", "must be a positive number; got 0"),
        ("dynamic:1e39", "must be a positive number; got inf"),
        ("dynamic:1024:0", "interval >= 1"),
        ("dynamic:1024:2.5", "invalid literal for int"),
    ],
)
def test_what_cannot_be_read_gets_one_sentence(text, message):
    with pytest.raises(ValueError, match=message) as error:
        scaling.parse(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields", [{"growth": 0.5}, {"growth": math.nan}, {"backoff": 0.0}, {"backoff": 2.0},
               {"interval": 0}, {"scale": -1.0}, {"scale": math.nan}],
)  # fmt: skip
def test_constants_that_cannot_be_are_refused(fields):
    with pytest.raises(ValueError, match="loss scale"):
        DynamicScale(**fields)
