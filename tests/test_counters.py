"""Every count against the specification: the same numbers, rounded one by one on fractions."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import precsim as ps
from precsim import testing
from precsim.backend import tier, to_numpy
from precsim.engine.tally import Tally
from precsim.formats.format import Format
from precsim.formats.registry import FORMATS
from precsim.observe.counters import COUNTS, HIGHEST, LOWEST, OpCounts, total

PLAIN = [name for name, f in FORMATS.items() if isinstance(f, Format)] + ["fp16_ftz", "e6m9"]
MODES = ["nearest", "nearest_away", "toward_zero", "up", "down", "to_odd"]
OVERFLOWS = ["", ":saturate", ":ieee"]


@pytest.fixture(params=["numpy", "numba"], scope="module", autouse=True)
def kernels(request):
    if request.param == "numba":
        pytest.importorskip("numba")
    with tier(request.param):
        yield


def observed(values, precision, arithmetic="exact"):
    """Return the counts of the op that rounds `values`, and what it made of them."""
    counters, events = ps.Counters(), []
    policy = ps.Policy(activations=precision, arithmetic=arithmetic)
    with ps.using(policy, observers=[counters, events.append]):
        ps.tensor(values)
    (counts,), (event,) = counters.rows, events
    return counts, event


def specified(values, results, fmt):
    """Count pairs of before and after one by one; `fmt` None is a shared scale without own ends."""
    want = dict.fromkeys(COUNTS, 0) | {"n": len(values), "amax": 0.0, "amin": math.inf}
    histogram, square, error = {}, Fraction(0), Fraction(0)
    for x, r in zip(values, results, strict=True):
        finite = math.isfinite(x)
        want["zeros"] += x == 0
        want["flushed"] += x != 0 and r == 0
        want["nan"] += math.isnan(r)
        want["nonfinite_in"] += not finite
        want["overflowed"] += finite and not math.isfinite(r)
        want["inexact"] += x != r and not (math.isnan(x) and math.isnan(r))
        if fmt:
            want["subnormal"] += 0 < abs(r) < fmt.smallest_normal
            want["saturated"] += finite and abs(x) > fmt.max and abs(r) == fmt.max
        if finite and x != 0:
            want["amax"], want["amin"] = max(want["amax"], abs(x)), min(want["amin"], abs(x))
            exponent = min(max(math.frexp(x)[1] - 1, LOWEST), HIGHEST)
            histogram[exponent] = histogram.get(exponent, 0) + 1
        if finite and math.isfinite(r):
            square += Fraction(x) ** 2
            error += (Fraction(r) - Fraction(x)) ** 2
    finite_pairs = want["n"] - want["nonfinite_in"] - want["overflowed"]
    rms = math.sqrt(square / finite_pairs) if finite_pairs else 0.0
    return want, histogram, rms, math.sqrt(error / square) if square else 0.0


def check(counts, values, results, fmt, precise=1e-12):
    want, histogram, rms, relative_error = specified(values, results, fmt)
    assert {name: getattr(counts, name) for name in want} == want
    found = {} if counts.histogram is None else counts.histogram
    assert {LOWEST + int(i): int(found[i]) for i in np.flatnonzero(found)} == histogram
    assert counts.rms == pytest.approx(rms, rel=precise, abs=0)
    # Of an error far below the result's own last bit, only that it is small can be told.
    assert counts.relative_error == pytest.approx(relative_error, rel=precise, abs=1e-18)


@pytest.mark.parametrize("arithmetic", ["exact", "fast"])
@given(
    name=st.sampled_from(PLAIN),
    mode=st.sampled_from(MODES),
    overflow=st.sampled_from(OVERFLOWS),
    data=st.data(),
)
def test_counts_are_those_of_the_specification(arithmetic, name, mode, overflow, data):
    if name == "fp64" and arithmetic == "fast":
        name = "fp32"
    x = data.draw(testing.arrays(name if name != "fp64" else "fp32", np.float32))
    counts, event = observed(x, f"{name}:{mode}{overflow}", arithmetic)
    fmt = ps.format(name)
    want = [ps.exact.round(v, fmt, mode, overflow.lstrip(":") or None) for v in x.tolist()]
    np.testing.assert_array_equal(to_numpy(event.rounded), want)
    check(counts, x.tolist(), want, fmt, 1e-12 if arithmetic == "exact" else 1e-5)
    assert (counts.format, counts.u) == (fmt.name, fmt.u)


@pytest.mark.parametrize("name", ["int8", "int4:row", "e4m3:column", "e5m2:tensor"])
@given(x=testing.arrays("fp16", np.float32))
@example(x=np.array([1.0, np.nan, 3.0], np.float32))
@example(x=np.array([3e38, 1e-45], np.float32))
def test_a_shared_scale_has_no_ends_of_its_own_to_count(name, x):
    counts, event = observed(x, name)
    check(counts, x.tolist(), event.rounded.tolist(), None)


def counted_at_once(x, r, fmt):
    """Count whole arrays, each count by what it is said to be."""
    finite = np.isfinite(x)
    size, after = np.abs(x), np.abs(r)
    return {
        "n": x.size,
        "zeros": (x == 0).sum(),
        "flushed": ((x != 0) & (r == 0)).sum(),
        "subnormal": ((after > 0) & (after < fmt.smallest_normal)).sum(),
        "overflowed": (finite & ~np.isfinite(r)).sum(),
        "saturated": (finite & (size > fmt.max) & (after == fmt.max)).sum(),
        "nan": np.isnan(r).sum(),
        "nonfinite_in": (~finite).sum(),
        "inexact": ((x != r) & ~(np.isnan(x) & np.isnan(r))).sum(),
        "amax": size[finite].max(),
        "amin": size[finite & (x != 0)].min(),
    }


@pytest.mark.parametrize("arithmetic", ["exact", "fast"])
@pytest.mark.parametrize("size", [4095, 4096, 70001, 131072])
@pytest.mark.parametrize(
    ("low", "high", "name"),
    [(-9, 3, "e4m3"), (-30, 12, "e4m3"), (-30, 18, "fp16"), (-63, 0, "bf16"), (-64, 0, "e5m2"),
     (-120, 120, "bf16"), (-149, -120, "bf16"), (0, 9, "e4m3:saturate"), (-3, 1, "e8m0"),
     (-140, -120, "e8m0")],
)  # fmt: skip
def test_counts_of_large_arrays(low, high, name, size, arithmetic):
    """Exponents that span fewer binades than are told apart in pairs, just as many, and more."""
    random = np.random.default_rng(size)
    x = np.ldexp(random.uniform(1, 2, size) * random.choice([-1, 1], size),
                 random.integers(low, high, size, endpoint=True))  # fmt: skip
    x[random.random(size) < 0.2] = 0
    x[:2] = 2.0**low, 2.0**high
    x[100:110], x[-5:-3], x[-1] = np.nan, -np.inf, 2.0**low
    x = x.astype(np.float32)
    counts, event = observed(x, name, arithmetic)
    fmt = ps.format(name.partition(":")[0])
    r = to_numpy(event.rounded).astype(np.float64)
    want = counted_at_once(x.astype(np.float64), r, fmt)
    assert {key: getattr(counts, key) for key in want} == want
    kept = np.abs(x[np.isfinite(x) & (x != 0)].astype(np.float64))
    exponents, times = np.unique(np.frexp(kept)[1] - 1, return_counts=True)
    found = np.flatnonzero(counts.histogram)
    np.testing.assert_array_equal(found + LOWEST, exponents)
    np.testing.assert_array_equal(counts.histogram[found], times)
    both = np.isfinite(x) & np.isfinite(r)
    squares = np.square(x[both], dtype=np.float64).sum()
    assert counts.square == pytest.approx(squares, rel=1e-5)
    assert counts.error == pytest.approx(np.square(r[both] - x[both]).sum(), rel=1e-5, abs=1e-300)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 100, 1025, 200_001])
@pytest.mark.parametrize("scale", [1, 1e-30, 1e20])
@pytest.mark.parametrize("name", ["e4m3", "bf16", "fp32", "int8:row"])
def test_what_counts_changes_no_bit_of_the_counts(name, scale, size, dtype):
    """NumPy's passes and compiled kernels; the first half has what is not finite, and subnormals."""
    pytest.importorskip("numba")
    x = (np.random.default_rng(size).standard_normal(size) ** 7 * scale).astype(dtype)
    x[::5] = 0
    if size > 1:
        x[[3, 7, 9, 11]] = np.nan, np.inf, -np.inf, np.finfo(dtype).smallest_subnormal
    fmt, r = ps.format(name), ps.quantize(x, name)
    found = []
    for kernels in ("numpy", "numba"):
        with tier(kernels):
            tally = Tally.of(x, r, fmt, histogram=True)
        counted = {n: getattr(tally, n) for n in ("amax", "amin", *COUNTS[1:9])}
        found.append((counted, tally.histogram.tolist()))
        kept = np.isfinite(r) & np.isfinite(x)
        wide, errors = x[kept].astype(float), r[kept].astype(float) - x[kept]
        squares = [float(values @ values) for values in (wide, errors)]
        assert (tally.square, tally.error) == pytest.approx(squares, rel=1e-5)
    assert found[0] == found[1]


@pytest.mark.parametrize("kernels", ["numpy", "numba"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["e4m3", "e5m2:stochastic", "bf16", "tf32:saturate", "e2m1"])
def test_what_is_counted_on_the_way_is_rounded_as_ever(name, dtype, kernels):
    """With an observer that does without results before rounding, and one that does not."""
    if kernels == "numba":
        pytest.importorskip("numba")
    x = (np.random.default_rng(0).standard_normal(100_001) ** 7 * 1e3).astype(dtype)
    x[::5], x[[3, 7, 9]] = 0, (np.nan, np.inf, 1e-42)
    arithmetic = "fast" if dtype == np.float32 else "exact"
    rows, results = [], []
    for others in ([], [lambda event: None]):
        counters = ps.Counters()
        policy = ps.Policy.uniform(name, arithmetic=arithmetic)
        with tier(kernels), ps.using(policy, observers=[counters, *others], seed=1):
            results.append(ps.ops.mul(x, 1.0).numpy())
        rows.append([row.to_dict() for row in counters.rows])
    with tier("numpy"), ps.using(policy, seed=1):
        np.testing.assert_array_equal(results[0], ps.ops.mul(x, 1.0).numpy())
    np.testing.assert_array_equal(*results)
    assert rows[0] == rows[1]


@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (0,), (2, 3)])
@pytest.mark.parametrize("value", [0.0, -0.0, math.nan, math.inf, 1e-9, 70000.0, 1.0])
@pytest.mark.parametrize("precision", ["fp16", "fp64", "fp64:saturate", "e8m0", "e2m1"])
def test_counts_are_defined_for_every_shape_and_kind(shape, value, precision):
    x = np.full(shape, value)
    counts, event = observed(x, precision)
    fmt = ps.format(precision.partition(":")[0])
    check(counts, x.ravel().tolist(), event.rounded.ravel().tolist(), fmt)
    plain = json.loads(json.dumps(counts.to_dict(), allow_nan=False))
    assert plain["n"] == x.size
    assert all(0 <= plain[f"{name}_share"] <= 1 for name in ("flushed", "subnormal", "swamped"))


def test_the_numbers_of_a_known_tensor():
    """fp16: 2^-25 ties to zero, 2^-24 is the smallest subnormal, 65520 is the first to overflow."""
    x = [0.0, 2.0**-25, 1.5 * 2.0**-24, 2.0**-14, 1 / 3, -65519.0, 65520.0, math.nan, -math.inf]
    counts, _ = observed(x, "fp16")
    found = {name: getattr(counts, name) for name in COUNTS}
    assert found == {
        "n": 9, "zeros": 1, "flushed": 1, "subnormal": 1, "overflowed": 1, "saturated": 1,
        "nan": 1, "nonfinite_in": 2, "inexact": 5, "swamped": 0, "updates": 0,
    }  # fmt: skip
    assert (counts.amax, counts.amin) == (65520.0, 2.0**-25)
    assert counts.flushed_share == 1 / 8
    assert counts.histogram is not None
    assert {int(i) + LOWEST for i in np.flatnonzero(counts.histogram)} == {-25, -24, -14, -2, 15}


def test_sums_of_squares_leave_the_range_of_float32_unharmed():
    for scale in (1e-25, 1e25):
        counts, _ = observed([3 * scale, 4 * scale], "fp32", "fast")
        assert counts.rms == pytest.approx(scale * math.sqrt(12.5), rel=1e-6)


def test_float32_subnormals_keep_their_exponents():
    counts, _ = observed([2.0**-149, 2.0**-130, 1.0], "fp32", "fast")
    assert counts.histogram is not None
    assert (np.flatnonzero(counts.histogram) + LOWEST).tolist() == [-149, -130, 0]


@given(
    pairs=st.lists(
        st.tuples(st.floats(-4, 4, width=16), st.one_of(st.just(0.0), st.floats(-0.1, 0.1))),
        min_size=1,
        max_size=20,
    )
)
def test_swamped_updates_are_those_that_change_nothing(pairs):
    counters, fmt = ps.Counters(), "bf16"
    with ps.using(ps.Policy(weights=fmt), role="weights", observers=[counters]):
        w = ps.quantize(np.array([w for w, _ in pairs]), fmt)
        d = np.array([d for _, d in pairs])
        ps.optim.apply_update(w, d)
    (counts,) = counters.rows
    sums = [ps.exact.round(Fraction(a) + Fraction(b), fmt) for a, b in zip(w, d, strict=True)]
    moves = [(a, s) for a, b, s in zip(w, d, sums, strict=True) if b != 0]
    assert counts.updates == len(moves)
    assert counts.swamped == sum(a == s for a, s in moves)


def one_step(observers):
    with ps.using(ps.Policy.uniform("fp16"), observers=observers, step=3):
        model = ps.GPT(ps.GPTConfig(layers=1, heads=2, width=8, context=6, vocabulary=9))
        ids = np.arange(12).reshape(2, 6) % 9
        model.loss(ids, ids).backward()
        grads = {name: p.grad for name, p in model.parameters.items()}
        ps.optim.SGD(model.parameters, lr=1e-3, momentum=0.9).step(grads)


def test_totals_add_up():
    counters, events = ps.Counters(), []
    one_step([counters, events.append])
    assert len(counters.rows) == len(events) > 100
    whole = counters.total()
    assert whole.n == sum(e.exact.size for e in events)
    phases = [counters.total(phase=phase) for phase in ("forward", "backward", "update")]
    by_op = [counters.total(op=op) for op in {e.op for e in events}]
    for parts in (phases, by_op, counters.rows):
        for name in COUNTS:
            assert sum(getattr(p, name) for p in parts) == getattr(whole, name), name
        assert math.fsum(p.square for p in parts) == pytest.approx(whole.square)
        assert math.fsum(p.error for p in parts) == pytest.approx(whole.error)
        assert max(p.amax for p in parts) == whole.amax
        assert min(p.amin for p in parts) == whole.amin
        histograms = [p.histogram for p in parts if p.histogram is not None]
        np.testing.assert_array_equal(sum(histograms), whole.histogram)
    finite = whole.n - whole.nonfinite_in
    assert whole.histogram.sum() == finite - whole.zeros
    assert whole.updates == counters.total(op="apply_update").n - sum(
        (e.inputs[1] == 0).sum() for e in events if e.op == "apply_update"
    )


def test_rows_say_where_they_come_from_and_total_picks_by_it():
    counters, events = ps.Counters(), []
    one_step([counters, events.append])
    for row, event in zip(counters.rows, events, strict=True):
        names = ("path", "step", "call", "op", "phase", "role", "scope")
        assert [getattr(row, n) for n in names] == [getattr(event, n) for n in names]
        assert row.path == f"{row.role}/{row.scope}/{row.op}"
    picked = counters.total(op="linear", scope="blocks.0.fc1")
    assert (picked.n, picked.op, picked.scope) == (2 * 6 * 32, "linear", "blocks.0.fc1")
    assert total([], op="add").n == 0
    with pytest.raises(TypeError, match="operation"):
        counters.total(operation="linear")


def test_what_a_counter_keeps_drains_and_ranks():
    counters = ps.Counters(histograms=False, keep=lambda event: event.phase == "backward")
    one_step([counters])
    rows = list(counters.rows)
    assert {row.phase for row in rows} == {"backward"}
    assert all(row.histogram is None for row in rows)
    worst = counters.worst(3, by="amax")
    assert [row.amax for row in worst] == sorted((r.amax for r in rows), reverse=True)[:3]
    assert counters.drain() == rows
    assert counters.drain() == []


def test_shares_of_nothing_are_zero():
    empty = OpCounts()
    shares = (empty.flushed_share, empty.subnormal_share, empty.inexact_share,
              empty.swamped_share, empty.rms, empty.relative_error)  # fmt: skip
    assert shares == (0, 0, 0, 0, 0, 0)
    assert OpCounts(n=4, zeros=4).flushed_share == 0
