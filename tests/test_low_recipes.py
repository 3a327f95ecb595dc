"""Recipes of 8 bits and below train: a small model learns under each nearly what it learns in bf16."""

import pytest

import precsim as ps
from precsim.recipes import deepseek, msamp, switchback, torchao, transformer_engine

LOW = [
    recipe.name
    for part in (torchao, transformer_engine, deepseek, msamp, switchback)
    for recipe in part.RECIPES
]

SETTING = ps.TrainConfig(
    data="reverse", layers=1, heads=2, width=32, context=16, batch=8, steps=80, lr=4e-3,
    eval_every=1000, observe="off",
)  # fmt: skip


@pytest.fixture(scope="module")
def in_bf16():
    return ps.train(SETTING.change(**ps.recipe("bf16_master").settings())).final_loss()


@pytest.mark.parametrize("name", LOW)
def test_the_loss_falls_as_in_bf16(name, in_bf16):
    run = ps.train(SETTING.change(**ps.recipe(name).settings()))
    assert in_bf16 < 0.5 < run.steps["loss"][0] / 4
    assert run.final_loss() < 1.6 * in_bf16 + 0.05
