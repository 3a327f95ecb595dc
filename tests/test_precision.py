"""How a value enters a format, and the register of a sum, as they are written."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import precsim as ps
from precsim.engine.precision import Accumulator, Precision, widest
from precsim.formats.modes import Overflow, Rounding
from precsim.formats.registry import ALIASES, FORMATS

PLAIN = st.sampled_from([n for n, f in FORMATS.items() if isinstance(f, ps.Format)])
SPELLED = st.builds("e{}m{}".format, st.integers(2, 10), st.integers(1, 50))
OTHERS = [name for name, known in ALIASES.items() if isinstance(FORMATS[known], ps.Format)]
NAMES = PLAIN | SPELLED | st.sampled_from(["fp16_ftz", "FP16", *OTHERS])
ELEMENTS = PLAIN.filter(lambda name: name not in ("fp64", "e8m0"))
BLOCKS = ["tensor", "row", "column", "1x32:e8m0", "128x1", "16x16:e4m3+fp32", "1x8@0:rceil"]
SHARED = st.builds("{}:{}".format, ELEMENTS, st.sampled_from(BLOCKS))
SCALED = [name for name, known in FORMATS.items() if not isinstance(known, ps.Format)]
CHANCE = st.sampled_from(["stochastic_a3", "stochastic_c11", "stochastic_equal"])
MODES = st.sampled_from(Rounding) | CHANCE
PRECISIONS = st.builds(
    Precision,
    NAMES | SHARED | st.sampled_from([*SCALED, "int4:row:full:affine", "mxfp8", "widest"]),
    MODES,
    st.none() | st.sampled_from(Overflow),
)


@st.composite
def accumulators(draw):
    every, chunks = draw(st.integers(1, 64)), draw(st.integers(0, 64))
    outer = draw(NAMES) if chunks else "fp32"
    return Accumulator(draw(NAMES), draw(MODES), every, outer, every * chunks)


@given(PRECISIONS)
def test_a_precision_is_read_as_it_is_written(precision):
    assert Precision.parse(str(precision)) == precision
    assert Precision.parse(precision) is precision


@given(accumulators())
def test_an_accumulator_is_read_as_it_is_written(accumulator):
    assert Accumulator.parse(str(accumulator)) == accumulator
    assert Accumulator.parse(accumulator) is accumulator


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("fp16", ("fp16", "nearest", None)),
        (" half ", ("fp16", "nearest", None)),
        ("bf16:stochastic", ("bf16", "stochastic", None)),
        ("e5m2:saturate", ("e5m2", "nearest", "saturate")),
        ("int8:row:stochastic", ("int8:row", "stochastic", None)),
        ("e4m3:saturate:up:column", ("e4m3:column", "up", "saturate")),
        ("int8:tensor", ("int8", "nearest", None)),
        ("mxfp4:stochastic:rceil", ("mxfp4:rceil", "stochastic", None)),
        ("e2m1:1x16:e4m3+fp32:up:scale_min=0", ("nvfp4", "up", None)),
        ("widest", ("widest", "nearest", None)),
    ],
)
def test_words_after_a_format_come_in_any_order(text, fields):
    precision = Precision.parse(text)
    assert (precision.format, precision.rounding, precision.overflow) == fields


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("fp16", ("fp16", "nearest", 1, "fp32", 0)),
        ("bf16:toward_zero", ("bf16", "toward_zero", 1, "fp32", 0)),
        ("half/4", ("fp16", "nearest", 4, "fp32", 0)),
        ("e8m13:toward_zero/4>fp32@128", ("e8m13", "toward_zero", 4, "fp32", 128)),
        (" FP16>bfloat16@2 ", ("fp16", "nearest", 1, "bf16", 2)),
    ],
)
def test_the_grammar_of_accumulators(text, fields):
    unit = Accumulator.parse(text)
    assert (unit.format, unit.rounding, unit.every, unit.outer, unit.chunk) == fields


OWN = ps.Format("e4m3", 4, 3)
"""The format that the registered one of this name is not: its largest value is 240."""


def test_a_format_stands_for_its_name():
    for name in ("e4m3", "int8:row", "e5m7"):
        assert Precision.parse(ps.format(name)) == Precision.parse(name)
    assert ps.Policy(activations=ps.format("e5m2")) == ps.Policy(activations="e5m2")
    assert Accumulator(ps.format("fp16")) == Accumulator("fp16")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Precision.parse("fp61"), "unknown format 'fp61': did you mean .*fp16"),
        (lambda: Precision("fp61"), "unknown format 'fp61'"),
        (lambda: Precision.parse("fp16:nearst"), "unknown word 'nearst' in 'fp16:nearst'.*nearest"),
        (lambda: Precision("fp16", "nearst"), "unknown rounding 'nearst'"),
        (lambda: Precision("fp16", overflow="clip"), "unknown overflow 'clip'.*saturate"),
        (lambda: Precision.parse("fp16:up:down"), "names two rounding modes"),
        (lambda: Precision.parse("fp16:ieee:saturate"), "or two overflow rules"),
        (lambda: Precision.parse(""), "unknown format ''"),
        (lambda: Precision.parse("widest:row"), "unknown format 'widest"),
        (lambda: Accumulator.parse("fp17"), "unknown format 'fp17'"),
        (lambda: Accumulator.parse("fp16:nearst"), "unknown rounding 'nearst'"),
        (lambda: Accumulator.parse("fp16@4"), re.escape("expected FORMAT[:ROUNDING][/EVERY][>OUT")),
        (lambda: Accumulator.parse("fp16/4>fp32@6"), "chunk that is a multiple"),
        (lambda: Accumulator.parse("fp16/0"), "every >= 1"),
        (lambda: Accumulator.parse("int8"), "'int8' has a shared scale: expected a plain format"),
        (lambda: Accumulator.parse("fp16>e4m3:row@4"), "expected FORMAT"),
        (lambda: Accumulator("fp16", outer="bf16"), "outer=bf16 needs a chunk"),
        (lambda: Accumulator("fp16", chunk=-1), "every >= 1"),
        (lambda: Precision.parse(OWN), "knows formats by name, and 'e4m3' is not this one"),
        (lambda: Precision(replace(OWN, name="mine")), "and 'mine' is not this one"),
        (lambda: Accumulator(OWN), "and 'e4m3' is not this one"),
        (lambda: ps.Policy(activations=OWN), "and 'e4m3' is not this one"),
    ],
    ids=itertools.count(),
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_sentence(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def formats(*names):
    return tuple(n and ps.format(n) for n in names)


@pytest.mark.parametrize(
    ("operands", "result"),
    [
        (("fp16", "fp32"), "fp32"),
        (("bf16", "fp16", "fp32"), "fp32"),
        (("e4m3", "bf16"), "bf16"),
        (("tf32", "bf16", None), "tf32"),
        (("fp16_ftz", "fp16"), "fp16"),
        (("int8:row", None, "int8:row"), "int8:row"),
        ((None, None), "fp64"),
        ((), "fp64"),
    ],
)
def test_the_widest_format_holds_all_others(operands, result):
    assert widest(formats(*operands)) == ps.format(result)
    assert widest(formats(*operands[::-1])) == ps.format(result)


@pytest.mark.parametrize(
    "operands", [("e4m3", "e5m2"), ("fp16", "bf16"), ("int8", "fp32"), ("int8:row", "int8:column")]
)
def test_where_no_format_is_the_widest_the_answer_is_asked_for(operands):
    first, second = operands
    with pytest.raises(ValueError, match=f"no format among {first}, {second} holds all values"):
        widest(formats(*operands))


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("int8:row", "int8:column"),
        ("e4m3:column:up", "e4m3:row:up"),
        ("int8", "int8"),
        ("mxfp8:stochastic", "mxfp8_e4m3:32x1:stochastic"),
        ("nvfp4", "nvfp4:16x1"),
        ("e4m3:128x128", "e4m3:128x128"),
        ("e4m3:64x128", "e4m3:128x64"),
    ],
)
def test_a_shared_scale_runs_along_the_contraction(text, right):
    precision = Precision.parse(text)
    assert precision.for_operand(0) == precision
    assert precision.for_operand(1) == Precision.parse(right)
    assert precision.for_operand(2) is None, "a bias is outside the scales"
    plain = Precision.parse("fp16")
    assert [plain.for_operand(i) for i in range(3)] == [plain] * 3


@pytest.mark.parametrize("name", ["fp64", "e8m24", "e9m10", "e11m4"])
def test_a_format_that_float32_cannot_carry_needs_exact_arithmetic(name):
    precision = Precision(name)
    precision.check(np.dtype(np.float64))
    with pytest.raises(ValueError, match=f"format {name} does not fit float32.*'exact'"):
        precision.check(np.dtype(np.float32))
    Precision("fp32").check(np.dtype(np.float32))
