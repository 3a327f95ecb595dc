"""Figures of formats: the data are right, and each figure can be drawn, saved and drawn again."""

import json
import math
import operator

import numpy as np
import pytest
from matplotlib.figure import Figure

from precsim import testing
from precsim.formats.quantize import quantize
from precsim.formats.registry import format
from precsim.show import formats_plot as fp

SMALL = [f for f in testing.GRIDS if f.bits <= 8 and f.has_zero]
DATA = {
    "number_line": fp.number_line_data,
    "staircase": fp.staircase_data,
    "sawtooth": fp.staircase_data,
    "rounding": fp.staircase_data,
    "modes": fp.modes_data,
    "error_by_magnitude": fp.error_by_magnitude_data,
}


def test_the_number_line_has_every_value():
    (row,) = fp.number_line_data(["e2m1"])["rows"]
    assert row == {"name": "e2m1", "max": 6.0, "values": [0, 0.5, 1, 1.5, 2, 3, 4, 6],
                   "smallest_normal": 1.0}  # fmt: skip
    axes = fp.number_line(**fp.number_line_data(["e2m1", "int4"]))
    said = {text.get_text() for text in axes.texts}
    assert {"0.5", "6", "max 6", "step 0.5", "step 2", "step 1", "max 7"} <= said
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["e2m1", "int4"]


def test_a_number_line_that_is_cut_off_goes_on():
    axes = fp.number_line(**fp.number_line_data(["e4m3"]), until=8)
    said = [text.get_text() for text in axes.texts]
    assert "step 0.5" in said
    assert not any("max" in text for text in said)
    assert axes.get_xlim()[1] == 8


@pytest.mark.parametrize("rounding", fp.ALL_MODES)
@pytest.mark.parametrize("fmt", SMALL, ids=operator.attrgetter("name"))
@pytest.mark.parametrize("overflow", ["saturate", "ieee"])
def test_the_steps_are_those_of_quantize(fmt, rounding, overflow):
    data = fp.staircase_data(fmt, rounding, overflow)
    at, values = np.array(data["at"]), [np.nan if v is None else v for v in data["values"]]
    assert (np.diff(at) >= 0).all()  # to_odd has steps of no width
    assert len(values) == at.size + 1
    between = np.concatenate([[at[0] - 1], (at[1:] + at[:-1]) / 2, [at[-1] + 1]])
    wide = np.append(np.diff(at, prepend=-np.inf) > 0, True)
    got = quantize(between, fmt, rounding, overflow)
    got[np.isinf(got)] = np.nan
    np.testing.assert_array_equal(got[wide], np.array(values)[wide])
    here = quantize(at, fmt, rounding, overflow)
    sides = [values[i + 1] if up else values[i] for i, up in enumerate(data["up"])]
    alone = (np.diff(at, prepend=-np.inf) > 0) & (np.diff(at, append=np.inf) > 0)
    here[np.isinf(here)] = np.nan
    np.testing.assert_array_equal(here[alone], np.array(sides)[alone])


def test_ties_to_even_have_their_dots_on_even_values():
    axes = fp.staircase(**fp.staircase_data("e2m1"))
    dots = next(line for line in axes.lines if line.get_marker() == "o")
    assert dots.get_xdata().tolist() == [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]
    assert dots.get_ydata().tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]


def test_teeth_stay_below_u_but_for_subnormals_and_overflow():
    data = fp.staircase_data("e3m2")
    line = fp.sawtooth(**data).lines[0]
    x, error = line.get_xdata(), line.get_ydata() / 100
    normal = (x >= data["smallest_normal"]) & (x <= data["max"])
    assert error[normal].max() < data["u"]
    assert error[normal].max() == pytest.approx(data["u"] / (1 + data["u"]))  # at the first tie
    assert error[x < data["smallest_normal"]].max() == 1


def test_the_worst_error_is_u_where_values_are_normal_and_all_below():
    data = fp.error_by_magnitude_data(["fp16", "e4m3", "bf16"], low=-30, high=20)
    worst = {c["name"]: dict(zip(range(-30, 20), c["worst"], strict=True)) for c in data["curves"]}
    for name, emin, emax in (("fp16", -14, 15), ("e4m3", -6, 8)):
        u = format(name).u
        for e in range(emin, emax + 1):
            assert worst[name][e] == pytest.approx(u / (1 + u), rel=1e-6)
        assert worst[name][emax + 1] is None
        assert worst[name][emin - format(name).man_bits - 1] == 1  # what rounds to 0 is lost
        assert worst[name][emin - 2] > 1.9 * u
    assert len({worst["bf16"][e] for e in range(-30, 20)}) == 1


@pytest.mark.parametrize("name", DATA)
def test_figures_are_saved_with_their_data_and_drawn_again_from_it(name, tmp_path):
    data = DATA[name]()
    paths = fp.save(name, data, tmp_path / f"{name}.png")
    assert {p.suffix for p in paths} == {".png", ".json"}
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    stored = json.loads((tmp_path / f"{name}.json").read_text())
    assert stored["figure"] == name
    again = fp.redraw(tmp_path / f"{name}.json")
    assert isinstance(again, Figure)
    first = (tmp_path / f"{name}.png").read_bytes()
    fp.save(name, stored["data"], tmp_path / f"{name}.png")
    assert (tmp_path / f"{name}.png").read_bytes() == first


def test_figures_draw_on_axes_that_they_are_given():
    figure = Figure()
    top, middle, bottom, last = figure.subplots(4)
    data = fp.staircase_data("e2m1")
    assert fp.staircase(top, **data) is top
    assert fp.sawtooth(middle, **data) is middle
    assert fp.number_line(bottom, **fp.number_line_data()) is bottom
    assert fp.error_by_magnitude(last, **fp.error_by_magnitude_data(["fp16"], -20, 0)) is last


def test_modes_has_a_panel_for_each():
    figure = fp.modes(**fp.modes_data("e2m1", ["nearest", "up", "down", "to_odd"]))
    shown = [axes.get_title("left") for axes in figure.axes if axes.get_visible()]
    assert shown == ["nearest", "up", "down", "to odd"]
    assert len(figure.axes) == 6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fp.number_line_data(["fp16"]), "at most 8 bits; got fp16"),
        (lambda: fp.number_line_data(["e8m0"]), "formats with a zero.*got e8m0"),
        (lambda: fp.staircase_data("bf16"), "at most 8 bits; got bf16"),
        (lambda: fp.staircase_data("e2m1", "stochastic"), "no staircase: expected one of nearest"),
        (lambda: fp.staircase_data("e2m1", "even"), "unknown rounding 'even'"),
        (lambda: fp.error_by_magnitude_data(["fp17"]), "unknown format 'fp17'"),
        (lambda: fp.error_by_magnitude_data(["fp16"], rounding="stochastic"), "needs `random`"),
    ],
)
def test_wrong_input_says_what_would_be_right(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_infinity_ends_a_staircase():
    data = fp.staircase_data("e5m2", "nearest", "ieee")
    assert data["values"][0] is data["values"][-1] is None
    assert data["at"][-1] == 61440
    line = fp.staircase(**data).lines[1]
    assert max(line.get_ydata()) == 57344
    assert not math.isinf(max(line.get_xdata()))
