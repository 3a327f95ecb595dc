"""What a step would cost: products and bytes counted by hand and by PyTorch, and what the table makes of them."""

import json
import math

import numpy as np
import pytest

import precsim as ps
from precsim.analyse import prices as pricing
from precsim.analyse.cost import GROUPS
from precsim.analyse.prices import read_prices
from precsim.analyse.work import Work, run_along
from precsim.engine import ops
from precsim.formats.registry import format
from precsim.runs.config import ConfigError
from precsim.runs.data import load
from precsim.show import cost_plot

CONFIG = ps.TrainConfig(
    data="reverse", layers=2, heads=2, width=16, context=16, batch=4, policy="fp32"
)
TOKENS = CONFIG.batch * CONFIG.context
VOCABULARY = load(CONFIG.data).vocabulary_size
FORWARD = CONFIG.layers * (
    12 * CONFIG.width**2 * TOKENS  # qkv 3, proj 1, fc1 4, fc2 4
    + 2 * TOKENS * CONFIG.context * CONFIG.width  # scores, and what they weigh
) + TOKENS * CONFIG.width * VOCABULARY  # fmt: skip


@pytest.fixture(scope="module")
def costs():
    names = ("fp32", "bf16_master", "te_mxfp8", "switchback")
    return {name: ps.cost(name, CONFIG) for name in names}


def worked(run, policy):
    """Count what ops under a policy do."""
    work = Work("forward", "all")
    with ps.using(policy, observers=[work.add]):
        run()
    return work


def test_products_of_a_step_by_hand(costs):
    """Backward passes have two products for each of the forward pass: by inputs, and by weights."""
    for cost in costs.values():
        assert cost.macs.total() == 3 * FORWARD
        by_phase = {name: line.macs for name, line in cost.by("phase").items()}
        assert by_phase == {"forward": FORWARD, "backward": 2 * FORWARD, "update": 0}
    assert set(costs["te_mxfp8"].macs) == {("e4m3", "e4m3"), ("bf16", "bf16")}
    blocks = 3 * CONFIG.layers * 12 * CONFIG.width**2 * TOKENS
    assert costs["te_mxfp8"].macs["e4m3", "e4m3"] == blocks
    assert costs["switchback"].macs["int8", "int8"] == blocks * 2 // 3


def test_products_of_a_step_as_pytorch_counts_them():
    torch = pytest.importorskip("torch")
    flops = pytest.importorskip("torch.utils.flop_counter")
    d, t, v = CONFIG.width, CONFIG.context, VOCABULARY
    weights = [
        torch.randn(*s, requires_grad=True) for s in ((d, 3 * d), (d, d), (d, 4 * d), (4 * d, d))
    ]
    head, x = torch.randn(d, v, requires_grad=True), torch.randn(TOKENS, d, requires_grad=True)
    with flops.FlopCounterMode(display=False) as counter:
        h = x
        for _ in range(CONFIG.layers):
            qkv, proj, up, down = weights
            shape = CONFIG.batch, t, 3, CONFIG.heads, d // CONFIG.heads
            q, k, w = (h @ qkv).reshape(shape).permute(2, 0, 3, 1, 4)
            mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ w
            h = h + mixed.transpose(1, 2).reshape(TOKENS, d) @ proj
            h = h + (h @ up).tanh() @ down
        (h @ head).sum().backward()
    assert counter.get_total_flops() == 2 * 3 * FORWARD


def test_bytes_of_an_op_by_hand():
    """A product of 2 x 64 by 64 x 3, in halves; and with operands of one byte, a scale for 32."""
    x, w = np.ones((2, 64), np.float32), np.ones((64, 3), np.float32)

    def product():
        ops.matmul(ps.tensor(x), ps.tensor(w))

    halves = worked(product, "bf16")
    assert halves.macs == {("bf16", "bf16"): 2 * 64 * 3}
    values = (
        x.size + w.size
    )  # constants, which are nowhere to be read from, cast and then multiplied
    assert halves.read == {"bf16": 2 * values}
    assert halves.written == {"bf16": 2 * values + 2 * 6}
    assert halves.operand_bits == 16 * 2 * 64 * 3
    scaled = worked(product, "rule=op=matmul,inputs=mxfp8_e4m3")
    assert scaled.macs == {("e4m3", "e4m3"): 2 * 64 * 3}
    assert scaled.read["e4m3"] == x.size + 2 * 2 + w.size + 2 * 3  # and two scales a row, or column
    assert scaled.operand_bits / scaled.macs.total() == 8 + 8 / 32


N, K = 2 * 3, 64  # results of the product below, and products that each is the sum of
MACS = N * K


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("fp16", {"fp16 x": MACS, "fp32 +": MACS}),
        ("fp64", {"fp64 x": MACS, "fp64 +": MACS}),
        (ps.Policy(accumulator="fp16"), {"fp32 x": MACS, "fp16 +": MACS}),
        # Two blocks: each is multiplied with its scales and added to the total.
        ("rule=op=matmul,inputs=mxfp8_e4m3",
         {"e4m3 x": MACS, "fp32 +": MACS + 2 * N, "fp32 x": 2 * N}),
        ("rule=op=matmul,inputs=int8:tensor", {"int8 x": MACS, "int32 +": MACS, "fp32 x": N}),
        # 16 products, then the register is emptied into another: 4 times.
        ("rule=op=matmul,inputs=e4m3:tensor,accumulator=e8m13/16>fp32@16",
         {"e4m3 x": MACS, "e8m13 +": MACS, "fp32 +": 4 * N, "fp32 x": N}),
    ],
)  # fmt: skip
def test_operations_of_a_product_by_hand(policy, expected):
    x, w = np.ones((2, K), np.float32), np.ones((K, 3), np.float32)
    work = worked(lambda: ops.matmul(ps.tensor(x), ps.tensor(w)), policy)
    assert of_products(work) == expected
    assert work.alone == 0


def of_products(work):
    """Return the operations of matmuls: "fp32 +" -> times."""
    return {
        f"{a.at[0]} {'x' if a.does == 'multiply' else '+'}": times
        for a, times in work.arithmetic.items() if len(a.of) == 2
    }  # fmt: skip


def test_where_each_product_has_a_scale_none_can_be_added_before():
    """A scale for each row of the right operand changes with every step along the sum."""
    x, w = np.ones((2, K), np.float32), np.ones((K, 3), np.float32)

    def product():
        left, right = (ops.cast(ps.tensor(a), to="int8:row") for a in (x, w))
        ops.matmul(left, right)

    work = worked(product, "fp32")
    assert work.alone == MACS
    assert of_products(work) == {"int8 x": MACS, "fp32 x": MACS, "fp32 +": MACS}


def test_a_bias_is_one_addition_a_result_and_all_else_one_operation_a_value():
    x, w, b = (ps.tensor(np.ones(s, np.float32)) for s in ((2, K), (K, 3), (3,)))
    with ps.using("bf16"):
        x, w, b = (ops.cast(a, to="bf16") for a in (x, w, b))
    assert of_products(worked(lambda: ops.linear(x, w, b), "bf16")) == {
        "bf16 x": MACS, "fp32 +": MACS + N,
    }  # fmt: skip
    total = worked(x.sum, "bf16")
    assert list(total.arithmetic.values()) == [x.size]
    assert (total.read["bf16"], total.written["bf16"]) == (2 * x.size, 2)


@pytest.mark.parametrize("name", list(ps.RECIPES))
def test_every_recipe_has_a_cost(name):
    found = ps.cost(name, CONFIG.change(layers=1, batch=1))
    assert 0 < found.arithmetic < math.inf
    assert 4 < found.effective_bits <= 32
    assert found.by("phase")["update"].moved  # no loss scale has skipped it


@pytest.mark.parametrize(
    ("name", "along_rows", "along_columns"),
    [("bf16", 256, 256), ("int8:tensor", 256, 256), ("mxfp8_e4m3", 32, 1), ("int8:row", 256, 1),
     ("int8:column", 1, 256), ("e4m3:128x128", 128, 128), ("e4m3:1x128", 128, 1)],
)  # fmt: skip
def test_how_many_products_share_their_scales(name, along_rows, along_columns):
    assert run_along(format(name), -1, 256) == along_rows
    assert run_along(format(name), -2, 256) == along_columns


def test_parts_add_up_to_the_whole(costs):
    for cost in costs.values():
        for group in GROUPS:
            lines = cost.by(group).values()
            assert sum(line.macs for line in lines) == cost.macs.total()
            assert sum(line.moved for line in lines) == cost.moved
            assert math.isclose(sum(line.arithmetic for line in lines), cost.arithmetic)
    with pytest.raises(ValueError, match="op, format, phase; got 'layer'"):
        costs["fp32"].by("layer")


def test_narrower_formats_cost_less_where_the_table_says_so(costs):
    fp32, bf16 = costs["fp32"], costs["bf16_master"]
    assert fp32.effective_bits == 32
    assert bf16.effective_bits == 16
    assert 8 < costs["te_mxfp8"].effective_bits < 16
    assert fp32.estimated == {}
    assert bf16.estimated == {"bf16": "fp16"}
    assert bf16.arithmetic < fp32.arithmetic / 2
    assert "model, not measurement" in repr(bf16)
    assert "estimated: bf16" in repr(bf16)


def test_prices_are_horowitzs_and_the_others_by_the_rule():
    prices = read_prices()
    listed = {name: (prices.of(name).multiply, prices.of(name).add) for name in prices.formats}
    assert listed == {
        "fp32": (3.7, 0.9),
        "fp16": (1.1, 0.4),
        "int32": (3.1, 0.1),
        "int8": (0.2, 0.03),
    }
    assert prices.traffic(8, "sram_8k") == 10
    bf16 = prices.of("bf16")  # 8 bits of significand beside fp16's 11
    assert bf16.estimated
    assert math.isclose(bf16.multiply, 1.1 * (8 / 11) ** 2)
    assert math.isclose(bf16.add, 0.4 * 8 / 11)
    assert math.isclose(prices.multiply(("fp32", "fp16")), math.sqrt(3.7 * 1.1))
    with pytest.raises(ValueError, match="no memory 'tape'"):
        prices.traffic(1, "tape")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected name, source, formats, memory"),
        ("name = [", "not valid TOML"),
        ('name="a"\nsource="b"\n[formats]\n[memory]\ndram=1', r"\[formats\] must be a table"),
        ('name="a"\nsource="b"\n[formats.fp33]\nmultiply=1\nadd=1\n[memory]\ndram=1', "fp33"),
        ('name="a"\nsource="b"\n[formats.fp32]\nmultiply=1\n[memory]\ndram=1', "expected multiply, add"),
        ('name="a"\nsource="b"\n[formats.fp32]\nmultiply=-1\nadd=1\n[memory]\ndram=1', "from 0 on"),
        ('name="a"\nsource="b"\n[formats.fp32]\nmultiply=1\nadd=true\n[memory]\ndram=1', "got True"),
    ],
)  # fmt: skip
def test_a_malformed_table_is_one_sentence(text, said, tmp_path, call):
    path = tmp_path / "prices.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        read_prices(path)
    code, out, err = call("cost", "--table", path)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1


def test_the_command_prints_a_table_json_and_a_figure_with_its_data(narrow, call, tmp_path):
    sizes = [
        f"--set={name}={getattr(CONFIG, name)}" for name in ("data", "width", "context", "batch")
    ]
    recipes = "--recipe=fp32,switchback"
    code, out, err = narrow("cost", recipes, *sizes, "-f", tmp_path / "cost.svg")
    assert code == 0
    assert "A model, not a measurement." in out
    assert "cost.json" in err
    told = json.loads(call("cost", recipes, *sizes, "--by", "phase", "--json")[1])
    assert list(told) == ["fp32", "switchback"]
    assert told["fp32"]["of_fp32"] == {"arithmetic": 1.0, "moved": 1.0}
    assert sum(part["macs"] for part in told["fp32"]["by_phase"].values()) == 3 * FORWARD
    data = json.loads((tmp_path / "cost.json").read_text(encoding="utf-8"))["data"]
    for row in data["rows"]:
        facts = told[row["recipe"]]
        assert math.isclose(sum(row["arithmetic"].values()), facts["arithmetic_pj"])
        assert math.isclose(sum(row["traffic"].values()), facts["traffic_pj"]["sram_1m"])
    axes = cost_plot.redraw(tmp_path / "cost.json").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["fp32", "switchback"]
    assert "not measurement" in axes.get_title(loc="left")


def test_the_table_can_be_printed_edited_and_used(call, tmp_path):
    code, out, _ = call("cost", "--print-table")
    assert code == 0
    path = tmp_path / "mine.toml"
    path.write_text(out.replace("multiply = 3.7", "multiply = 7.4"), encoding="utf-8")
    assert read_prices(path).of("fp32").multiply == 7.4
    assert pricing.FILE.read_text(encoding="utf-8").strip() == out.strip()


def test_a_table_that_lacks_a_kind_of_format_is_one_sentence(call, tmp_path):
    path = tmp_path / "floats.toml"
    start, _, rest = pricing.FILE.read_text(encoding="utf-8").partition("[formats.int32]")
    path.write_text(start + "[memory]" + rest.partition("[memory]")[2], encoding="utf-8")
    sizes = ("--set", "data=reverse", "--set", "context=16", "--table", path)
    for more in ((), ("--json",), ("--by", "op"), ("-f", tmp_path / "cost.png")):
        code, out, err = call("cost", "--recipe", "switchback", *sizes, *more)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "lists no integer format" in err
    assert call("cost", "--recipe", "bf16_master", *sizes)[0] == 0


def test_prices_of_nothing_divide_by_nothing(call, tmp_path):
    path = tmp_path / "free.toml"
    free = 'name="free"\nsource="us"\n[formats.fp32]\nmultiply=0\nadd=0\n[memory]\nsram_1m=0\n'
    path.write_text(free, encoding="utf-8")
    words = ("cost", "--recipe=bf16,", "--set=data=reverse", "--set=context=16", "--table", path)
    assert call(*words, "-f", tmp_path / "free.png")[0] == 0
    assert json.loads(call(*words, "--json")[1])["bf16"]["of_fp32"]["arithmetic"] == "nan"


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--recipe", "bf17"), "bf16"), (("--memory", "tape"), "no memory 'tape'"), (("--by", "layer"), "layer"),
     (("--set", "width=3"), "width"), (("nothing.toml",), "nothing.toml")],
)  # fmt: skip
def test_wrong_words_are_one_sentence(words, said, call):
    code, out, err = call("cost", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
