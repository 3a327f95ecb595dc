"""The report as a file: what is in it, that text stays text, that big runs stay small."""

import base64
import gzip
import itertools
import json
import re
import shlex
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import Stop, tiny

import precsim as ps
from precsim.analyse import twins
from precsim.analyse.drift import local
from precsim.analyse.recorded import moment_at
from precsim.report import page
from precsim.report.collect import collect
from precsim.report.drifts import drifts
from precsim.report.player import choose
from precsim.report.write import names
from precsim.runs.config import parse_assignments
from precsim.runs.files import RunError

ROOT = Path(__file__).resolve().parents[1]
POLICY = "activations=fp16 gradients=fp16 weight_gradients=fp16 weights=fp16 master_weights=fp32"
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs: one whose loss scale is too large at first, one in which gradients flush."""
    top = tmp_path_factory.mktemp("runs")
    common = {"steps": 8, "observe": "hist", "checkpoint_every": 3}
    ps.train(tiny(policy=POLICY, loss_scale="dynamic:1e8:3", **common), out=top / "scaled")
    low = "activations=e4m3 gradients=e4m3 weight_gradients=e4m3 master_weights=fp32"
    ps.train(tiny(policy=low, loss_scale="static:0.001", **common), out=top / "flushed")
    return top


def rendered(folder, *which, rows=1000, points=3, titles=None):
    pytest.importorskip("jinja2")
    pytest.importorskip("plotly")
    found = [
        collect(ps.open(folder / name), title, rows=rows, points=points)
        for name, title in zip(which, titles or which, strict=True)
    ]
    return page.render(found, "precsim report again")


def embedded(html, name="data"):
    packed = re.search(rf'id="{name}">([A-Za-z0-9+/=]+)<', html).group(1)
    return gzip.decompress(base64.b64decode(packed)).decode()


class Text(HTMLParser):
    """The text of a page outside of scripts and styles, its tables, and the places it points to."""

    def __init__(self, html):
        super().__init__()
        self.text, self.links, self.tags, self.rows, self.open = [], [], [], [], []
        self.feed(html)
        self.text = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.links += [v for k, v in attrs if k in ("src", "href", "action", "data")]

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text.append(data)
            if self.rows and {"td", "th"} & set(self.open):
                self.rows[-1][-1] += data


def test_the_page_reads_without_its_script(folder):
    html = rendered(folder, "scaled", "flushed")
    read = Text(html)
    for name in ("scaled", "flushed"):
        run = ps.open(folder / name)
        assert f"validation loss of {run.valid_loss():.2f}" in read.text
        last = run.records[-1]
        assert [str(last.step), f"{last.loss:.5g}"] in [row[:2] for row in read.rows]
        command = next(c for c in html.split("<pre>")[1].splitlines() if c.endswith(f"-o {name}"))
        assert command.startswith("precsim train --set")
    # the worst op of the static table is one in trouble, with the share that the trace has
    trouble = ps.open(folder / "flushed").trouble
    worst = next(row for row in read.rows if len(row) == 8 and row[0].startswith("gradients/"))
    path, _, call = worst[0].partition(" #")
    ops = ps.open(folder / "flushed").ops(trouble.step, op=path, call=int(call or 0))
    assert worst[4] == f"{ops['flushed_share'][0]:.0%}"
    assert worst[2] == f"{ops['n'][0]:,}"


def test_every_skip_is_in_the_page_with_its_op(folder):
    run = ps.open(folder / "scaled")
    skipped = [r.step for r in run.records if r.skipped]
    assert skipped
    rows = {row[0]: row for row in Text(rendered(folder, "scaled")).rows if len(row) == 5}
    for step in skipped:
        ops = run.ops(step)
        bad = (ops["overflowed"] + ops["nonfinite_in"]) > 0
        assert rows[str(step)][2] == ops["path"][bad][0]


def test_the_page_points_nowhere(folder):
    html = rendered(folder, "scaled")
    assert set(Text(html).links) == {"#player"}
    assert "default-src 'none'" in html
    for template in (Path(page.__file__).parent / "templates").iterdir():
        assert not re.search(r"https?://|@import|url\(", template.read_text("utf-8"))


def test_text_of_a_run_stays_text(folder, tmp_path):
    html = rendered(folder, "scaled", titles=[EVIL])
    read = Text(html)
    assert "img" not in read.tags
    assert read.tags.count("script") == 3
    assert EVIL in read.text
    assert json.loads(embedded(html))["runs"][0]["name"] == EVIL
    file = tmp_path / "<b>text & more<b>.txt"
    file.write_bytes(b"so be it. " * 200)
    ps.train(tiny(data=str(file), steps=2), out=tmp_path / "odd")
    html = rendered(tmp_path, "odd")
    assert f"trained on {file} for 2 steps" in Text(html).text
    assert "<b>text" not in html


def test_the_script_gets_what_the_trace_has(folder):
    run = ps.open(folder / "flushed")
    player = json.loads(embedded(rendered(folder, "flushed", rows=5000)))["runs"][0]["player"]
    assert [columns["step"] for columns in player["steps"]] == list(range(8))
    for columns in (player["steps"][0], player["steps"][-1]):
        ops = run.ops(columns["step"])
        places = [tuple(player["ops"][number]) for number in columns["op"]]
        assert places == list(zip(ops["path"].tolist(), ops["call"].tolist(), ops["format"].tolist(),
                                  strict=True))  # fmt: skip
        for name in ("n", "zeros", "flushed", "subnormal", "swamped", "updates"):
            assert columns[name] == ops[name].tolist()
        assert columns["overflow"] == (ops["overflowed"] + ops["saturated"]).tolist()
        for trimmed, whole in zip(columns["hist"], ops["histogram"], strict=True):
            dense = np.zeros_like(whole)
            if trimmed:
                dense[trimmed[0] : trimmed[0] + len(trimmed) - 1] = trimmed[1:]
            assert dense.tolist() == whole.tolist()


def test_the_same_runs_give_the_same_page(folder):
    assert rendered(folder, "scaled") == rendered(folder, "scaled")


def test_a_long_run_is_cut_to_a_choice_of_steps_and_says_so(folder):
    whole, cut = (rendered(folder, "scaled", rows=rows) for rows in (100_000, 300))
    assert "are in this page" not in whole
    player = json.loads(embedded(cut))["runs"][0]["player"]
    steps = [columns["step"] for columns in player["steps"]]
    assert 2 <= len(steps) < 8
    assert (steps[0], steps[-1]) == (0, 7)
    assert f"{len(steps)} of the 8 steps whose ops were recorded are in this page" in Text(cut).text
    assert len(embedded(cut)) < len(embedded(whole))


def test_chosen_steps():
    assert choose([3, 5, 9], 5) == [3, 5, 9]
    assert choose([], 5) == []
    assert choose(list(range(101)), 5) == [0, 25, 50, 75, 100]
    chosen = choose(list(range(1000)), 20, must=[7, 7, 333, 5000])
    assert {0, 7, 333, 999} <= set(chosen)
    assert len(chosen) <= 20
    assert chosen == sorted(set(chosen))
    assert len(choose(list(range(1000)), 3, must=range(500))) == 3


def test_drift_is_that_of_the_checkpoints_and_between_them_where_they_are_few(folder, monkeypatch):
    run = ps.open(folder / "flushed")
    assert [point.step for point in drifts(run, 3)] == [0, 3, 6]
    assert [point.step for point in drifts(run, 2)] == [0, 6]
    assert drifts(run, 0) == []
    found = drifts(run, 5)
    assert [point.step for point in found] == [0, 2, 4, 5, 7]
    for point in found:
        assert point.drift == local(moment_at(run, point.step))
    monkeypatch.setattr(sys.modules[drifts.__module__], "SHORT", 6)
    assert [point.step for point in drifts(run, 10)] == [0, 3, 6]


def test_beside_a_twin(folder):
    run = ps.open(folder / "flushed")
    told = []
    one = collect(run, "flushed", rows=1000, points=3, twin=True,
                  on_step=lambda done, loss: told.append(done))  # fmt: skip
    assert told == list(range(1, 9))
    expected = twins.drifts(run)
    assert [(p.step, p.drift) for p in one.drift] == [(p.step, p.gradient) for p in expected.points]
    pytest.importorskip("jinja2")
    pytest.importorskip("plotly")
    html = page.render([one], "again")
    last = expected.points[-1]
    rows = [row for row in Text(html).rows if len(row) == 7 and row[0] == str(last.step)]
    assert f"{100 * last.distance:.2g}%" in [cell for row in rows for cell in row]
    assert f"after step {last.step} the weights are" in Text(html).text
    shown = json.loads(embedded(html))["runs"][0]["twin"]
    assert [point["apart"] for point in shown] == [p.distance for p in expected.points]
    without = rendered(folder, "flushed")
    assert json.loads(embedded(without))["runs"][0]["twin"] == []
    assert "Beside a float64 twin" not in Text(without).text


def test_a_run_without_ops_and_one_without_its_text(folder, tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(b"here and gone. " * 100)
    ps.train(tiny(data=str(file), steps=3, observe="off"), out=tmp_path / "bare")
    file.unlink()
    read = Text(rendered(tmp_path, "bare"))
    assert "No ops were recorded" in read.text
    assert "drift was not computed" in read.text


def test_a_run_that_died(tmp_path):
    run = ps.train(tiny(policy="e4m3", lr=1e9, steps=5), out=tmp_path / "dead")
    assert run.died_at is not None
    read = Text(rendered(tmp_path, "dead"))
    assert f"dies at step {run.died_at}" in read.text
    assert f"The run ended at step {run.died_at}" in read.text


@pytest.mark.parametrize("name", ["scaled", "flushed"])
def test_the_reproduce_command_makes_the_same_config(folder, name):
    run = ps.open(folder / name)
    words = shlex.split(collect(run, name, rows=10, points=0).command)
    assert words[:2] == ["precsim", "train"]
    assert words[-2:] == ["-o", name]
    pairs = [value for flag, value in itertools.pairwise(words) if flag == "--set"]
    assert ps.TrainConfig().change(**parse_assignments(pairs)) == run.config


def test_a_run_that_was_killed_and_one_that_goes_on(tmp_path):
    def stop(record, rows):
        if record.step == 4:
            raise Stop

    with pytest.raises(Stop):
        ps.train(tiny(steps=9), out=tmp_path / "killed", on_step=stop)
    with (tmp_path / "killed" / "steps.jsonl").open("ab") as file:
        file.write(b'{"step":4,"lo')
    found = collect(ps.open(tmp_path / "killed"), "killed", rows=9999, points=9)
    assert [columns["step"] for columns in found.player["steps"]] == [0, 1, 2, 3]
    assert found.curves["step"] == [0, 1, 2, 3]
    assert [point.step for point in found.drift] == [0, 1, 2, 3, 4]
    pages = []

    def look(record, rows):
        if record.step == 5:
            pages.append(Text(rendered(tmp_path, "live")).text)

    ps.train(tiny(steps=9), out=tmp_path / "live", on_step=look)
    assert "trained on zen for 5 steps" in pages[0]


def test_a_run_without_a_step_is_refused(tmp_path):
    def stop(record, rows):
        raise Stop

    with pytest.raises(Stop):
        ps.train(tiny(), out=tmp_path, on_step=stop)
    with pytest.raises(RunError, match="has no step yet"):
        collect(ps.open(tmp_path), "none", rows=10, points=0)


def test_a_change_of_policy_is_told(tmp_path):
    schedule = "steps 4: fp32"
    run = ps.train(tiny(steps=8, eval_every=2, precision_schedule=schedule), out=tmp_path / "run")
    (change,) = run.changes
    html = rendered(tmp_path, "run")
    assert f"The policy changed at {change}" in Text(html).text
    assert json.loads(embedded(html))["runs"][0]["changes"] == [change.step]


def test_the_reproduce_command_of_a_fork_names_its_parent(folder, tmp_path):
    fork = ps.open(folder / "scaled").fork(5, tmp_path / "fork", policy="fp32", lr=1e-3)
    words = shlex.split(collect(fork, "fork", rows=10, points=0).command)
    assert words[:5] == ["precsim", "fork", str((folder / "scaled").resolve()), "--at", "5"]
    assert {"policy=fp32", "lr=0.001"} <= set(words)


def test_the_reproduce_commands_are_about_the_directories_that_they_make(folder, tmp_path):
    pytest.importorskip("plotly")
    ps.open(folder / "scaled").fork(5, tmp_path / "fork", policy="fp32")
    out = ps.report([folder / "scaled", tmp_path / "fork"], tmp_path / "both.html")
    told = Text(out.read_text("utf-8")).text
    assert "precsim fork scaled --at 5" in told
    assert "precsim report scaled fork -o both.html" in told


def test_runs_of_different_length_are_said_to_be_that(folder, tmp_path):
    ps.train(tiny(steps=2, observe="hist"), out=tmp_path / "short")
    (tmp_path / "scaled").symlink_to(folder / "scaled")
    for which in (("short", "scaled"), ("scaled", "short")):
        assert "trained on zen for up to 8 steps of" in Text(rendered(tmp_path, *which)).text


def test_runs_on_other_data_are_told_apart_and_not_compared(folder, tmp_path):
    ps.train(tiny(data="reverse", context=16, steps=2), out=tmp_path / "task")
    (tmp_path / "scaled").symlink_to(folder / "scaled")
    read = Text(rendered(tmp_path, "scaled", "task"))
    assert " 8 bytes. That is scaled: data, context differ between the runs." in read.text
    loss = ps.open(tmp_path / "task").valid_loss()
    assert f"task ends with a validation loss of {loss:.2f} (guessing: 2.40)" in read.text


def test_names_tell_runs_apart():
    assert names([Path("a/x"), Path("b/y")]) == ["x", "y"]
    assert names([Path("a/x"), Path("b/x")]) == ["a/x", "b/x"]
    assert names([Path("a/x"), Path("a/x")]) == ["x", "x (2)"]


def test_a_missing_package_is_one_clear_sentence(monkeypatch):
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"needs jinja2 and plotly: try `pip install 'precsim\[rep"):
        page.require()


def test_from_python(folder, tmp_path):
    pytest.importorskip("jinja2")
    pytest.importorskip("plotly")
    for runs in (folder / "scaled", str(folder / "scaled"), ps.open(folder / "scaled"),
                 [folder / "scaled"]):  # fmt: skip
        path = ps.report(runs, tmp_path / "one.html", drift=0)
        assert path == tmp_path / "one.html"
        assert "scaled" in Text(path.read_text("utf-8")).text
    told = []
    ps.report([folder / "scaled", folder / "flushed"], tmp_path / "two.html", twin=True,
              on_step=lambda done, steps, loss: told.append((done, steps)))  # fmt: skip
    assert told == [(done, 16) for done in range(1, 17)]
    for none in ([], [folder / "scaled"] * 9):
        with pytest.raises(RunError, match=f"expected 1 to 8 runs in one report; got {len(none)}"):
            ps.report(none, tmp_path / "none.html")
    with pytest.raises(RunError, match="cannot write"):
        ps.report(folder / "scaled", tmp_path / "no" / "where.html", drift=0)
    assert not (tmp_path / "none.html").exists()


def precsim(*words):
    command = [sys.executable, "-m", "precsim", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_verb(folder, tmp_path):
    pytest.importorskip("jinja2")
    pytest.importorskip("plotly")
    output = tmp_path / "out.html"
    done = precsim("report", folder / "scaled", folder / "flushed", "-o", output, "--drift", "0")
    assert (done.returncode, done.stdout) == (0, "")
    assert re.search(r"wrote .*out.html \([\d.]+ MB", done.stderr)
    html = output.read_text("utf-8")
    assert "precsim report scaled flushed -o out.html --drift 0" in Text(html).text
    missing = precsim("report", tmp_path / "nothing", "-o", tmp_path / "x.html")
    assert missing.returncode == 2
    assert "no directory" in missing.stderr
    assert "Traceback" not in missing.stderr
    unwritable = precsim(
        "report", folder / "scaled", "-o", tmp_path / "no" / "x.html", "--drift", "0"
    )
    assert unwritable.returncode == 2


def test_the_wheel_has_the_templates(tmp_path):
    pytest.importorskip("hatchling")
    build = "import hatchling.build, sys; print(hatchling.build.build_wheel(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = zipfile.ZipFile(wheel).namelist()
    for template in (ROOT / "precsim/report/templates").iterdir():
        assert f"precsim/report/templates/{template.name}" in inside
