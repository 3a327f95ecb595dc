"""The loss-scale timeline: every skip, its op, and whether a smaller scale would have helped."""

import json

import numpy as np
import pytest

import precsim as ps
from precsim.analyse.recorded import moment_at
from precsim.analyse.timeline import timeline

SMALL = {"data": "reverse", "context": 16, "width": 16, "layers": 1, "heads": 2, "batch": 4}
FP16 = "weights=fp16 activations=fp16 gradients=fp16 weight_gradients=fp16 master_weights=fp32"
WIDE = SMALL | {"width": 64, "batch": 8}
NARROW_NORM = f"{FP16} rule=op=layer_norm,role=activations,scope=blocks.0.ln1,output=e2m4"
"""The first layer norm in a format that ends at 3.875 and has inf.

Of 8192 values with mean 0 and deviation 1 some are beyond that, at every step.
"""


@pytest.fixture(scope="module")
def backward(tmp_path_factory):
    """A scale that starts far too high."""
    config = ps.TrainConfig(**SMALL, policy=FP16, loss_scale=f"dynamic:{2.0**32}:4", steps=24)
    return ps.train(config, out=tmp_path_factory.mktemp("runs") / "backward")


@pytest.fixture(scope="module")
def forward(tmp_path_factory):
    config = ps.TrainConfig(
        **WIDE, policy=NARROW_NORM, loss_scale="dynamic:4:2000", steps=6, observe="off"
    )
    run = ps.train(config, out=tmp_path_factory.mktemp("runs") / "forward")
    assert run.steps["skipped"].all(), "the planted fault is not there"
    return run


def gradients_are_finite(run, step, scale):
    gradients = moment_at(ps.open(run.path), step).at(scale=scale).gradients()
    return all(np.isfinite(g).all() for g in gradients.values())


def test_skips_are_those_of_the_records_and_a_smaller_scale_helps(backward):
    found = timeline(ps.open(backward.path))
    assert [skip.step for skip in found.skips] == list(np.flatnonzero(backward.steps["skipped"]))
    assert len(found.skips) > 10
    assert found.alarm == ""
    for skip in found.skips[::4]:
        assert skip.helps
        assert not gradients_are_finite(backward, skip.step, skip.scale)
        assert gradients_are_finite(backward, skip.step, 1.0)


def test_skips_before_the_first_clean_step_are_calibration(backward):
    found = timeline(ps.open(backward.path))
    first_clean = int(np.flatnonzero(~backward.steps["skipped"])[0])
    assert {skip.step for skip in found.skips if skip.calibration} == set(range(first_clean))


def test_headroom_says_which_steps_overflow(backward):
    """fp16 overflows from 65520, a little above its largest value, 65504."""
    found = timeline(ps.open(backward.path))
    edge = np.log2(65504 / 65520)
    overflows = [skip.step for skip in found.skips if skip.path.partition("/")[0] != "loss"]
    assert (found.headroom[overflows] <= edge).all()
    assert (found.headroom[~found.skipped] > edge).all()


def test_forward_overflow_is_told_from_backward_and_the_collapse_is_an_alarm(forward):
    """Nothing was observed here: the skipped steps are run again."""
    found = timeline(ps.open(forward.path))
    assert np.isnan(found.headroom).all()
    assert [skip.path for skip in found.skips] == ["activations/blocks.0.ln1/layer_norm"] * 6
    assert not any(skip.helps for skip in found.skips)
    assert not gradients_are_finite(forward, 0, 1.0)
    assert "below 1 at step 3" in found.alarm  # 4, 2, 1, 0.5
    assert "6 of 6 skips began in the forward pass" in found.alarm


def test_a_scale_that_was_chosen_below_1_has_not_fallen(tmp_path):
    config = ps.TrainConfig(
        data="reverse", layers=1, heads=1, width=8, context=16, batch=2, steps=1, eval_every=1,
        loss_scale="static:0.25",
    )  # fmt: skip
    alarm = timeline(ps.train(config, out=tmp_path / "run")).alarm
    assert alarm.startswith("the loss scale is 0.25 from the start")


def test_command(call, backward, forward, tmp_path):
    code, out, _ = call("scale", backward.path)
    assert code == 0
    assert "finding its scale" in out
    code, out, err = call("scale", forward.path, "--json")
    assert code == 1
    assert "below 1" in err
    assert json.loads(out)["skips"][0]["path"] == "activations/blocks.0.ln1/layer_norm"
    code, _, err = call("scale", tmp_path)
    assert (code, len(err.strip().splitlines())) == (2, 1)
