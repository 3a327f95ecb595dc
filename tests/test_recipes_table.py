"""The table of recipes and what two of them do differently, found by running a step of each."""

import io
import json
import re
from dataclasses import asdict

import pytest
from rich.console import Console

import precsim as ps
from precsim.recipes import table
from precsim.show import recipes as shown


def formats(name):
    row = asdict(table.row(ps.recipe(name)))
    return " ".join(str(row[c]) for c in row if c not in ("name", "about", "scaling"))


@pytest.mark.parametrize(
    ("name", "expected"),
    # weights master operands | matmuls softmax norm gelu residual loss | backward weight-grads .grad |
    # update state casts
    [
        ("fp32", "fp32 none fp32 fp32 fp32 fp32 fp32 fp32 fp32 fp32 fp32 fp32 fp32 fp32 0"),
        ("torch_amp_fp16", "fp32 none fp16 fp16 fp32 fp32 fp16 fp32 fp32 fp16 fp16 fp32 fp32 fp32 32"),
        ("torch_amp_cpu_bf16",
         "fp32 none bf16 bf16 bf16 fp32 bf16 fp32 fp32 bf16 bf16 fp32 fp32 fp32 28"),
        ("half", "fp16 none fp16 fp16 fp16 fp16 fp16 fp16 fp16 fp16 fp16 fp16 fp16 fp16 0"),
        ("apex_O1", "fp32 none fp16 fp16 fp32 fp32 fp32 fp32 fp32 fp16 fp16 fp32 fp32 fp32 36"),
        ("apex_O2", "fp16 fp32 fp16 fp16 fp16 fp16 fp16 fp16 fp32 fp16 fp16 fp32 fp32 fp32 36"),
        ("apex_O3", "fp16 none fp16 fp16 fp16 fp16 fp16 fp16 fp32 fp16 fp16 fp16 fp16 fp16 2"),
        ("torchao_fp8_rowwise",
         "bf16 fp32 e4m3:row:rceil:amax_min=1e-12 bf16 bf16 bf16 bf16 bf16 fp32 bf16 bf16 bf16 fp32 fp32 41"),
        ("switchback",
         "bf16 fp32 int8:row/int8/bf16 bf16 bf16 bf16 bf16 bf16 fp32 bf16 bf16 bf16 fp32 fp32 33"),
        ("keras_mixed_float16",
         "fp32 none fp16 fp16 fp16 fp32 fp16 fp16 fp32 fp16 fp16 fp32 fp32 fp32 36"),
    ],
)  # fmt: skip
def test_what_is_in_which_format(name, expected):
    assert formats(name) == expected


@pytest.mark.parametrize(
    ("name", "state"),
    [("bf16_state", "bf16"), ("adamw8bit", "8-bit code/fp32"), ("msamp_O1", "fp32")],
)
def test_where_the_state_of_the_optimizer_lies(name, state):
    """Small tensors of adamw8bit stay in the policy's format (`AdamW8bit.in_code`)."""
    assert table.row(ps.recipe(name)).state == state


def differences(a, b):
    return [(d.where, d.what, d.a, d.b) for d in table.diff(a, b)]


def test_cuda_and_cpu_autocast_differ_in_softmax_alone():
    assert differences("torch_amp_fp16", "torch_amp_cpu_fp16") == [
        ("forward", "softmax", "fp32", "fp16"),
        ("backward", "softmax", "fp32", "fp16"),
        ("casts in a step", "number", "32", "28"),
    ]


def test_apex_o1_is_cuda_autocast_with_gelu_in_fp32_and_a_scale_of_its_own():
    found = differences("torch_amp_fp16", "apex_O1")
    assert ("forward", "gelu", "fp16", "fp32") in found
    assert ("loss scale", "maximum", "3.4028234663852886e+38", "16777216.0") in found
    assert {where for where, *_ in found} == {
        "forward", "backward", "loss scale", "casts in a step",
    }  # fmt: skip


def test_apex_o2_and_o3_differ_in_their_masters_update_and_scale():
    found = differences("apex_O2", "apex_O3")
    assert found[:2] == [
        ("weights", "master copy", "fp32", "none"),
        ("weights", "initially rounded to", "fp16", "-"),
    ]
    assert ("loss scale", "kind", "apex from 65536", "none") in found
    assert "forward" not in {where for where, *_ in found}


def test_what_torchao_multiplies_differs_where_the_weight_gradient_is_left_in_bf16():
    row, tensor = "e4m3:row:rceil:amax_min=1e-12", "e4m3:tensor:rceil:amax_min=1e-12"
    assert differences("torchao_fp8_rowwise", "torchao_fp8_rowwise_gw_hp")[:2] == [
        ("operands", "input gradient", f"{row} x {row}", f"{row} x {tensor}"),
        ("operands", "weight gradient", f"{row} x {row}", "bf16 x bf16"),
    ]


def test_rounding_rotation_and_factors_of_operands_show():
    tensor = "e4m3:tensor:delayed"
    found = differences("te_delayed", "te_nvfp4")
    assert found[1:] == [
        ("operands", "input gradient", f"e5m2:tensor:delayed x {tensor}",
         "nvfp4:inverse:stochastic x nvfp4:16x16:inverse"),
        ("operands", "weight gradient", f"{tensor} x e5m2:tensor:delayed",
         "nvfp4:inverse x nvfp4:inverse:stochastic"),
        ("operands", "rotated before", "-", "weight gradient"),
        ("operands", "quantized", "once", "anew for each product"),
        ("operands", "factors by", "max@1024", "-"),
        ("casts in a step", "number", "33", "41"),
    ]  # fmt: skip


def test_rules_for_the_weights_of_some_layers_show():
    found = asdict(table.row(ps.recipe("torchao_int8_weights")))
    assert found["weights"] == "bf16/int8:column:bf16:full:stochastic"
    assert found["master"] == "none"


def test_entries_of_the_configuration_count_as_differences():
    assert ("update", "eps", "-", "1e-07") in differences("fp32", "keras_mixed_float16")


@pytest.mark.parametrize("name", ["fp32", "half", "apex_O2", "int8"])
def test_a_recipe_does_not_differ_from_itself(name):
    assert table.diff(name, ps.recipe(name)) == []


def test_swapping_two_recipes_swaps_the_columns():
    there = [(w, x, b, a) for w, x, a, b in differences("half", "apex_O1")]
    assert sorted(there) == sorted(differences("apex_O1", "half"))


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="unknown recipe 'torch_amp': did you mean torch_amp_"):
        table.diff("torch_amp", "fp32")


def test_the_whole_table_is_plain_data():
    found = {row.name: table.facts(row) for row in table.rows()}
    assert list(found) == list(ps.RECIPES)
    assert found["apex_O2"]["formats"]["master"] == "fp32"
    assert found["apex_O2"]["loss_scale"] == "apex"
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("one", ps.RECIPES.values(), ids=ps.RECIPES)
def test_a_recipe_is_complete_and_its_strings_are_read_again(one):
    assert ps.Policy.parse(str(one.policy)) == one.policy
    config = ps.TrainConfig().change(**one.settings())
    assert ps.Policy.parse(config.policy) == one.policy
    assert one.about.endswith(".")
    assert ps.format(one.format)
    assert [r.title for r in ps.RECIPES.values()].count(one.title) == 1
    assert one.name == next(name for name, r in ps.RECIPES.items() if r is one)


def printed(what, width=200):
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    return console.file.getvalue()


def test_the_table_in_the_terminal_shows_formats_and_keeps_how_weights_are_rounded():
    text = printed(shown.rows_table([table.row(ps.recipe("int8"))], 200))
    assert re.search(r"int8:row: .*\n +stochastic ", text)
    assert text.count("stochastic") == 1


def test_a_terminal_of_80_columns_shows_weights_operands_and_loss_scale_and_names_the_rest():
    rows = table.rows()
    heading, _, *lines = printed(shown.rows_table(rows, 80), 80).splitlines()
    assert re.findall(r"\w+ ?\w+", heading) == [
        "recipe", "weights", "master", "operands", "loss scale",
    ]  # fmt: skip
    by_name = {line.split()[0]: line.split()[1:] for line in lines if line[:1].strip()}
    for row in rows:
        weights, master, *_, last = by_name[row.name]
        assert row.weights.startswith(weights)
        assert master == row.master
        assert last == {"none": "none", "65536": "2^16", "32768": "2^15"}[row.scaling.split()[-1]]
    said = " ".join(" ".join(lines).split())
    for heading in ("matmuls", "backward", "weight gradients", "handed over", "casts", "about"):
        assert heading in said.partition("a wider terminal shows more: ")[2]
    assert "matmuls: what" not in said  # nothing is explained that is not there
    assert "shows more" not in printed(shown.rows_table(rows, 400), 400)


@pytest.mark.parametrize(("precisions", "lines"), [
    ("fp32/fp16", ["fp32/fp16"]),
    ("e4m3:1x128/e4m3:128x128", ["e4m3:1x128/", "e4m3:128x128"]),
    ("int8:row/int8/bf16", ["int8:row/int8/", "bf16"]),
    ("bf16/int8:column:stochastic", ["bf16/", "int8:column:", "stochastic"]),
    ("nvfp4/nvfp4:16x16/nvfp4:stochastic", ["nvfp4/", "nvfp4:16x16/", "nvfp4:", "stochastic"]),
])  # fmt: skip
def test_precisions_are_broken_between_words(precisions, lines):
    assert shown._lines(precisions).splitlines() == lines


def test_constants_of_loss_scales_in_the_terminal():
    """GradScaler has no largest scale but its float's; Apex stops at 2^24."""
    found = table.diff("torch_amp_fp16", "apex_O1")
    text = printed(shown.differences("torch_amp_fp16", "apex_O1", found, 80))
    assert re.search(r"loss scale +maximum +3\.4028e38 +2\^24", text)
    assert re.search(r"loss scale +at maximum +keep +clamp", text)


def test_differences_in_the_terminal():
    text = printed(shown.differences("half", "fp32", table.diff("half", "fp32"), 100))
    assert text.startswith("half: model.half()")
    assert "accumulators" in text
    assert "They do the same." in printed(shown.differences("fp16", "fp16", [], 100))
