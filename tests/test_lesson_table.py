"""The table of a lesson's one step: at 80 columns it has what the text beside it speaks of."""

import precsim as ps
from precsim.lesson import moment_of, show_step
from precsim.lesson.session import Session, running

SMALL = ps.TrainConfig(data="reverse", context=16, width=16, layers=1, heads=2, batch=4, steps=2)


def heading(capsys, monkeypatch, tmp_path, policy, **changes):
    monkeypatch.setenv("COLUMNS", "80")
    with running(Session("quick", tmp_path)):
        show_step(moment_of(ps.train(SMALL.change(**changes)), policy))
    return capsys.readouterr().out.partition("\u2500")[0]


def test_errors_stay_though_names_are_long_and_a_share_that_is_zero_goes(
    capsys, monkeypatch, tmp_path
):
    """In bf16 nothing is flushed, and the worst ops have the longest names (lesson 05)."""
    bf16 = "activations=bf16 gradients=bf16 weight_gradients=bf16 accumulator=bf16"
    told = heading(capsys, monkeypatch, tmp_path, bf16)
    assert "in u" in told
    assert "flushed" not in told


def test_what_is_infinite_is_not_called_nan(capsys, monkeypatch, tmp_path):
    told = heading(capsys, monkeypatch, tmp_path, "fp16", loss_scale="static:1e9")
    assert "finite" in told
    assert "NaN" not in told
