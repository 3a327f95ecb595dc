"""What stands in figures: labels cover nothing that is drawn, and say what the tables say."""

import numpy as np
import pytest

import precsim as ps
from precsim.runs.results import LAST
from precsim.runs.summary import summarize
from precsim.show import gallery, plot
from precsim.show.blame_plot import blame_bars
from precsim.show.canvas import new_axes, step_axis
from precsim.show.chance_plot import chance
from precsim.show.drift_plot import distance, local_error, split
from precsim.show.heat_plot import heat_map
from precsim.show.ops_plot import divergence, scale_chart
from precsim.show.pareto_plot import pareto
from precsim.show.scale_plot import scale_timeline
from precsim.show.style import share
from precsim.show.swamped_plot import swamped

STEPS = [0, 5, 10]
CURVE = [0.5, 0.4, 0.6]
DRIFT = {"name": "a", "format": "bf16", "u": 2.0**-8, "step": STEPS, "now": CURVE, "moved": CURVE,
         "distance": CURVE, "chaos": CURVE,
         **{f"rho{end}": CURVE for end in ("", "_low", "_high")}}  # fmt: skip
TWO = [DRIFT, {**DRIFT, "name": "another", "format": "fp16"}]
LOST = [{"name": run["name"], "format": run["format"], "step": STEPS, "lost": CURVE, "of_all": 0.47}
        for run in TWO]  # fmt: skip
KEYS = {
    "local_error": lambda: local_error(runs=TWO),
    "distance": lambda: distance(runs=TWO),
    "split": lambda: split(run=DRIFT),
    "swamped": lambda: swamped(runs=LOST),
    "chance": lambda: chance(rows=[{"rounding": "nearest", "mean": CURVE, "single": 0.5},
                                   {"rounding": "stochastic", "mean": CURVE, "single": 0.5}],
                             format="bf16"),
    "pareto": lambda: pareto(cost=[0, 0.5, 1], error=CURVE, tolerance=0.3),
    "blame": lambda: blame_bars(rows=[{"site": "a", "alone": 0.3, "without": 0.4, "removes": 0.1}],
                                total=0.45, u=0.1),
    "ranges": lambda: plot.range_ladder(
        ranges=[plot.format_range(name) for name in ("fp32", "bf16")]).axes[0],
}  # fmt: skip


def laid_out(axes):
    """Return axes whose figure has been laid out, and where they are on it."""
    axes.get_figure(root=True).draw_without_rendering()
    return axes, axes.get_window_extent()


def labels_of(axis):
    """Return the labels of an axis' ticks that are within its limits."""
    low, high = sorted(axis.get_view_interval())
    ticks = [t for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
    return [t.label1.get_text() for t in ticks]


@pytest.mark.parametrize("name", list(KEYS))
def test_a_key_lies_above_the_axes_and_on_the_figure(name):
    axes, box = laid_out(KEYS[name]())
    key = axes.get_legend().get_window_extent()
    assert box.y1 <= key.y0
    whole = axes.get_figure(root=True).bbox
    assert whole.x0 <= key.x0 < key.x1 <= whole.x1
    assert key.y1 <= whole.y1


@pytest.mark.parametrize("at", [0, 12, 50, 88, 99])
def test_the_flag_of_a_first_abnormal_op_covers_no_op(at):
    path = "weight_gradients/blocks.1.ln2.weight/layer_norm_weight_grad #1"
    axes, box = laid_out(
        divergence(
            index=range(100), error=[2.0] * 100, expected=[4.0] * 100,
            abnormal=[n >= at for n in range(100)],
            first={"place": at, "path": path, "verdict": "generated here"},
        )
    )  # fmt: skip
    flag = next(text for text in axes.texts if "first abnormal" in text.get_text())
    assert flag.get_text() == f"first abnormal op: {at}, generated here\n{path}"
    place, whole = flag.get_window_extent(), axes.figure.bbox
    assert box.y1 <= place.y0
    assert place.y1 <= axes.get_legend().get_window_extent().y0
    assert whole.x0 <= place.x0 < place.x1 <= whole.x1


def test_names_of_the_parts_of_a_step_lie_below_its_ops():
    axes, _ = laid_out(
        divergence(index=range(4), error=[0.1, 8, 0.1, 2], expected=[1] * 4, abnormal=[False] * 4,
                   backward=1, update=2)
    )  # fmt: skip
    lowest = axes.transData.transform((0, 0.1))[1]
    names = {text.get_text(): text.get_window_extent().y1 for text in axes.texts}
    assert names.keys() == {"backward", "update"}
    assert max(names.values()) < lowest


def test_what_a_site_removes_stands_beside_the_axes_and_no_line_crosses_it():
    rows = [{"site": "a", "alone": 0.3, "without": 0.4, "removes": 0.1},
            {"site": "b", "alone": "inf", "without": 0.44, "removes": 0.02}]  # fmt: skip
    axes, box = laid_out(blame_bars(rows=rows, total=0.45, u=0.1))
    told = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert told.keys() == {"removes 10%", "removes 2.0%", "not finite"}
    assert told["removes 10%"].x0 >= box.x1
    assert told["removes 2.0%"].x0 >= box.x1
    assert told["not finite"].x1 <= box.x1


def test_names_of_the_ends_of_formats_lie_above_all_ops():
    rows = [{"path": "activations/a/mul", "phase": "forward", "format": "e4m3", "amin": 2.0**-12,
             "rms": 1.0, "amax": 500.0}] * 3  # fmt: skip
    axes, _ = laid_out(scale_chart(rows=rows))
    top = axes.transData.transform((0, 0))[1]
    assert len(axes.texts) == 3  # subnormal, normal, max
    assert min(text.get_window_extent().y0 for text in axes.texts) > top


@pytest.mark.parametrize("last", [0, 1, 2, 7, 39, 600])
def test_steps_are_whole(last):
    axes = new_axes(3)
    axes.plot(range(last + 1), range(last + 1), "o")
    step_axis(axes)
    labels = labels_of(laid_out(axes)[0].xaxis)
    assert labels
    assert all(label.isdigit() for label in labels)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_figure_over_the_steps_numbers_few_of_them_in_whole_ones(count):
    steps, values = list(range(count)), [0.5] * count
    few = [{key: values if isinstance(value, list) else value for key, value in run.items()}
           | {"step": steps} for run in TWO]  # fmt: skip
    drawn = [
        local_error(runs=few), distance(runs=few), split(run=few[0]),
        swamped(runs=[{**run, "step": steps, "lost": values} for run in LOST]),
        heat_map(column="flushed_share", paths=["a"], steps=steps, values=[values]),
        timeline(values, values).figure.axes[2],
        plot.loss_curves(runs=[run_of("a", values)]).axes[0],
    ]  # fmt: skip
    for axes in drawn:
        labels = labels_of(laid_out(axes)[0].xaxis)
        assert labels
        assert all(label.isdigit() for label in labels)


def timeline(scale, flushed):
    count = len(scale)
    return scale_timeline(steps=range(count), scale=scale, skipped=[False] * count, flushed=flushed,
                          headroom=[1.0] * count, skips=[])  # fmt: skip


def test_the_axis_of_what_was_flushed_ends_with_the_data_however_little():
    first = timeline([8.0] * 3, [0.0, 2e-4, 1e-4])
    flushed = laid_out(first.figure.axes[2])[0]
    assert 2e-4 < flushed.get_ylim()[1] < 4e-4
    labels = labels_of(flushed.yaxis)
    assert len(set(labels)) == len(labels) > 1
    assert labels[0] == "0%"
    assert not any("e" in label for label in labels)
    nothing = timeline([8.0] * 3, [0.0, 0.0, "nan"]).figure.axes[2]
    assert nothing.get_ylim()[0] == 0 < nothing.get_ylim()[1]


def test_a_scale_that_stays_has_a_whole_power_of_two():
    assert labels_of(laid_out(timeline([8.0] * 3, [0.0] * 3))[0].yaxis) == ["$2^{3}$"]


def test_in_a_heat_map_a_tiny_share_does_not_look_like_none():
    axes = heat_map(column="flushed_share", paths=["a"], steps=[0, 1, 2, 3],
                    values=[[0.0, 1e-6, 1e-3, "nan"]])  # fmt: skip
    mesh = axes.collections[0]
    zero, tiny, small, none = mesh.to_rgba(mesh.get_array())[0].tolist()
    assert zero == [1, 1, 1, 1]
    assert tiny == small != zero
    assert none != zero
    assert axes.get_xlabel() == "step\nwhite: 0, grey: no number"
    bar = next(one for one in axes.figure.axes if one is not axes)
    axes.figure.draw_without_rendering()
    assert labels_of(bar.yaxis)[0] == "\N{LESS-THAN OR EQUAL TO} 0.1%"


def run_of(title, losses, fmt="bf16"):
    return {"title": title, "format": fmt, "losses": losses}


def texts_of(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_a_loss_curve_ends_at_the_loss_of_the_table():
    config = ps.TrainConfig(data="reverse", layers=1, heads=1, width=8, context=16, batch=2,
                            steps=LAST + 5, eval_every=100, observe="off")  # fmt: skip
    run = ps.train(config)
    losses = [record.loss for record in run.records]
    figure = plot.loss_curves(runs=[run_of("it", losses)])
    assert f"it\n{summarize(run).loss:.3f}" in texts_of(figure)
    thick = next(line for line in figure.axes[0].get_lines() if line.get_linewidth() > 2)
    assert thick.get_ydata()[-1] == pytest.approx(run.final_loss())


def test_gaps_are_between_the_losses_as_the_table_rounds_them_and_none_is_minus_zero():
    runs = [run_of("base", [2.0004, 2.0004], "fp32"), run_of("same", [2.0001, 2.0001]),
            run_of("up", [2.0006, 2.0006], "fp16")]  # fmt: skip
    found = texts_of(plot.loss_curves(runs=runs, reference="base"))
    # 2.000, 2.000 and 2.001 in the table
    assert found == ["all 3, see below\n2.000 to 2.001", "base", "same 0.000", "up +0.001"]


def test_of_one_step_the_loss_curves_have_points_and_the_title_of_a_panel_is_earned():
    figure = plot.loss_curves(
        runs=[run_of("base", [2.0], "fp32"), run_of("far", [3.0])], reference="base", guess=2.5
    )
    (only,) = figure.axes  # the reference alone, on its own zero line, is no panel
    assert "base\n2.000" in texts_of(figure)
    assert sum(line.get_marker() == "o" for line in only.get_lines()) == 2
    low, high = only.get_ylim()
    assert low < 2.0
    assert high > 3.0


def test_guessing_is_named_beside_the_axes():
    figure = plot.loss_curves(runs=[run_of("a", [4.0, 3.0, 2.0])], guess=3.5)
    axes, box = laid_out(figure.axes[0])
    told = next(text for text in axes.texts if "guessing" in text.get_text())
    # Its extent begins with its line to the curve's end.
    assert told.get_window_extent().x0 >= box.x1 - 1


def test_labels_of_gradients_lie_within_the_axes():
    counts = np.zeros(301, int)
    counts[160 - 30 : 160 - 20] = [1, 2, 4, 8, 9, 8, 6, 4, 2, 1]
    for scale in (1.0, 2.0**16, 2.0**50):
        figure = plot.exponent_histogram(
            lowest=-160, counts=counts, ranges=[plot.format_range("fp16")], loss_scale=scale,
            label="gradients of\nthe fp32 run,\nloss / 4096",
        )  # fmt: skip
        axes, box = laid_out(figure.axes[0])
        for text in axes.texts:
            place = text.get_window_extent()
            assert box.x0 <= place.x0 <= place.x1 <= box.x1


@pytest.fixture(scope="module")
def low(tmp_path_factory):
    config = ps.TrainConfig(
        data="reverse", layers=1, heads=1, width=8, context=16, batch=2, steps=4, eval_every=4,
        checkpoint_every=2, policy=str(ps.recipe("bf16").policy), observe="counts",
    )  # fmt: skip
    return ps.train(config, out=tmp_path_factory.mktemp("low") / "low")


def test_divergence_numbers_ops_as_the_diff_does(low):
    found = ps.diff(low, 2)
    first = found.first_abnormal()
    assert first is not None
    assert first.of_optimizer  # behind ops that are not drawn
    data = gallery.collect("divergence", [low], step=2)
    assert len(data["index"]) < len(found.rows)
    for index, error in zip(data["index"], data["error"], strict=True):
        assert found.rows[index].total == error
    assert data["index"][data["first"]["place"]] == first.index
    axes = divergence(**data)
    assert any(f"first abnormal op: {first.index}," in text.get_text() for text in axes.texts)
    labels = [label for label in labels_of(laid_out(axes)[0].xaxis) if label]
    ticks = [round(t) for t in axes.get_xticks() if 0 <= t < len(data["index"])]
    assert labels == [str(data["index"][tick]) for tick in ticks]
    assert ticks[-1] != data["index"][ticks[-1]]


def test_the_scale_chart_tells_calls_of_one_op_apart(low):
    axes = scale_chart(**gallery.collect("scales", [low], step=2))
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(set(names)) == len(names)
    assert "gradients/blocks.0.attn/matmul #1" in names


def test_the_key_of_lost_updates_has_the_share_of_the_table(low):
    data = gallery.collect("swamped", [low])
    told = swamped(**data).get_legend().get_texts()[0].get_text()
    assert told == f"low (weights in bf16), {share(summarize(low).lost_updates)} in all"
