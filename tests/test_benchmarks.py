"""What the benchmarks make of measurements: rows, lines for the README, a picture; not the times."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import __main__ as command
from tests.benchmarks.measure import amount, duration, medians, quantity, row
from tests.benchmarks.picture import benchmarks
from tests.benchmarks.summary import (
    BEGIN,
    END,
    between_markers,
    by_target,
    fingerprint,
    markdown,
    verdict,
)

ROOT = Path(__file__).resolve().parents[1]
ROWS = [
    row("rounding", "normal", "bf16", 2e-9, peer="np.copyto", against=1e-9, limit=6),
    row("rounding", "underflow", "fp16", 9e-9, peer="np.copyto", against=1e-9, limit=6),
    row("rounding", "normal", "fp16", 9e-9, peer="torch", against=3e-9),
    row("blocks", "normal", "mxfp4", 4e-9, peer="e2m1", against=1e-9, limit=2.5),
    row("training step", "fast", "e4m3", 0.03, peer="torch + casts", limit=0.7),
    row("training step", "exact", "e4m3", 0.06, peer="fast", against=0.03, limit=2),
    row("growth of time", "layers 2 to 4", "e4m3", 2.0, peer="layers 2", against=1.0, limit=2.4),
    row("growth of time", "batch 8 to 16", "e4m3", 2.0, peer="batch 8", against=1.0, limit=2.4),
    row("growth of trace", "40 to 80 steps", "bf16", 990, "bytes", peer="40 steps",
        against=1000, limit=1.2),
    row("a large model", "10.07 M parameters", "e4m3", 0.62, peer="torch + casts", against=0.94),
    row("a large model", "10.07 M parameters", "e4m3", 335_600_000, "bytes"),
]  # fmt: skip
MACHINE = {"processor": "Model 91", "cores": 2, "load": 0.1, "python": "3.11.7", "numpy": "2.4.6",
           "torch": None, "ml_dtypes": "0.6.0", "date": "2026-11-25"}  # fmt: skip


def test_the_blas_gets_one_thread_because_measuring_does_not_load_it_first():
    code = "import sys, tests.benchmarks.measure; print('numpy' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "False"


def test_all_take_turns_twice_each_and_what_prepares_the_second_time_is_not_counted():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    found = medians(functions, 3, before=lambda: calls.append("|"))
    assert "".join(calls) == "a|ab|b" * 4
    assert found.keys() == {"a", "b"}
    assert all(0 <= seconds < 1 for seconds in found.values())


def test_a_row_is_reached_where_its_ratio_is_at_most_its_target():
    assert [r["reached"] for r in ROWS[:6]] == [True, False, None, False, None, True]
    assert ROWS[0]["ratio"] == 2
    assert row("t", "c", None, None, "bytes", peer="p", against=3, limit=1)["ratio"] is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.5, "2.50 s"), (0.031, "31.00 ms"), (4e-6, "4.00 us"), (3e-10, "0.30 ns")],
)
def test_times_have_the_unit_that_suits_them(seconds, text):
    assert duration(seconds) == text
    assert quantity(row("t", "c", None, seconds)) == text


def test_bytes_do_too():
    assert [amount(n) for n in (999, 26_600_000)] == ["1.0 kB", "26.6 MB"]
    assert quantity(row("t", "c", None, None, "bytes")) == ""


def test_one_line_for_each_target():
    lines = by_target(ROWS)
    assert [(n["what"], n["peer"], n["target"], len(n["rows"])) for n in lines] == [
        ("rounding", "np.copyto", 6, 2),
        ("blocks", "elements alone", 2.5, 1),
        ("training step, exact", "fast", 2, 1),
        ("growth of time, layers and batch", "half of it", 2.4, 2),
        ("growth of trace, steps", "half of it", 1.2, 1),
    ]
    assert lines[0]["formats"] == ["bf16", "fp16"]
    assert [verdict(n) for n in lines] == [
        "missed by 1 of 2, by 50% at most", "missed, by 60% at most", "reached", "reached", "reached",
    ]  # fmt: skip


def test_watching_has_a_line_for_a_level_and_its_kernels_and_a_steps_limits_stand_together():
    rows = [
        row("training step", "fast", "e4m3", 2.0, peer="torch", against=1.0, limit=0.7),
        row("observation", "hist, fast", "e4m3", 2.0, peer="nobody", against=1.0, limit=1.3),
        row("observation", "hist, exact", "e4m3", 1.305, peer="nobody", against=1.0, limit=1.3),
        row("observation", "hist, compiled", "e4m3", 1.2, peer="nobody", against=1.0, limit=1.3),
        row("training step", "fast", "e5m2", 0.9, peer="torch", against=1.0, limit=0.95),
    ]
    lines = by_target(rows)
    assert [(n["what"], n["target"]) for n in lines] == [
        ("training step, fast", 0.7), ("training step, fast", 0.95), ("observation, hist", 1.3),
        ("observation, hist, compiled", 1.3),
    ]  # fmt: skip
    assert [verdict(n) for n in lines[2:]] == ["missed, by 54% at most", "reached"]
    assert verdict(by_target(rows[2:3])[0]) == "missed, by less than 1% at most"


def test_the_table_says_the_machine_the_ratios_and_the_large_model():
    text = markdown(ROWS, MACHINE)
    first, *_, last = text.splitlines()
    assert first == (
        "One thread, Model 91 (2 cores, load 0.1), Python 3.11.7, numpy 2.4.6, ml_dtypes 0.6.0, "
        "2026-11-25:"
    )
    assert "| rounding | bf16, fp16 | np.copyto | 2.00 to 9.00 | 6 |" in text
    assert "| training step, exact | e4m3 | fast | 2.00 | 2 | reached |" in text
    assert last == "A step of a model with 10.07 M parameters in e4m3 takes 620.00 ms and 335.6 MB."


def test_only_what_is_between_the_markers_is_written():
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert between_markers(page, "new") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    with pytest.raises(ValueError, match="expected <!-- benchmarks -->"):
        between_markers("a page", "new")


def test_the_fingerprint_names_what_numbers_depend_on():
    found = fingerprint()
    assert MACHINE.keys() <= found.keys()
    assert found["processor"]
    assert found["cores"] >= 1
    assert json.loads(json.dumps(found)) == found


def test_the_picture_has_a_dot_for_every_row_with_a_target_but_growth():
    axes = benchmarks(rows=ROWS, machine=MACHINE).axes[0]
    dots = [line.get_xdata()[0] for line in axes.lines if line.get_marker() != "None"]
    bars = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "None"]
    assert dots == pytest.approx([2, 9, 4, 2])
    assert bars == [6, 2.5, 2]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[1] == "blocks / elements alone"


def test_the_readme_is_written_from_rows_that_were_measured_before(tmp_path, monkeypatch, capsys):
    (tmp_path / "figures").mkdir()
    (tmp_path / "README.md").write_text(f"# A page\n{BEGIN}\n{END}\n", encoding="utf-8")
    source, copy = tmp_path / "rows.json", tmp_path / "copy.json"
    source.write_text(json.dumps({"machine": MACHINE, "rows": ROWS}))
    monkeypatch.setattr(command, "ROOT", tmp_path)
    command.main(["--from", str(source), "--readme", "--json", str(copy)])
    assert markdown(ROWS, MACHINE) in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert json.loads(copy.read_text()) == {"machine": MACHINE, "rows": ROWS}
    drawn = json.loads((tmp_path / "figures/benchmarks.json").read_text())
    assert drawn["data"]["rows"] == ROWS
    assert (tmp_path / "figures/benchmarks.png").stat().st_size > 10_000
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "No such file"), (b"\xff", "utf-8"), (b"{", "Expecting"), (b"[]", "list"),
     (b"{}", "rows")],
)  # fmt: skip
def test_a_file_that_json_did_not_write_is_told_in_a_sentence(content, problem, tmp_path, capsys):
    source = tmp_path / "rows.json"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(SystemExit) as stop:
        command.main(["--from", str(source), "--readme"])
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "expected a file that --json wrote" in said
    assert problem in said


def test_the_readme_has_the_markers():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert between_markers(page, "") != page
