"""Figures: what is drawn, from which data; that a format has one hue; that files repeat to the bit."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import precsim as ps
from precsim.show import plot
from precsim.show.style import LOOKS, look, rough, share

RUNS = [
    {"title": "fp32", "format": "fp32", "losses": [4.0, 3.0, 2.0, 2.0]},
    {"title": "bf16", "format": "bf16", "losses": [4.0, 3.1, 2.1, 2.2]},
    {"title": "fp16", "format": "fp16", "line": "dashed", "losses": [4.0, 5.0, 6.0, 7.0]},
]


def luminance(hue):
    channels = (int(hue[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("name", ps.FORMATS)
def test_every_format_has_a_hue_that_can_be_read_on_white(name):
    contrast = 1.05 / (luminance(look(name).hue) + 0.05)
    assert contrast >= 3.0, contrast  # WCAG 2.2, 1.4.11: graphics; and 1.4.3: bold text


def test_no_two_unscaled_formats_look_the_same():
    assert len(set(LOOKS.values())) == len(LOOKS)


@pytest.mark.parametrize(
    ("name", "relative"),
    [("e4m3:row", "e4m3"), ("fp16_ftz", "fp16"), ("e5m6", "fp16"), ("e8m5", "bf16"),
     ("mxfp4", "e2m1"), ("e9m3", "e8m0"), ("half", "fp16")],
)  # fmt: skip
def test_a_format_without_a_look_has_its_relatives_hue(name, relative):
    assert look(name).hue == look(relative).hue


@pytest.mark.parametrize(
    ("part", "text"),
    [(0.0, "0%"), (1e-9, "<0.1%"), (0.0123, "1.2%"), (0.5, "50%"), (0.9999, "99.9%"), (1.0, "100%"), (1 - 2**-52, "100%"), (float("nan"), "-")],
)  # fmt: skip
def test_a_share_never_rounds_to_none_or_all(part, text):
    assert share(part) == text


def lines(axes):
    """Return the running means by colour: the thick lines."""
    thick = [line for line in axes.get_lines() if line.get_linewidth() > 2]
    return {line.get_color(): line for line in thick}


def test_loss_curves_draw_each_run_in_its_hue_and_the_gaps_of_those_near_the_reference():
    figure = plot.loss_curves(runs=RUNS, reference="fp32", guess=4.7, title="title")
    top, below = figure.axes
    drawn = lines(top)
    assert set(drawn) == {look(run["format"]).hue for run in RUNS}
    means = [4.0, 7.1 / 2, 9.2 / 3, 11.4 / 4]  # of all steps so far, which are less than 20
    np.testing.assert_allclose(drawn[look("bf16").hue].get_ydata(), means)
    assert drawn[look("fp16").hue].get_linestyle() == "--"
    assert top.get_title(loc="left") == "title"
    gaps = lines(below)
    assert look("fp16").hue not in gaps
    np.testing.assert_allclose(gaps[look("bf16").hue].get_ydata(), [0, 0.05, 0.2 / 3, 0.1])
    labels = [text.get_text() for text in top.texts + below.texts]
    assert "fp16\n5.500" in labels
    assert "bf16 +0.100" in labels
    assert "guessing evenly: 4.70" in labels


def test_a_loss_that_is_not_a_number_ends_its_curve_and_the_label_says_so():
    dead = {"title": "int8", "format": "int8", "losses": [4.0, "inf", "nan"]}
    figure = plot.loss_curves(runs=[*RUNS, dead], reference="fp32")
    labels = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "int8\ndead at step 2" in labels
    assert len(plot.loss_curves(runs=[dead]).axes) == 1
    assert plot.loss_curves(runs=[]).axes


def test_the_running_mean_is_over_the_last_steps():
    mean = plot.running_mean(np.array([1.0, 3.0, 5.0, 7.0]), 2)
    np.testing.assert_array_equal(mean, [1, 2, 4, 6])
    after = plot.running_mean(np.array([1.0, np.nan, 1.0]), 2)
    assert np.isnan(after[1:]).all()


@given(
    st.lists(st.floats(0, 10), max_size=8),
    st.floats(0.01, 1),
)
def test_labels_are_spread_apart_and_keep_their_order(wanted, gap):
    places = plot.spread(wanted, gap, 0, 10)
    in_order = [places[i] for i in np.argsort(wanted, kind="stable")]
    assert all(b - a >= gap * 0.999 for a, b in pairwise(in_order))
    assert max(places, default=0) <= 10


def test_the_flushed_share_counts_what_rounds_to_zero():
    counts = [0] * 301
    lowest = -160
    for exponent, n in ((-26, 3), (-25, 4), (-24, 5), (0, 8)):
        counts[exponent - lowest] = n
    assert plot.flushed_share(lowest, counts, "fp16") == 3 / 20
    assert plot.flushed_share(lowest, counts, "fp32") == 0
    assert plot.flushed_share(lowest, [0] * 301, "fp16") == 0
    values = np.repeat([1.5 * 2.0**-26, 1.5 * 2.0**-25, 2.0**-24, 1.0], [3, 4, 5, 8])
    assert (ps.quantize(values, "fp16") == 0).mean() == 3 / 20


@pytest.mark.parametrize(
    ("name", "low", "normal", "high"),
    [("fp16", -24, -14, math.log2(65504)), ("e4m3", -9, -6, math.log2(448)),
     ("e8m0", -127, -127, 127), ("int8", 0, math.log2(127), math.log2(127))],
)  # fmt: skip
def test_a_range_is_in_powers_of_two(name, low, normal, high):
    found = plot.format_range(name)
    assert (found["low"], found["normal"], found["high"]) == (low, normal, high)


def test_the_histogram_names_the_share_that_each_format_flushes_and_moves_with_the_loss_scale():
    counts = np.zeros(301, int)
    counts[160 - 30 : 160 - 20] = 10  # 2^-30 to 2^-21
    ranges = [plot.format_range(name) for name in ("fp32", "fp16", "e4m3")]
    figure = plot.exponent_histogram(
        lowest=-160, counts=counts, ranges=ranges, label="gradients", loss_scale=1024
    )
    top, bars = figure.axes
    written = [text.get_text() for text in bars.texts]
    assert "50% become 0" in written  # below 2^-25
    assert "100% become 0" in written
    assert any("65504" in text for text in written)
    fill, moved = top.patches[:2]
    np.testing.assert_allclose(moved.get_data().edges - fill.get_data().edges, 10)
    assert fill.get_data().values.sum() == pytest.approx(100)


def test_the_ladder_has_a_bar_and_a_largest_value_for_each_format():
    names = [name for name, fmt in ps.FORMATS.items() if isinstance(fmt, ps.Format)]
    figure = plot.range_ladder(ranges=[plot.format_range(name) for name in names])
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    assert sum("max" in text.get_text() for text in axes.texts) == len(names)


DATA = {"ranges": [plot.format_range(name) for name in ("fp16", "e4m3")], "title": "ranges"}


def test_saving_twice_gives_the_same_bytes_without_dates_and_versions(tmp_path):
    first = plot.save("range_ladder", DATA, tmp_path / "a")
    second = plot.save("range_ladder", DATA, tmp_path / "b")
    assert [path.name for path in first] == ["a.png", "a.svg", "a.json"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    svg = first[1].read_text(encoding="utf-8")
    assert "dc:date" not in svg
    assert "Matplotlib v" not in svg
    assert b"Software" not in first[0].read_bytes()


def test_the_data_beside_a_figure_redraw_it(tmp_path):
    plot.save(
        "loss_curves", {"runs": [*RUNS[:2], {**RUNS[2], "losses": [math.nan]}]}, tmp_path / "a.svg"
    )
    stored = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert stored["data"]["runs"][2]["losses"] == ["nan"]
    plot.redraw(tmp_path / "a.json").savefig(tmp_path / "again.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.svg", "again.png"]


def test_a_figure_goes_only_into_a_picture(tmp_path):
    with pytest.raises(ValueError, match=r"\.png, \.svg or \.pdf"):
        plot.save("range_ladder", DATA, tmp_path / "a.doc")
    assert plot.save("range_ladder", DATA, tmp_path / "a.pdf")[0].read_bytes().startswith(b"%PDF")
    assert ps.plot is plot


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.4249, "0.42"), (8.25, "8.2"), (9.96, "10"), (184, "180"), (23_900, "24,000"),
     (999_000, "1e+06"), (-55.4, "-55"), (9.2e-5, "9.2e-05"), (math.inf, "inf"), (math.nan, "nan")],
)  # fmt: skip
def test_two_figures_are_read_without_an_exponent(value, text):
    assert rough(value) == text
