"""The loss scalers of the field, each against its own rule, spelled out here as the source counts.

What happens at the ends of the range (floor, ceiling, zero) has a test by name; in between, a
thousand random steps must give the same scales.  PyTorch's own kernel is asked in `test_scaling`.
"""

from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest

import precsim as ps
from precsim.nn import scaling
from precsim.nn.scaling import PRESETS, LossScaleError

SINGLE = np.float32
LARGEST = float(np.finfo(SINGLE).max)


def follow(scaler, outcomes):
    """Return the scale after each step; None from the step on at which the scaler gives up."""
    scales = []
    for finite in outcomes:
        try:
            scaler = scaler.adjust(bool(finite))
        except LossScaleError:
            return scales + [None] * (len(outcomes) - len(scales))
        scales.append(scaler.scale)
    return scales


def apex(scale, interval, outcomes):
    """Count unskipped steps; never above 2^24; a Python float."""
    unskipped = 0
    for finite in outcomes:
        scale, unskipped = (scale, unskipped + 1) if finite else (scale / 2, 0)
        if unskipped == interval:
            scale, unskipped = min(2.0**24, scale * 2), 0
        yield scale


def keras(scale, interval, outcomes):
    """Compare the counter with interval - 1 before counting; a float32 number without limits."""
    counter = 0
    for finite in outcomes:
        if not finite:
            scale, counter = float(SINGLE(scale) / SINGLE(2)), 0
        elif counter == interval - 1:
            with np.errstate(over="ignore"):
                scale, counter = float(SINGLE(scale) * SINGLE(2)), 0
        else:
            counter += 1
        yield scale


def flax(scale, interval, outcomes):
    """Compare the counter with the interval itself, so one more clean step; clamp at both ends."""
    counter, interval = 0, interval - 1
    for finite in outcomes:
        grow = counter == interval
        if not finite:
            scale = max(scale * 0.5, 2.0**-126)
        elif grow:
            scale = min(scale * 2, LARGEST)
        counter = 0 if grow or not finite else counter + 1
        yield scale


def jmp(scale, interval, outcomes):
    """A counter modulo the period; growth only to what is finite; never below 1."""
    counter = 0
    for finite in outcomes:
        if finite and counter == interval - 1:
            scale = scale * 2 if scale * 2 <= LARGEST else scale
        elif not finite:
            scale = max(1.0, scale / 2)
        counter = (counter + 1) % interval * finite
        yield scale


def deepspeed(scale, interval, outcomes):
    """Steps since the last overflow less one, modulo the window; hysteresis; an error at 1."""
    last, hysteresis = -1, 2
    for step, finite in enumerate(outcomes):
        if not finite:
            if hysteresis > 1:
                hysteresis -= 1
            elif scale == 1:
                break
            else:
                scale = max(scale / 2, 1)
            last = step
        elif (stable := step - last - 1) > 0 and stable % interval == 0:
            scale, hysteresis = scale * 2, 2
        yield scale


def fairseq(scale, interval, outcomes):
    """Steps since the last overflow, modulo the window; an error where the scale would be 1e-4."""
    last = -1
    for step, finite in enumerate(outcomes):
        if not finite:
            last = step
            if scale / 2 <= 1e-4:
                break
            scale /= 2
        elif (step - last) % interval == 0:
            scale *= 2
        yield scale


RULES = {f.__name__: f for f in (apex, keras, flax, jmp, deepspeed, fairseq)}
OUTCOMES = {
    "even": np.random.default_rng(0).random(1000) < 0.75,
    "mostly clean": np.random.default_rng(1).random(1000) < 0.97,
    "all clean": np.ones(1000, bool),
    "all overflow": np.zeros(1200, bool),
}


@pytest.mark.parametrize("outcomes", OUTCOMES.values(), ids=OUTCOMES)
@pytest.mark.parametrize("interval", [2, 3, 7])
@pytest.mark.parametrize("name", RULES)
def test_a_preset_counts_as_its_source_does(name, interval, outcomes):
    preset = replace(PRESETS[name], interval=interval)
    want = list(RULES[name](preset.scale, interval, outcomes))
    want += [None] * (len(outcomes) - len(want))
    assert follow(preset, outcomes) == want


@pytest.mark.parametrize(
    ("name", "scale", "clean_steps"),
    [("torch", 2**16, 2000), ("apex", 2**16, 2000), ("keras", 2**15, 2000), ("flax", 2**16, 2001),
     ("jmp", 2**15, 2000), ("deepspeed", 2**16, 1001), ("fairseq", 2**15, 2000)],
)  # fmt: skip
def test_the_first_growth_is_at_this_clean_step(name, scale, clean_steps):
    assert PRESETS[name].scale == scale
    scales = follow(PRESETS[name], [True] * (clean_steps + 1))
    assert scales.index(2 * scale) == clean_steps - 1


def test_deepspeeds_second_growth_needs_one_step_less():
    scales = follow(PRESETS["deepspeed"], [True] * 2001)
    assert [i + 1 for i in range(1, 2001) if scales[i] != scales[i - 1]] == [1001, 2001]


def test_deepspeed_passes_over_one_overflow_until_the_scale_grows():
    scaler = replace(PRESETS["deepspeed"], interval=2)
    clean, over = True, False
    outcomes = [over, over, over, clean, clean, clean, over, over]
    assert follow(scaler, outcomes) == [65536, 32768, 16384, 16384, 16384, 32768, 32768, 16384]
    patient = replace(scaler, refill="clean")
    assert follow(patient, [over, clean, over, clean, over, over])[-1] == 32768


@pytest.mark.parametrize(
    ("name", "steps", "end"),
    [("torch", 166, 0.0), ("keras", 165, 0.0), ("flax", 142, 2.0**-126), ("jmp", 15, 1.0),
     ("apex", 1091, 0.0), ("deepspeed", 17, 1.0)],
)  # fmt: skip
def test_where_overflow_after_overflow_ends(name, steps, end):
    scales = follow(PRESETS[name], [False] * steps)
    assert scales[-1] == end
    assert scales[-2] != end


@pytest.mark.parametrize(
    ("name", "limit"),
    [("torch", 2.0**127), ("apex", 2.0**24), ("keras", inf), ("flax", LARGEST), ("jmp", 2.0**127)],
)
def test_where_growth_ends(name, limit):
    scales = follow(replace(PRESETS[name], interval=1), [True] * 130)
    assert scales[-3:] == [limit] * 3


@pytest.mark.parametrize("name", ["deepspeed", "fairseq"])
def test_python_floats_grow_beyond_float32(name):
    assert follow(replace(PRESETS[name], interval=1), [True] * 130)[-1] > LARGEST


def test_a_scaler_that_gives_up_says_what_to_look_for():
    scaler = replace(PRESETS["deepspeed"], scale=1.0, tolerated=1)
    with pytest.raises(LossScaleError, match="look for the first op that is not finite"):
        scaler.adjust(False)
    scaler = replace(PRESETS["fairseq"], scale=1.5e-4)
    with pytest.raises(LossScaleError, match=r"come down to 7\.5e-05, and 0\.0001 is"):
        scaler.adjust(False)
    with pytest.raises(LossScaleError, match="1 / 0"):
        _ = replace(PRESETS["apex"], scale=0.0).inverse


GRADIENTS = {
    "fine": [1.0, -2.0],
    "infinite": [inf, 1.0],
    "nan": [nan, 1.0],
    "sum overflows": [3e38, 3e38],
    "sum cancels": [3e38, -3e38],
    "norm overflows": [3e25, 0.0],
}


@pytest.mark.parametrize(
    ("check", "seen"),
    [
        ("elements", {"infinite", "nan"}),
        ("sum", {"infinite", "nan", "sum overflows"}),
        ("norm", {"infinite", "nan", "sum overflows", "sum cancels", "norm overflows"}),
    ],
)
def test_what_each_check_takes_for_overflow(check, seen):
    scaler = ps.scaling.DynamicScale(scale=1.0, check=check)
    for name, values in GRADIENTS.items():
        _, finite = scaling.unscale(scaler, {"w": ps.tensor(values)})
        assert finite == (name not in seen), name


@pytest.mark.parametrize("text", ["none", "static:1024", *PRESETS])
def test_unscaling_divides_by_the_scale_and_multiplies_by_what_it_is_told(text):
    scaler = scaling.parse(text)
    scaled = {"w": ps.tensor([3.0 * scaler.scale, -scaler.scale])}
    gradients, finite = scaling.unscale(scaler, scaled, 8.0)
    assert gradients["w"].numpy().tolist() == [24.0, -8.0]
    assert finite


@pytest.mark.parametrize(
    ("name", "power", "finite", "unscaled"),
    [
        ("torch", -127, True, 2.0**127),
        ("torch", -128, True, inf),  # not seen, not skipped: the weights are destroyed
        ("apex", -128, True, inf),
        ("flax", -126, True, 2.0**126),
        ("keras", -128, True, inf),  # 1 / 2^-128 is beyond float32, divided or multiplied
        ("keras", 127, True, 2.0**-127),
        ("jmp", 0, True, 1.0),
    ],
)
def test_what_unscaling_a_gradient_of_1_gives(name, power, finite, unscaled):
    scaler = replace(PRESETS[name], scale=2.0**power, minimum=0.0)
    gradients, seen_finite = scaling.unscale(scaler, {"w": ps.tensor([1.0])})
    assert gradients["w"].numpy() == [unscaled]
    assert seen_finite == finite


def test_dividing_saves_gradients_that_an_infinite_inverse_destroys():
    tiny = {"w": ps.tensor([2.0**-140, 0.0])}
    multiplied, _ = scaling.unscale(replace(PRESETS["torch"], scale=2.0**-130), tiny)
    divided, _ = scaling.unscale(replace(PRESETS["keras"], scale=2.0**-130), tiny)
    np.testing.assert_array_equal(multiplied["w"].numpy(), [inf, nan])
    np.testing.assert_array_equal(divided["w"].numpy(), [2.0**-10, 0.0])


def test_looking_after_unscaling_sees_what_looking_before_does_not():
    for when, want in (("scaled", True), ("unscaled", False)):
        scaler = ps.scaling.DynamicScale(scale=2.0**-130, when=when)
        _, finite = scaling.unscale(scaler, {"w": ps.tensor([1.0])})
        assert finite is want


def test_unscaling_is_an_op_of_the_update_and_a_scale_of_1_is_none():
    seen = []
    with ps.using(observers=[seen.append]):
        for name, scale in (("torch", 2.0), ("keras", 2.0), ("torch", 1.0)):
            scaling.unscale(replace(PRESETS[name], scale=scale), {"w": ps.tensor([1.0])})
    ops = [(e.op, e.phase, e.scope) for e in seen if e.op != "cast"]
    assert ops == [("mul", "update", "unscale.w"), ("div", "update", "unscale.w")]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_named_written_and_changed(name):
    preset = scaling.parse(name)
    assert preset == PRESETS[name]
    assert scaling.parse(str(preset)) == preset
    changed = scaling.parse(f"{name}:1024:50:minimum=0.5:hysteresis=3")
    want = replace(preset, scale=1024.0, interval=50, minimum=0.5, hysteresis=3)
    assert changed == want
    assert scaling.parse(str(changed)) == changed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("torch:floor=1", "unknown field 'floor': expected one of scale"),
        ("torch:clean_steps=1", "unknown field 'clean_steps'"),
        ("torch:check=all", "check of a loss scale: expected one of .'elements', 'sum', 'norm'"),
        ("torch:minimum=-1", "expected 0 <= minimum <= maximum; got -1"),
        ("torch:hysteresis=0", "hysteresis >= 1"),
        ("torch:hysteresis=two", "invalid literal for int"),
        ("adam", "torch, apex, keras, flax, jmp, deepspeed, fairseq may stand in dynamic's place"),
    ],
)
def test_what_cannot_be_read_says_what_can(text, message):
    with pytest.raises(ValueError, match=message):
        scaling.parse(text)


def test_a_run_whose_scaler_gives_up_stops_and_says_so():
    config = ps.TrainConfig(
        data="reverse", policy="fp16", loss_scale="fairseq:65536:minimum=40000", steps=4,
        layers=1, heads=1, width=8, context=16, batch=2,
    )  # fmt: skip
    run = ps.train(config)
    assert run.died_at == 0, "65536 is beyond fp16's largest number"
    assert "loss scale at step 0: the loss scale would come down to 32768" in str(run.trouble)
