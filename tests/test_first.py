"""The first step's gradient beside float64's: the same number as by a loop of one's own."""

import re
from pathlib import Path

import numpy as np
import pytest

import precsim as ps
from precsim import demo
from precsim.analyse.first import first_gradient, first_moment, settled
from precsim.runs.data import Batches, load

CONFIG = ps.TrainConfig(
    data="zen", layers=2, heads=2, width=16, context=16, batch=4, micro_batches=64, seed=3,
)  # fmt: skip
CORPUS = load("zen")


def by_hand(policy, scale=1.0):
    """Return all gradients in one vector, the scale and the weight taken out."""
    x, y = Batches(CORPUS, 4, 16, 3).train(0)
    with ps.using("fp64", seed=3):
        drawn = ps.GPT(CONFIG.model(CORPUS.vocabulary_size), 3).parameters
    with ps.using(policy, seed=3, step=0):
        model = ps.GPT(
            CONFIG.model(CORPUS.vocabulary_size), 3, {n: p.numpy() for n, p in drawn.items()}
        )
        (model.loss(x, y) * (scale / 64)).backward()
    parts = [model.parameters[n].grad.numpy().ravel() for n in sorted(model.parameters)]
    return np.concatenate(parts) * 64 / scale


@pytest.mark.parametrize(
    ("policy", "scale"), [("bf16", 1.0), ("fp16", 1.0), ("fp16", 1024.0), ("activations=e4m3", 1.0)]
)
def test_it_is_the_error_of_the_first_gradient(policy, scale):
    # the weighted loss is a rounded number of its own in both
    config = CONFIG.change(policy=policy, loss_scale="none" if scale == 1 else f"static:{scale}")
    found, truth = by_hand(policy, scale), by_hand("fp64")
    expected = np.linalg.norm(found - truth) / np.linalg.norm(truth)
    assert first_gradient(config, CORPUS).rho == pytest.approx(expected, rel=1e-6)
    assert expected > 1e-3


def test_delayed_scaling_is_judged_when_its_factors_have_settled():
    small = CONFIG.change(micro_batches=4096)
    config = small.change(**ps.recipe("te_delayed").settings())
    moment = first_moment(config, CORPUS)
    truth = moment.reference()

    def error(at):
        found = at.gradients()
        off = sum(((found[n] - truth[n]) ** 2).sum() for n in truth)
        return (off / sum((truth[n] ** 2).sum() for n in truth)) ** 0.5

    current = first_gradient(small.change(**ps.recipe("te_current").settings()), CORPUS).rho
    assert error(moment) > 3 * current, "factor 1: most gradients vanish"
    assert error(settled(moment)) == pytest.approx(current, rel=0.2)
    assert settled(first_moment(CONFIG, CORPUS)).delays == {}


def rows_of_the_readme():
    """Yield (recipe, share) from the table of recipes of 8 bits and below."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    table = text.split("| recipe | operands")[1].split("\n\n")[0]
    for row in table.splitlines()[2:]:
        names, _, errors, *_ = row.strip("| ").split(" | ")
        first, *others = re.findall(r"`(\w+)`", names)
        full = [first, *(first + n if n.startswith("_") else n for n in others)]
        for name, error in zip(full, errors.split(", "), strict=True):
            yield name, float(error.removesuffix("%")) / 100


@pytest.mark.parametrize(("name", "share"), list(rows_of_the_readme()))
def test_the_readme_is_right_about_gradient_errors(name, share):
    """To a seventh: the text that the demo reads is another in each version of Python."""
    config = demo.configure()
    found = first_gradient(config.change(**ps.recipe(name).settings()), load(config.data)).rho
    assert found == pytest.approx(share, rel=0.15)
