"""A step taken apart: the worst op is the one that was planted, and the error is the gradient's."""

import numpy as np
import pytest
from tiny_runs import tiny

import precsim as ps
from precsim.analyse.moment import relative_error
from precsim.lesson import draw_step, moment_of, show_step
from precsim.lesson.step import facts, headroom, take

FP16 = "activations=fp16 gradients=fp16 weight_gradients=fp16"


@pytest.fixture(scope="module")
def run():
    return ps.train(tiny(policy=FP16, observe="off"))


def test_the_moment_is_the_step_after_the_run(run):
    moment = moment_of(run)
    assert (moment.step, moment.scale) == (5, 1.0)
    assert str(moment.policy) == str(run.policy)
    longer = ps.train(tiny(policy=FP16, observe="off", steps=6, schedule="constant"))
    shorter = ps.train(tiny(policy=FP16, observe="off", schedule="constant"))
    again = moment_of(shorter)
    loss = shorter.model.loss(again.x, again.y).item()
    assert loss == pytest.approx(longer.steps["loss"][5], rel=1e-2)


def test_a_scale_that_is_too_large(run, capsys):
    step = show_step(moment_of(run, scale=2.0**40))
    worst = step.worst()[0].counts
    assert worst.overflowed
    assert worst.path == "gradients/loss.scale/mul"
    assert step.drift.nonfinite > 0
    assert headroom(step) < 0
    out = capsys.readouterr().out
    assert "gradients/loss.scale/mul" in out
    assert "this step is skipped" in out


def test_the_error_is_that_of_the_gradient(run):
    moment = moment_of(run, "bf16")
    step = take(moment)
    expected = relative_error(moment.gradients(), moment.reference())
    assert step.drift.rho == pytest.approx(expected)
    assert headroom(step) > 0
    assert len(repr(step)) < 80
    assert repr(step).startswith(f"Step(5, {len(step.ops)} ops, gradient ")


def test_room_is_that_of_the_gradients_and_not_of_the_1_that_they_start_from(run):
    """A gradient of the scaled loss is at most 2^-30 here, so 65504 is 2^45 times as large."""
    assert headroom(take(moment_of(run, scale=2.0**-30))) > 45


def test_the_figure_shows_the_worst_ops(run):
    step = take(moment_of(run, scale=2.0**-30))
    shown = facts(step, worst=4)
    figure = draw_step(step, "a step", worst=4)
    (axes,) = figure.axes
    assert [text.get_text().split()[0] for text in axes.get_yticklabels()] == shown["ops"]
    assert np.allclose(sum(np.array(part) for part in shown["shares"].values()), 1)
    assert shown["shares"]["flushed"][0] > 0.5
