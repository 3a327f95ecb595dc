"""Figures of recorded runs: what is drawn is what was measured, and the command line reaches all."""

import json
import math

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import precsim as ps
from precsim.analyse.chance import averaged, rounded_by
from precsim.analyse.moment import relative_error
from precsim.analyse.recorded import moment_at
from precsim.formats.modes import Rounding
from precsim.show import gallery, style
from precsim.show.blame_plot import blame_bars
from precsim.show.chance_plot import chance
from precsim.show.heat_plot import heat_map
from precsim.show.ops_plot import divergence, scale_chart
from precsim.show.pareto_plot import frontier, pareto
from precsim.show.scale_plot import scale_timeline
from precsim.show.swamped_plot import swamped

E4M3 = (
    "weights=fp32 activations=fp32 gradients=e4m3:saturate weight_gradients=e4m3:saturate loss=fp32"
)
CONFIG = ps.TrainConfig(
    data="reverse", layers=1, heads=1, width=8, context=16, batch=2, steps=4, eval_every=4,
    checkpoint_every=2, policy=E4M3, micro_batches=8, observe="shadow",
)  # fmt: skip
GUILTY = "gradients/loss/cross_entropy_grad"
OP = {"pareto": "gradients/*", "blame": "gradients/[lh]*"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    bad = ps.train(CONFIG, out=folder / "bad")
    low = CONFIG.change(policy=str(ps.Policy.parse("bf16")), observe="counts")
    return {"bad": bad, "low": ps.train(low, out=folder / "low")}


def test_errors_that_were_not_recorded_are_no_empty_picture(call, tmp_path):
    """Of an op in fast arithmetic there is no exact result, unless a shadow computes it."""
    config = CONFIG.change(policy=f"{E4M3} arithmetic=fast", observe="hist", steps=1)
    run = ps.train(config, out=tmp_path / "run")
    code, _, err = call("plot", run.path, "--figure", "errors", "-o", tmp_path / "e.png")
    assert code == 2
    assert "recorded at observe=hist: errors of ops need observe=shadow" in err
    assert not (tmp_path / "e.png").exists()


@pytest.mark.parametrize("name", list(gallery.KINDS))
def test_every_figure_is_drawn_saved_and_drawn_again_from_its_data(runs, name, call, tmp_path):
    kind = gallery.KINDS[name]
    words = ["plot", runs["bad"].path, "--figure", name, "-o", tmp_path / "new" / f"{name}.png"]
    words += ["--step", 1] * (kind.of == gallery.STEP) + ["--tol", 0.6]
    words += ["--op", OP[name]] if name in OP else []
    code, out, err = call(*words)
    assert (code, out) == (0, "")
    assert f"{name}.png" in err.replace("\n", "")
    data = json.loads((tmp_path / "new" / f"{name}.json").read_text())
    assert data["figure"] == name
    assert data["data"]["title"].startswith(kind.title)
    assert gallery.redraw(tmp_path / "new" / f"{name}.json").axes
    picture = (tmp_path / "new" / f"{name}.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    gallery.save(name, data["data"], tmp_path / f"{name}.png")
    assert (tmp_path / f"{name}.png").read_bytes() == picture


def test_python_gets_axes(runs):
    axes = gallery.draw("divergence", [runs["bad"]], step=1, title="here")
    assert isinstance(axes, Axes)
    assert axes.get_title(loc="left") == "here"
    assert isinstance(gallery.draw("loss_scale", [runs["bad"]]), Axes)
    with pytest.raises(ValueError, match="blame is of one step: expected its number, step=137"):
        gallery.draw("blame", runs["bad"])
    with pytest.raises(ValueError, match="loss_scale is of one run; got 2 runs"):
        gallery.draw("loss_scale", [runs["bad"], runs["low"]])
    own = Figure().add_subplot()
    assert swamped(own, runs=gallery.collect("swamped", [runs["low"]])["runs"]) is own


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--figure", "nosuch"], "no figure 'nosuch': expected one of scales"),
        (["--figure", "blame"], "is of one step: expected its number, step=137 or --step 137"),
        (["--figure", "blame", "--step", 99], "no state before step 99"),
        (
            ["--figure", "blame", "--step", 1, "--op", "nosuch"],
            "no op of that step's gradient matches 'nosuch'",
        ),
        (["--figure", "swamped", "-o", "x.gif"], "expected a name that ends in .png"),
        (["--figure", "pareto", "--step", 1, "--tol", 0], "search needs a tolerance > 0"),
    ],
)
def test_what_cannot_be_drawn_is_said(runs, call, words, sentence):
    code, out, err = call("plot", runs["low"].path, *words)
    assert (code, out) == (2, "")
    assert sentence in " ".join(err.split())


def test_the_list_of_figures_and_runs_that_are_missing_or_too_many(runs, call):
    code, out, _ = call("plot")
    assert code == 0
    assert {line.split()[0] for line in out.splitlines()} >= set(gallery.KINDS)
    assert json.loads(call("plot", "--json")[1]).keys() == gallery.KINDS.keys()
    assert "the figure drift is of one run; got 0 runs" in call("plot", "--figure", "drift")[2]
    two = (runs["bad"].path, runs["low"].path)
    assert "got 2 runs" in call("plot", *two, "--figure", "flushed")[2]


def test_the_scale_chart_has_each_ops_magnitudes_and_the_ends_of_its_format(runs):
    data = gallery.collect("scales", [runs["bad"]], step=1)
    recorded = {r["path"]: r for r in runs["bad"].ops(step=1, phase="backward").rows()}
    guilty = next(row for row in data["rows"] if row["path"] == GUILTY)
    assert guilty["rms"] == recorded[GUILTY]["rms"]
    assert guilty["amax"] == recorded[GUILTY]["amax"]
    axes = scale_chart(**data)
    assert "e4m3 max 448" in {text.get_text() for text in axes.texts}
    y = [row["path"] for row in data["rows"]].index(GUILTY)
    dots = [line for line in axes.get_lines() if list(line.get_ydata()) == [y]]
    assert dots[0].get_xdata()[0] == math.log2(guilty["rms"])
    assert dots[0].get_marker() == "v"
    fewer = gallery.scale_chart_data(gallery.ops_of(runs["bad"], 1), most=5)
    assert len(fewer["rows"]) == 5
    assert fewer["left_out"] == len(data["rows"]) - 5


def test_the_heat_map_has_what_was_recorded(runs):
    data = gallery.collect("flushed", [runs["bad"]])
    assert data["steps"] == [0, 1, 2, 3]
    row = data["values"][data["paths"].index(GUILTY)]
    recorded = [runs["bad"].ops(step=k, op=GUILTY)["flushed_share"][0] for k in range(4)]
    assert row == recorded
    axes = heat_map(**data)
    mesh = axes.collections[0].get_array()
    assert mesh[data["paths"].index(GUILTY), 2] == pytest.approx(recorded[2])
    nothing = heat_map(column="err_u", paths=[], steps=[], values=[])
    assert nothing.texts[0].get_text() == "nowhere"
    with pytest.raises(ValueError, match="the heat map shows flushed_share"):
        gallery.heat_map_data(runs["bad"].ops(), "rms")


def test_divergence_flags_the_first_abnormal_op_and_draws_what_has_no_number():
    axes = divergence(
        index=[0, 1, 2, 7], error=[0.5, 4.0, "inf", 6.0], expected=[1, 1, 5, "inf"],
        abnormal=[False, True, True, True], backward=1,
        first={"place": 1, "path": "gradients/x/mul", "verdict": "generated here"},
    )  # fmt: skip
    texts = [text.get_text() for text in axes.texts]
    assert "first abnormal op: 1, generated here\ngradients/x/mul" in texts
    ok, bad, beyond = (line for line in axes.get_lines() if line.get_marker() in "o^")
    assert ok.get_ydata().tolist() == [0.5]
    assert bad.get_xdata().tolist() == [1, 2, 3]
    assert beyond.get_xdata().tolist() == [2]


def test_blame_bars_are_pairs_and_an_infinite_one_is_as_long_as_the_axis():
    rows = [
        {"site": "a", "alone": 0.3, "without": 0.1, "removes": 0.75},
        {"site": "b", "alone": "inf", "without": 0.4, "removes": 0.0},
    ]
    axes = blame_bars(rows=rows, total=0.4, u=0.125)
    end = axes.get_xlim()[1]
    assert end > 0.4
    assert [bar.get_width() for bar in axes.patches] == [0.3, 0.1, end, 0.4]
    assert "removes 75%" in {text.get_text() for text in axes.texts}
    assert "all low: 0.4 = 3.2 u" in {t.get_text() for t in axes.get_legend().get_texts()}


def test_the_frontier_is_what_no_other_beats():
    cost = [0.0, 0.1, 0.1, 0.2, 0.3, 1.0]
    error = [0.9, 0.5, 0.4, 0.6, 0.1, math.inf]
    assert frontier(cost, error) == [0, 2, 4]
    assert frontier([], []) == []
    axes = pareto(cost=cost, error=error, tolerance=0.2, found={"cost": 0.3, "error": 0.1, "sites": ["a"]})  # fmt: skip
    stairs = next(line for line in axes.get_lines() if line.get_label() == "no other is better")
    assert stairs.get_xdata().tolist() == [0.0, 0.1, 0.3]


def test_pareto_counts_the_values_of_the_sites_that_are_high(runs):
    data = gallery.collect("pareto", [runs["bad"]], step=1, op="gradients/*", tolerance=0.6)
    assert (data["cost"][0], data["sites"][0]) == (0.0, 0)
    assert max(data["cost"]) == 1.0
    assert data["found"]["error"] == min(
        (e for c, e in zip(data["cost"], data["error"], strict=True) if c == data["found"]["cost"])
    )


def test_by_chance_the_mean_gets_better_and_to_nearest_it_does_not(runs):
    moment = moment_at(runs["low"], 1)
    found = averaged(moment, 16)
    truth = moment.reference()
    nearest = relative_error(moment.gradients(), truth)
    assert found["nearest"].mean == pytest.approx([nearest] * 16)
    assert found["stochastic"].mean[-1] < 0.6 * found["stochastic"].mean[0]
    policy = rounded_by(moment.policy, Rounding.STOCHASTIC)
    first = relative_error(moment.at(seed=1, policy=policy).gradients(), truth)
    assert found["stochastic"].mean[0] == pytest.approx(first)
    assert rounded_by(ps.Policy.parse("fp32"), Rounding.STOCHASTIC) == ps.Policy.parse("fp32")
    with pytest.raises(ValueError, match="at least 1 draw"):
        averaged(moment, 0)
    axes = chance(**gallery.chance_data(found, "bf16"))
    drawn = next(line for line in axes.get_lines() if "by chance" in line.get_label())
    assert drawn.get_ydata().tolist() == list(found["stochastic"].mean)


def test_the_loss_scale_has_a_cross_for_each_skip_and_names_its_op():
    skips = [
        {"step": 0, "scale": 8.0, "path": "gradients/x/mul", "helps": True, "calibration": True},
        {"step": 2, "scale": 8.0, "path": "activations/y/mul", "helps": False,
         "calibration": False},
    ]  # fmt: skip
    axes = scale_timeline(
        steps=[0, 1, 2, 3], scale=[8.0, 4.0, 8.0, 0.0], skipped=[True, False, True, False],
        flushed=[0.0, 0.1, "nan", 0.2], headroom=["nan", 1.5, -1.0, 2.0], skips=skips,
    )  # fmt: skip
    line, *crosses = axes.get_lines()
    assert np.asarray(line.get_ydata())[:3].tolist() == [3, 2, 3]
    assert np.isnan(line.get_ydata()[3])
    assert [(c.get_xdata()[0], c.get_ydata()[0]) for c in crosses] == [(0, 3), (2, 3)]
    said = axes.texts[0].get_text()
    assert "gradients/x/mul" in said
    assert "activations/y/mul (forward: no scale helps)" in said
    _, headroom, flushed = axes.figure.axes
    assert headroom.get_lines()[0].get_ydata()[1] == 1.5
    assert flushed.get_lines()[0].get_ydata()[3] == 0.2


def test_swamped_draws_the_share_of_each_step(runs):
    data = gallery.collect("swamped", [runs["low"]])["runs"][0]
    assert data["lost"] == runs["low"].steps["lost_updates"].tolist()
    assert data["format"] == "bf16"
    axes = swamped(runs=[data | {"lost": [0.5, "nan", 0.25, 0.75]}])
    raw, mean = axes.get_lines()
    assert raw.get_ydata().tolist() == [0.5, 0.25, 0.75]
    assert mean.get_ydata().tolist() == [0.5, 0.25, 0.75]


def test_runs_of_one_format_differ_in_line_style():
    found = style.looks(["bf16", "fp32", "bf16", "bf16"])
    assert len({one.hue for one in found}) == 2
    assert len({(one.hue, one.line) for one in found}) == 4
    assert found[0] == style.look("bf16")
