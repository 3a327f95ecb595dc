"""Verdicts are made from the numbers: other numbers, another sentence."""

from dataclasses import replace

import pytest

from precsim.runs.summary import Summary
from precsim.show.verdict import learned, verdict

REFERENCE = Summary(
    steps=100, loss=2.0, valid_loss=2.0, guess=4.6, flushed=0.0, lost_updates=0.0, skipped=0,
    scales=(1.0, 1.0), chance_gradients=False, chance_weights=False, trouble=None, died_at=None,
)  # fmt: skip
NAN = float("nan")


@pytest.mark.parametrize(
    ("changes", "says", "fine"),
    [
        ({}, "keeps up with the reference, a validation loss of 2.00 against 2.00: its gradients lose nothing", True),
        ({"valid_loss": 2.05}, "falls 2.5% behind, a validation loss of 2.05 against 2.00", True),
        ({"valid_loss": 4.0, "flushed": 0.7}, "hardly learns, a validation loss of 4.00 against 2.00: 70% of its gradients underflow to zero", False),
        ({"valid_loss": 9.0}, "is worse than guessing, a validation loss of 9.00 against 2.00 (guessing: 4.60)", False),
        ({"died_at": 7, "valid_loss": NAN, "loss": NAN}, "dies at step 7: its weights are no longer finite", False),
        ({"lost_updates": 0.83}, "keeps up with the reference, a validation loss of 2.00 against 2.00, and the loss does not show that 83% of its weight updates change nothing", True),
        ({"valid_loss": 1.9}, "keeps up with the reference, a validation loss of 1.90 against 2.00: its gradients lose nothing", True),
        ({"valid_loss": 0.5}, "ends far below the reference, a validation loss of 0.50 against 2.00: its gradients lose nothing", True),
        ({"flushed": 0.01}, "keeps up with the reference, a validation loss of 2.00 against 2.00: only 1.0% of its gradients underflow", True),
        ({"flushed": 1e-5}, "keeps up with the reference, a validation loss of 2.00 against 2.00: <0.1% of its gradients underflow", True),
        ({"flushed": NAN, "lost_updates": NAN}, "keeps up with the reference, a validation loss of 2.00 against 2.00", True),
        ({"flushed": 0.3, "chance_gradients": True}, "keeps up with the reference, a validation loss of 2.00 against 2.00, and the loss does not show that 30% of its gradients underflow to zero, though by chance and so right on average", True),
    ],
)  # fmt: skip
def test_the_sentence_follows_from_the_numbers(changes, says, fine):
    run = replace(REFERENCE, **changes)
    assert verdict(run, REFERENCE) == says + "."
    assert learned(run, REFERENCE) is fine


def test_skipped_steps_and_the_scale_are_told():
    run = replace(REFERENCE, skipped=3, scales=(65536.0, 32768.0))
    assert "3 steps were skipped while the loss scale moved from 65536 to 32768" in verdict(
        run, REFERENCE
    )
    run = replace(REFERENCE, skipped=1, scales=(65536.0, 65536.0))
    assert "1 step was skipped while the loss scale stayed near 65536" in verdict(run, REFERENCE)
    run = replace(REFERENCE, skipped=9, scales=(2.0**24, 2.5e7))
    assert "moved from 2^24 to 2.5e+07" in verdict(run, REFERENCE)


def test_a_run_alone_is_compared_with_guessing():
    says = verdict(replace(REFERENCE, guess=4.0), None)
    assert says.startswith("ends with a validation loss of 2.00 (guessing: 4.00)")
    assert "reference" not in says
    assert verdict(replace(REFERENCE, died_at=3), None).startswith("dies at step 3")


def test_the_reference_is_called_so_and_a_dead_one_is_not_compared_with():
    assert verdict(REFERENCE, REFERENCE).startswith(
        "is the reference, with a validation loss of 2.00"
    )
    dead = replace(REFERENCE, died_at=3, valid_loss=NAN, loss=NAN)
    assert verdict(replace(REFERENCE), dead).startswith("ends with a validation loss of 2.00")
    early = replace(REFERENCE, valid_loss=5.0)
    assert "keeps up" in verdict(replace(early), early)
    assert learned(REFERENCE, dead)
    assert not learned(dead, REFERENCE)


def test_a_reference_that_is_worse_than_guessing_is_said_to_be():
    bad = replace(REFERENCE, valid_loss=4.9, flushed=0.76)
    assert verdict(bad, bad) == (
        "is the reference, with a validation loss of 4.90, worse than guessing (4.60): "
        "76% of its gradients underflow to zero."
    )
