"""`precsim sweep`: the command, its table, its figure, and what it says of wrong ones."""

import json
import os
import signal

import numpy as np
import pytest
from matplotlib import colors
from matplotlib.figure import Figure
from tiny_runs import TINY, final, tiny

import precsim as ps
from precsim.show import gallery, style
from precsim.show.progress import SweepLine
from precsim.show.sweep_plot import sweep_plot
from precsim.show.terminal import console

SMALL = [word for key, value in TINY.items() if key not in ("policy", "observe")
         for word in ("--set", f"{key}={value}")]  # fmt: skip
GRID = ["--recipe", "fp32,fp16_scaled", "--over", "lr=0.001,0.003", "--seeds", "0-1"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    over = {"recipe": ["fp32", "fp16_scaled"], "lr": [0.001, 0.003]}
    return ps.sweep(tiny(), over, range(2), out=tmp_path_factory.mktemp("sweeps") / "lr")


def test_the_command_and_again_from_its_directory_alone(narrow, swept, tmp_path):
    code, out, err = narrow("sweep", *GRID, *SMALL, "-o", tmp_path / "a")
    assert code == 0
    lines = out.splitlines()
    assert lines[1].split() == ["recipe", "lr", "loss", "min", "to", "max", "diverged"]
    rows = [line.split() for line in lines[3:7]]
    assert [row[:2] for row in rows] == [
        ["fp32", "0.001"], ["fp32", "0.003"], ["fp16_scaled", "0.001"], ["fp16_scaled", "0.003"],
    ]  # fmt: skip
    for row, expected in zip(rows, swept.rows, strict=True):
        assert row[2] == f"{expected['loss']:.3f}"
        assert (row[3] == "*") == expected["best"]
        assert row[-4:] == [f"{expected['low']:.3f}", "to", f"{expected['high']:.3f}", "-"]
    assert out.count("none of 4 runs diverged") == 2
    said = err.splitlines()
    assert len(said) == 8
    assert said[0].startswith("1 of 8: fp32, lr=0.001, seed 0: validation loss 4.")
    for cell in swept.grid.cells:
        assert final(tmp_path / "a" / cell.name) == final(swept.path / cell.name)
    assert narrow("sweep", "-o", tmp_path / "a") == (0, out, "")


def test_numbers_for_a_program(call, swept):
    code, out, err = call("sweep", "-o", swept.path, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(json.dumps(swept.to_dict()))


def test_a_run_that_diverges_is_a_finding(narrow, tmp_path):
    words = ["--set", "policy=fp16", "--set", "optimizer=sgd", "-o", tmp_path / "a"]
    code, out, err = narrow("sweep", "--over", f"loss_scale=1,{2.0**40:g}", *SMALL, *words)
    assert code == 1
    assert "1 of 1" in out.splitlines()[4]
    assert "diverged after 1 step" in err.replace("\n", " ")
    assert "precsim: 1 of 2 runs diverged: loss_scale=1.09951e+12, seed 0; `precsim diff" in err
    assert "--step 0` looks into the first" in err


def test_ctrl_c_exits_with_130_and_the_command_that_goes_on(call, swept, tmp_path, monkeypatch):
    note = ps.Run.note

    def press(self, record, *rest):
        if self.config.lr == 0.003 and record.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return note(self, record, *rest)

    folder, figure = tmp_path / "a b", tmp_path / "f.png"
    with monkeypatch.context() as patch:
        patch.setattr(ps.Run, "note", press)
        code, out, err = call("sweep", *GRID, *SMALL, "-o", folder, "-f", figure)
    assert (code, out) == (130, "")
    assert "stopped in fp32, lr=0.003, seed 0 before step 3, 1 of 8 runs are over" in err
    assert f"continue with `precsim sweep -o '{folder}' -f {figure}`" in err
    code, _, err = call("sweep", "-o", folder, "-f", figure)
    assert code == 0
    assert err.startswith("1 of 8 runs are over already\n2 of 8: fp32, lr=0.003")
    for cell in swept.grid.cells:
        assert final(folder / cell.name) == final(swept.path / cell.name)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "has no sweep to go on with"),
        (["--over", "lr"], "--over 'lr': expected key=value,value"),
        (["--over", "lr="], "the grid is empty"),
        (["--over", "lr=1,,2"], "a value is missing"),
        (["--over", "lr=[1,2"], "is no list"),
        (["--over", "lr=1", "--over", "lr=2"], "--over lr comes twice"),
        (["--over", "lrr=1"], "did you mean lr?"),
        (["--over", "lr=fast"], "lr must be a number; got 'fast'"),
        (["--over", "loss_scale=-1"], "loss scale must be a positive number"),
        (["--recipe", "fp33"], "unknown recipe 'fp33'"),
        (["--recipe", "fp32", "--over", "recipe=bf16"], "expected one of the two"),
        (["--seeds", "2-0"], "expected seeds such as 0-2"),
        (["--over", "lr=1,2", "--seeds", "0-600"], "1,202 runs (2 lr x 601 seeds)"),
        (["--over", "lr=1", "-f", "a.gif"], "ends in .png, .svg or .pdf"),
        (["--over", "lr=1", "--text", "no.txt"], "no file 'no.txt'"),
        (["--over", "lr=1", "--set", "lr=2"], "lr is set to 2 and swept over"),
        (["no.toml", "--over", "lr=1"], "cannot read no.toml"),
    ],
)
def test_wrong_commands_are_one_sentence(call, tmp_path, words, sentence):
    code, out, err = call("sweep", *words, "-o", tmp_path / "a")
    assert (code, out) == (2, "")
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "a" / "sweep.json").exists()


def test_later_sources_win(call, tmp_path):
    (tmp_path / "c.toml").write_text('eps = 0.5\nobserve = "counts"\nwidth = 6\nheads = 4')
    words = [tmp_path / "c.toml", "--recipe", "half", *SMALL, "--set", "loss_scale=static:2"]
    code, _, _ = call("sweep", *words, "--steps", "1", "-o", tmp_path / "a")
    assert code == 0
    config = ps.open(tmp_path / "a" / "half-seed=0").config
    assert (config.eps, config.observe, config.loss_scale, config.steps, config.width) == (
        0.5, "counts", "static:2", 1, 4,
    )  # fmt: skip
    assert config.policy == str(ps.recipe("half").policy)


def line(name, fmt, loss, diverged=(0, 0, 0), best=None):
    """Return a recipe's data for the figure, each range from 0.1 below the mean to 0.2 above."""
    wide = {"low": [x - 0.1 for x in loss], "high": [x + 0.2 for x in loss]}
    return {"name": name, "format": fmt, "loss": loss, **wide, "diverged": list(diverged),
            "seeds": [3, 3, 3], "best": best}  # fmt: skip


def drawn(axes, marker):
    """Return where a figure has a marker, as (x, y), by hue."""
    return {
        colors.to_hex(one.get_color()): one.get_xydata().tolist()
        for one in axes.lines
        if one.get_marker() == marker and len(one.get_xydata())
    }


def test_the_figure_by_its_data():
    nan = float("nan")
    lines = [
        line("fp32", "fp32", [3.0, 2.0, 9.0], best=1),
        line("fp16", "fp16", [nan, 2.5, 2.25], (3, 1, 0), best=2),
    ]
    axes = sweep_plot(over="lr", values=[0.1, 0.001, 0.01], guess=3.2, title="here",
                      panels=[{"title": "", "lines": lines}])  # fmt: skip
    black, blue = (colors.to_hex(style.look(fmt).hue) for fmt in ("fp32", "fp16"))
    assert axes.get_title(loc="left") == "here"
    assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "lr")
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "$10^{-3}$", "$10^{-2}$", "$10^{-1}$",
    ]  # fmt: skip
    high = drawn(axes, "^")[black][0][1]  # 9 has no room: a triangle at the top of what has
    assert 3.2 < high < 4
    assert drawn(axes, "o")[black] == [[0.001, 2.0], [0.01, high], [0.1, 3.0]]
    assert drawn(axes, "^")[black] == [[0.01, high]]
    assert drawn(axes, "*")[black] == [[0.001, 2.0]]
    assert drawn(axes, "*")[blue] == [[0.01, 2.25]]
    crosses = [one.get_xydata()[0].tolist() for one in axes.lines if one.get_marker() == "x"]
    assert [x for x, _ in crosses] == [0.001, 0.1]
    height = (high - axes.get_ylim()[0]) / np.ptp(axes.get_ylim())
    assert all(height < y < 1 for _, y in crosses)
    assert "1 of 3" in [text.get_text() for text in axes.texts]
    band = axes.collections[0].get_paths()[0].vertices
    assert [0.001, 1.9] in band.tolist()
    assert [0.001, 2.2] in band.tolist()
    names = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert names == ["fp32", "fp16", "best"]


@pytest.mark.parametrize(
    ("values", "scale", "labels"),
    [
        ([16, 32, 64], "log", ["16", "32", "64"]),
        ([2.0**10, 2.0**16, 2.0**24], "log", ["$2^{10}$", "$2^{16}$", "$2^{24}$"]),
        ([3e-4, 1e-3, 3e-3], "log", ["$3\\cdot10^{-4}$", "$10^{-3}$", "$3\\cdot10^{-3}$"]),
        ([0.9, 0.95, 0.99], "linear", ["0.9", "0.95", "0.99"]),
        ([0.0, 0.01, 0.1], "linear", ["0", "0.01", "0.1"]),
        (["cosine", "constant", "none"], "linear", ["cosine", "constant", "none"]),
        ([1024.0, "dynamic", "none"], "linear", ["1024", "dynamic", "none"]),
    ],
)
def test_the_axis_of_what_is_swept(values, scale, labels):
    panels = [{"title": "", "lines": [line("", "bf16", [3.0, 2.0, 2.5])]}]
    own = Figure().add_subplot()
    assert sweep_plot(own, over="x", values=values, panels=panels) is own
    assert own.get_xscale() == scale
    assert [label.get_text() for label in own.get_xticklabels()] == labels


def test_a_panel_for_each_value_of_the_second_number():
    panels = [{"title": f"width={w}", "lines": [line("", "bf16", [3.0, w / 4, 2.5])]}
              for w in (4, 8, 16)]  # fmt: skip
    axes = sweep_plot(over="lr", values=[1, 2, 3], panels=panels, title="here")
    assert [one.get_title(loc="left") for one in axes.figure.axes] == [
        "width=4", "width=8", "width=16",
    ]  # fmt: skip
    assert axes.figure.get_suptitle() == "here"
    with pytest.raises(ValueError, match="has 3 panels: expected no axes"):
        sweep_plot(axes, over="lr", values=[1, 2, 3], panels=panels)


def test_the_figure_of_a_sweep_is_saved_with_its_data_and_drawn_again(call, swept, tmp_path):
    path = tmp_path / "new" / "f.png"
    code, _, err = call("sweep", "-o", swept.path, "-f", path)
    assert (code, err.replace("\n", "")) == (0, f"wrote {path}, {path.with_suffix('.json')}")
    stored = json.loads(path.with_suffix(".json").read_text())
    assert stored["data"]["values"] == [0.001, 0.003]
    (panel,) = stored["data"]["panels"]
    assert panel["lines"][1]["loss"] == [row["loss"] for row in swept.rows[2:]]
    assert gallery.redraw(path.with_suffix(".json")).axes
    axes = ps.figure("sweep", swept)
    assert axes.get_title(loc="left") == "Loss after 5 steps, by lr"
    assert axes.get_ylabel() == "validation loss"
    assert ps.figure("sweep", swept, title="mine").get_title(loc="left") == "mine"
    for name, what in (("blame", swept), ("sweep", swept.runs["fp32-lr=0.001-seed=0"])):
        with pytest.raises(ValueError, match=r"the figure sweep is of what ps.sweep returned"):
            ps.figure(name, what)


def test_recipes_without_a_number_lie_side_by_side(tmp_path):
    found = ps.sweep(tiny(), {"recipe": ["fp32", "bf16"]}, out=tmp_path / "a")
    axes = ps.figure("sweep", found)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["fp32", "bf16"]
    assert [sum(np.isfinite(row["loss"]) for row in found.rows)] == [2]


def test_one_line_on_a_terminal(monkeypatch, capsys, swept):
    import sys

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    from precsim.runs.sweep import Progress

    cell = swept.grid.cells[2]
    with SweepLine(console(sys.stderr, os.environ)) as shown:
        shown(Progress(cell, 2, 8))
        shown(Progress(cell, 2, 8, 4, 2.5))
        line = str(shown.live.status)
    assert line.startswith("3/8 fp16_scaled, lr=0.001, seed 0: step 4/5, loss 2.500, ")
    assert line.endswith(" left")
    assert "2 of 8 runs are over already" in capsys.readouterr().err
