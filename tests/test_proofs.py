"""The proofs: they hold, they are themselves held to the specification, and they do find mistakes."""

import dataclasses
import json
import math
import operator

import numpy as np
import pytest

from precsim import testing
from precsim.formats import exact
from precsim.formats.format import Format, Specials
from precsim.formats.modes import Overflow, Rounding
from precsim.formats.quantize import quantize
from precsim.formats.registry import format
from precsim.proofs import exhaustive, state, stratified
from precsim.proofs.exhaustive import CHUNK, CHUNKS, Case, Mismatch
from precsim.proofs.significands import round_by_significand
from precsim.proofs.tables import round_by_table, side, table

by_name = operator.attrgetter("name")
MODES = list(Rounding)
SPELLED = [format(name) for name in ("e4m3_ftz", "e6m5", "e8m3")]
UNSIGNED = [
    Format("ue4m3", 4, 3, Specials.FN, signed=False),
    Format("ue3m2", 3, 2, Specials.FINITE, signed=False),
]
COARSE = Format("coarse", 4, 3, Specials.FN, bias=-20)  # steps of 2^18: remainders underflow
FORMATS = [*testing.GRIDS, *SPELLED, *UNSIGNED, COARSE]
LISTED = [f for f in FORMATS if f.bits <= 16]
WIDE = [*(f for f in FORMATS if f.bits > 16), format("e11m3"), format("e9m10")]
NEAREST_E4M3 = Case(format("e4m3"), Rounding.NEAREST, Overflow.IEEE)


# The proof.


@pytest.mark.parametrize("fmt", LISTED, ids=by_name)
def test_every_code_decodes_encodes_and_stays_where_it_is(fmt):
    assert stratified.check_codes(fmt) > 25 * 2**fmt.bits


@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize("fmt", LISTED, ids=by_name)
def test_kernels_agree_with_two_other_methods_at_every_edge(fmt, rounding):
    for dtype in stratified.carriers(fmt):
        for overflow in Overflow:
            compared = stratified.check_kernels(fmt, rounding, overflow, dtype)
            assert compared > 24 * 2 ** (fmt.bits - fmt.signed)


@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize("fmt", WIDE, ids=by_name)
def test_kernels_of_wide_formats_agree_with_integer_significands(fmt, rounding):
    for dtype in stratified.carriers(fmt):
        for overflow in Overflow:
            assert stratified.check_wide(fmt, rounding, overflow, dtype, per_binade=32) > 10_000


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "fp16", "bf16", "e2m1", "e8m0", "tf32"])
@pytest.mark.parametrize("rounding", MODES)
def test_some_chunks_of_all_float32_inputs(name, rounding):
    """Around 1, through the subnormals of fp16, through the top of bf16 to infinity and NaN."""
    fmt = format(name)
    chunks = [0x3F800000 // CHUNK, 0x33800000 // CHUNK, CHUNKS // 4 + 510 // 2, CHUNKS - 1]
    overflow = Overflow.SATURATE if rounding is Rounding.UP or not fmt.has_nan else Overflow.IEEE
    for chunk in chunks:
        case = Case(fmt, rounding, overflow)
        assert exhaustive.check_chunk(case, chunk, inputs=CHUNK // 8) is None
    last = CHUNKS // 2 - 2  # from a quarter below infinity to the first NaNs, a piece on each side
    assert exhaustive.check_chunk(case, last, inputs=exhaustive.PIECE) is None


# The methods behind the proof against the specification.


@pytest.mark.parametrize("fmt", LISTED, ids=by_name)
def test_tables_list_the_values_of_the_specification(fmt):
    full = dataclasses.replace(fmt, subnormals=fmt.has_zero)
    values = table(fmt).values
    assert values[1 - fmt.has_zero : -1].tolist() == [v for v in exact.values(full) if v >= 0]
    assert values[-1] == fmt.max + fmt.ulp(fmt.max)  # the virtual next value
    assert values[table(fmt).normal].min() == 2.0**fmt.emin  # (128 of int8: its virtual one)


@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize(
    ("fmt", "dtype"),
    [
        pytest.param(fmt, dtype, id=f"{fmt.name}-{np.dtype(dtype)}")
        for fmt in FORMATS
        for dtype in stratified.carriers(fmt)
    ],
)
def test_both_methods_are_the_specification(fmt, dtype, rounding):
    x = testing.specimens(fmt, dtype, per_binade=4)
    rng = np.random.default_rng(fmt.bits)
    size = np.abs(x).astype(np.float64)
    ends = ~np.isfinite(x) | (size > fmt.max / 2) & (size / 4 < fmt.max)
    x = x[ends | (rng.random(x.size) < 60 / x.size)]
    for word in stratified.WORDS[:3] if rounding is Rounding.STOCHASTIC else (0,):
        words = np.full(x.shape, word, np.uint32)
        for overflow in Overflow:

            def by_significand(v, overflow=overflow, words=words):
                return round_by_significand(v, fmt, rounding, overflow, words)

            def by_table(v, overflow=overflow, word=word):
                return round_by_table(v, fmt, rounding, overflow, word)

            testing.check_rounding(by_significand, fmt, rounding, overflow, x, words)
            if fmt.bits <= 19:
                testing.check_rounding(by_table, fmt, rounding, overflow, x, words)


def test_a_rounding_mode_is_a_list_of_places():
    steps = side(format("e2m1"), Rounding.NEAREST, Overflow.SATURATE, False)
    assert steps.results.tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6, 6]
    just_above = np.nextafter([0.25, 1.25, 2.5, 5.0], 9).tolist()
    assert steps.firsts.tolist() == sorted([0.75, 1.75, 3.5, 7.0, *just_above])


def test_inputs_hold_every_value_midpoint_and_neighbour():
    for dtype in (np.float32, np.float64):
        x = stratified.inputs(format("fp16"), dtype)
        assert x.dtype == dtype
        halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(dtype)
        middle = (halves[1:] + halves[:-1]) / 2
        for edge in (halves, middle):
            for neighbour in (edge, np.nextafter(edge, dtype(9e9)), -np.nextafter(edge, dtype(0))):
                assert np.isin(neighbour, x).all()
        assert np.isin([65520.0, math.inf, -math.inf], x).all()
        assert np.signbit(x[x == 0]).tolist() == [True, False]
        assert np.isnan(x[-4:]).all()


# The proofs find mistakes.  Each of these is one that some emulator has made.


def ties_away(x, fmt, rounding, overflow, random=None):
    rounding = Rounding.NEAREST_AWAY if rounding is Rounding.NEAREST else rounding
    return quantize(x, fmt, rounding, overflow, random)


def through_float32(x, fmt, rounding, overflow, random=None):
    narrow = quantize(x, "fp32", "nearest", "ieee") if x.dtype == np.float64 else x
    return quantize(narrow, fmt, rounding, overflow, random)


def without_negative_zero(x, fmt, rounding, overflow, random=None):
    return quantize(x, fmt, rounding, overflow, random) + 0


def beyond_before_rounding(x, fmt, rounding, overflow, random=None):
    got = quantize(x, fmt, rounding, overflow, random)
    return np.where(x > fmt.max, x.dtype.type(np.inf if fmt.has_inf else np.nan), got)


def flushing(x, fmt, rounding, overflow, random=None):
    return quantize(x, fmt.flushed(), rounding, overflow, random)


def nan_with_a_payload_becomes_infinity(x, fmt, rounding, overflow, random=None):
    got = quantize(x, fmt, rounding, overflow, random)
    low_payload = np.isnan(x) & (x.view(f"u{x.itemsize}") % 2**20 == 1)
    return np.where(low_payload, x.dtype.type(np.inf), got)


@pytest.mark.parametrize(
    ("mistake", "found"),
    [
        (ties_away, "nearest ieee float32: .* gave"),
        (through_float32, "nearest ieee float64: .* gave"),
        (without_negative_zero, r"gave np.float32\(0.0\), expected np.float32\(-0.0\)"),
        (beyond_before_rounding, "gave .*inf"),
        (flushing, r"gave .*0\.0"),
        (nan_with_a_payload_becomes_infinity, r"nan\) \(nan\) gave .*inf"),
    ],
)
def test_a_mistake_in_a_kernel_does_not_pass(monkeypatch, mistake, found):
    monkeypatch.setattr(stratified, "quantize", mistake)

    def check_both_carriers():
        for dtype in (np.float32, np.float64):
            stratified.check_kernels(format("fp16"), Rounding.NEAREST, Overflow.IEEE, dtype)

    with pytest.raises(AssertionError, match=found):
        check_both_carriers()


def test_a_draw_that_is_off_by_one_does_not_pass(monkeypatch):
    def off_by_one(x, fmt, rounding, overflow, random):
        return quantize(x, fmt, rounding, overflow, np.maximum(random, 1))

    monkeypatch.setattr(stratified, "quantize", off_by_one)
    with pytest.raises(AssertionError, match="word 0x00000000"):
        stratified.check_kernels(format("e4m3"), Rounding.STOCHASTIC, Overflow.IEEE)


@pytest.mark.parametrize("pattern", [0x3F880000, 0xBF880000, 0x7FFFFFFF, 0xFF800000, 0x80000000])
def test_the_sweep_names_the_bits_of_one_wrong_input_in_4_billion(pattern):
    def wrong_once(x, case, words):
        got = exhaustive.kernel(x, case, words)
        got[x.view(np.uint32) == pattern] = 0.125
        return got

    chunk, offset = divmod(pattern, CHUNK)
    aligned = CHUNK if offset > exhaustive.PIECE else exhaustive.PIECE
    found = exhaustive.check_chunk(NEAREST_E4M3, chunk, wrong_once, aligned)
    assert isinstance(found, Mismatch)
    assert (found.input, found.got, found.count) == (pattern, 0x3E000000, 1)
    assert f"e4m3 nearest ieee: {pattern:#010x} (" in str(found)
    assert "gave 0x3e000000 (0.125), expected 0x" in str(found)


def test_the_sweep_sees_a_word_that_is_ignored():
    def half_always(x, case, words):
        return quantize(x, case.format, "stochastic", random=np.full_like(words, 2**31))

    case = Case(format("e4m3"), Rounding.STOCHASTIC, Overflow.IEEE)
    found = exhaustive.check_chunk(case, 0x3F800000 // CHUNK, half_always)
    assert found is not None
    assert f"random word {exhaustive.word_of(0x3F800000 // CHUNK):#010x}" in str(found)


def test_the_chunks_are_all_float32_numbers_once(monkeypatch):
    monkeypatch.setattr(exhaustive, "check_chunk", lambda case, chunk, quantizer: None)
    for threads in (1, 3):
        done = [chunks for chunks, _ in exhaustive.sweep(NEAREST_E4M3, threads=threads)]
        assert done[-1] == CHUNKS
        assert len(done) == -(-CHUNKS // threads)
    assert CHUNK * CHUNKS == 2**32
    assert [n for n, _ in exhaustive.sweep(NEAREST_E4M3, CHUNKS - 2)] == [CHUNKS - 1, CHUNKS]


def test_a_sweep_stops_at_its_first_mismatch():
    def wrong(x, case, words):
        return exhaustive.kernel(x, case, words) * 2

    found = list(exhaustive.sweep(NEAREST_E4M3, start=254, threads=2, quantizer=wrong))
    assert [chunks for chunks, _ in found] == [256]
    assert found[0][1].count > 1000


def test_cases_list_every_format_and_mode_and_each_overflow_rule_that_exists():
    listed = exhaustive.cases()
    assert {c.format.name for c in listed} == {f.name for f in testing.GRIDS if f.bits <= 16}
    assert sum(c.format.name == "e4m3" for c in listed) == 2 * len(MODES)
    assert sum(c.format.name == "e2m1" for c in listed) == len(MODES)
    some = exhaustive.cases([format("tf32")], [Rounding.UP])
    assert [str(c) for c in some] == ["tf32 up ieee", "tf32 up saturate"]
    assert 0 < exhaustive.estimate(some[:1]) < 3600


@pytest.mark.parametrize("name", ["fp32", "fp64", "e9m6", "e8m12"])
def test_formats_that_the_sweep_cannot_prove_are_refused(name):
    case = Case(format(name), Rounding.NEAREST, Overflow.IEEE)
    with pytest.raises(ValueError, match=f"{name} has .* bits.*at most 20 bits within float32"):
        next(exhaustive.sweep(case))


@pytest.mark.parametrize("name", ["fp32", "e11m3", "e8m13"])
def test_tables_of_formats_too_wide_are_refused(name):
    with pytest.raises(
        ValueError, match=f"at most 20 bits, 10 .*exponent, for a table; got {name}"
    ):
        table(format(name))


def test_stochastic_rounding_by_a_table_needs_a_word():
    with pytest.raises(ValueError, match=r"needs a word in 0 .. 2\^32 - 1; got None"):
        round_by_table(np.ones(1), format("e4m3"), "stochastic")
    with pytest.raises(ValueError, match="needs `words`"):
        round_by_significand(np.ones(1), format("e4m3"), "stochastic")


# The state of a sweep.


def test_a_state_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "verify.json"
    first = state.load(path)
    first.of(NEAREST_E4M3).chunks = 7
    mismatch = Mismatch("e4m3 nearest ieee", 1, 2, 3, word=4, count=5)
    first.of(NEAREST_E4M3).mismatch = mismatch
    first.save()
    again = state.load(path)
    assert again.of(NEAREST_E4M3) == state.Progress(7, 0.0, mismatch)
    assert again.of(NEAREST_E4M3).inputs == 7 * CHUNK
    assert not again.restarted
    assert [p.name for p in tmp_path.iterdir()] == ["verify.json"]


def test_a_state_about_other_code_counts_for_nothing(tmp_path):
    path = tmp_path / "verify.json"
    begun = state.State(path)
    begun.of(NEAREST_E4M3).chunks = 7
    begun.save()
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"fingerprint": "0" * 64}))
    again = state.load(path)
    assert again.restarted
    assert again.of(NEAREST_E4M3).chunks == 0


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"fingerprint": "", "numpy": "", "cases": 3}'])
def test_another_file_is_not_taken_for_a_state(tmp_path, text):
    path = tmp_path / "notes.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"notes\.json is not a state file of precsim verify"):
        state.load(path)
    assert path.read_text() == text


def test_a_state_without_a_path_stays_in_memory():
    memory = state.load(None)
    memory.of(NEAREST_E4M3).chunks = 1
    memory.save()
    assert memory.of(NEAREST_E4M3).chunks == 1
