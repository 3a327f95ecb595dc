"""What watching costs is the same in the README, in the help and in the data; and is measured whole."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from precsim.cli import app
from precsim.observe import costs as module
from precsim.observe.costs import CASES, costs, sentence, span
from precsim.observe.trace import LEVELS
from tests.benchmarks import __main__ as command
from tests.benchmarks.measure import row
from tests.benchmarks.summary import level_costs, markdown

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def test_every_level_has_a_cost_in_every_case():
    assert tuple(costs()) == LEVELS
    for level, cases in costs().items():
        assert cases.keys() == CASES.keys(), level
        for cost in cases.values():
            assert 0 < cost.seconds[0] <= cost.seconds[1]
            assert 0.9 < cost.ratio[0] <= cost.ratio[1]


def test_the_readme_has_the_same_figures():
    """And so has its table of limits: the least and the most of NumPy's cases, and of compiled ones."""
    for level, cases in costs().items():
        (line,) = re.findall(rf"^\| `{level}` \|(.*)\|$", README, re.MULTILINE)
        cells = [
            f" {span(cases[c].ratio, 2)} ({span([s * 1e3 for s in cases[c].seconds], 0)} ms) "
            for c in CASES
        ]
        assert line == "|".join(cells)
        if level == "tensors":
            continue
        for title, names in {level: ("exact", "fast"), f"{level}, compiled": ("compiled",)}.items():
            ratios = [end for name in names for end in cases[name].ratio]
            measured = span((min(ratios), max(ratios)), 2)
            assert f"| observation, {title} | bf16, e4m3 | nobody | {measured} |" in README


@pytest.mark.parametrize("verb", ["train", "replay"])
def test_the_help_has_the_same_figures(verb):
    shown = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "80"}).output
    words = " ".join(shown.split())
    for part in re.split(r", by|: |, ", sentence())[1:-2]:
        assert part in words
    assert re.search(r"shadow \d+\.\d to \d+\.\d", words)


def test_costs_are_the_least_and_the_most_of_what_was_measured(tmp_path, monkeypatch):
    rows = [
        row("observation", "hist, fast", "e4m3", 0.08, peer="nobody", against=0.04, limit=1.3),
        row("observation", "hist, fast", "bf16", 0.06, peer="nobody", against=0.04, limit=1.3),
        row("observation", "hist, compiled", "bf16", 0.05, peer="nobody", against=0.04),
        row("training step", "fast", "bf16", 0.04),
    ]
    found = level_costs(rows)
    assert found == {
        "hist": {
            "compiled": {"seconds": [0.05, 0.05], "ratio": [1.25, 1.25]},
            "fast": {"seconds": [0.06, 0.08], "ratio": [1.5, 2.0]},
        }
    }
    machine = {"processor": "p", "cores": 1, "load": 0, "python": "3", "date": "d"}
    text = markdown(rows, machine)
    assert "| level | compiled kernels | NumPy, fast arithmetic |\n|---|---|---|\n" in text
    assert "| `hist` | 1.25 (50 ms) | 1.50 to 2.00 (60 to 80 ms) |" in text

    source, target = tmp_path / "rows.json", tmp_path / "costs.json"
    source.write_text(json.dumps({"machine": machine, "rows": rows}))
    (tmp_path / "figures").mkdir()
    (tmp_path / "README.md").write_text("<!-- benchmarks --><!-- /benchmarks -->")
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "FILE", target)
    command.main(["--from", str(source), "--readme"])
    monkeypatch.setattr(module, "FILE", target)
    assert costs.__wrapped__()["hist"]["fast"].ratio == (1.5, 2.0)
